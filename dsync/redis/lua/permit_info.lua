-- Look, and change nothing.
--
-- Returns    {limit, pinned, holding, waiting, {token, ms left, ms held, ...},
--             {token, ms waited, ...}, fence}
--            limit: -1 where nobody has declared one; holding and waiting are counts; the lists
--            stop at the first 1000
-- Invariant  a holder whose lease has ended is not listed.

local state   = KEYS[1]              -- hash, as in permit_acquire
local holders = KEYS[2]              -- zset
local waiters = KEYS[3]              -- zset
local since   = KEYS[4]              -- hash

-- include: now
local pinned = redis.call('HGET', state, 'pinned') and 1 or 0
local live = '(' .. now
local holding, waiting = {}, {}
local listed = redis.call('ZRANGEBYSCORE', holders, live, '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #listed, 2 do
  local began = redis.call('HGET', since, listed[i]) or redis.call('HGET', state, 'since')
  holding[#holding + 1] = listed[i]
  holding[#holding + 1] = tonumber(listed[i + 1]) - now
  holding[#holding + 1] = now - (tonumber(began) or now)
end
listed = redis.call('ZRANGE', waiters, 0, 999, 'WITHSCORES')
for i = 1, #listed, 2 do
  waiting[#waiting + 1] = listed[i]
  waiting[#waiting + 1] = math.max(0, math.floor((us - tonumber(listed[i + 1])) / 1000))
end
if not was[4] then limit = -1 end
return {limit, pinned, redis.call('ZCOUNT', holders, live, '+inf'), redis.call('ZCARD', waiters),
  holding, waiting, fence}
