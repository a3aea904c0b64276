-- Take a permit away from its holder, who is told, and serve those waiting.  Safe to repeat.
--
-- Returns    {held, waiting}   held: 1 if the token held a permit until now, else 0
-- Invariant  only the named token is touched: a successor is safe from a late or repeated call.

local state   = KEYS[1]              -- hash, as in permit_acquire
local holders = KEYS[2]              -- zset
local waiters = KEYS[3]              -- zset
local since   = KEYS[4]              -- hash
local alive   = KEYS[5]              -- zset
local token   = ARGV[1]
local block   = tonumber(ARGV[2])    -- fences a grant reserves
local inbox   = ARGV[3]
local silence = tonumber(ARGV[4])    -- ms

-- include: now
-- include: grant
-- include: queue

local before = taken
drop(token)
local held = before - taken
if held == 1 and block > 0 then
  fence = fence + block -- its process passes the permit on until it is told
  write('fence', fence)
end
hand_over('', 0)
if held == 1 then
  redis.pcall('PUBLISH', inbox .. process_of(token), 'l ' .. token)
end
return {held, waiting}
