-- Set the limit for everyone and pin it: what clients were made with no longer counts.  Growing
-- serves those waiting at once, shrinking revokes nobody.  Safe to repeat.
--
-- Returns    {limit, waiting}
-- Invariant  a pinned limit changes by another resize only (and by permit_add).

local state   = KEYS[1]              -- hash, as in permit_acquire
local holders = KEYS[2]              -- zset
local waiters = KEYS[3]              -- zset
local since   = KEYS[4]              -- hash
local alive   = KEYS[5]              -- zset
local wanted  = tonumber(ARGV[1])    -- the limit from now on
local block   = tonumber(ARGV[2])    -- fences a grant reserves
local inbox   = ARGV[3]
local silence = tonumber(ARGV[4])    -- ms

-- include: now
-- include: grant
-- include: queue
write('limit', wanted, 'extra', 0, 'pinned', 1)
limit = wanted
hand_over('', 0)
tell('')
return {limit, waiting}
