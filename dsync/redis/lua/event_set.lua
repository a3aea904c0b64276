-- Set an event and wake everyone who waits, by one message.  Safe to repeat.  What is set longer
-- already stays so.
--
-- Returns    {set, generation, ms}   as event_look does
-- Invariant  one token changes the event once.

local state     = KEYS[1]            -- hash, as in event_look
local left      = KEYS[2]            -- zset    token that has changed it -> until when that is known
local token     = ARGV[1]
local ttl       = tonumber(ARGV[2])  -- ms for which it stays set; 0: for good
local channel   = ARGV[3]            -- where its changes are told
local tombstone = tonumber(ARGV[4])  -- ms for which a repeated call is known as one

-- include: flag
-- include: change

if not repeated() and not (flag and ends == 0) then
  change(true, ttl > 0 and math.max(now + ttl, ends) or 0)
end
return reply()
