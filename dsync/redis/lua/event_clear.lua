-- Unset an event.  Safe to repeat.
--
-- Returns    {set, generation, ms}   as event_look does
-- Invariant  one token changes the event once.

local state     = KEYS[1]            -- hash, as in event_look
local left      = KEYS[2]            -- zset, as in event_set
local token     = ARGV[1]
local channel   = ARGV[2]            -- where its changes are told
local tombstone = tonumber(ARGV[3])  -- ms for which a repeated call is known as one

-- include: flag
-- include: change

if not repeated() and flag then change(false, 0) end
return reply()
