-- Look, and change nothing.
--
-- Returns    {parties, generation, broken, waiting, draining, {token, ms waited, ...}}
--            parties: 0 where nobody has come yet; waiting and draining are counts; the list stops
--            at the first 1000
-- Invariant  an arrival whose process is taken for dead is not listed.

local state    = KEYS[1]             -- hash, as in barrier_arrive
local arrivals = KEYS[2]             -- zset
local draining = KEYS[3]             -- zset
local alive    = KEYS[4]             -- zset

-- include: barrier

local count, listed, known = 0, {}, {}
local all = redis.call('ZRANGE', arrivals, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  local process = process_of(all[i])
  if known[process] == nil then
    known[process] = (tonumber(redis.call('ZSCORE', alive, process)) or 0) > now
  end
  if known[process] then
    count = count + 1
    if count <= 1000 then
      listed[#listed + 1] = all[i]
      listed[#listed + 1] = math.max(0, math.floor((us - tonumber(all[i + 1])) / 1000))
    end
  end
end
local undrained = redis.call('ZCOUNT', draining, '(' .. now, '+inf')
return {agreed, generation, broken, count, undrained, listed}
