-- Arrive at a barrier, or keep the place there; whoever completes it lets everybody pass.  Safe to
-- repeat.
--
-- Returns    {1, index, waiting, broken, -1}  its generation has tripped
--            {0, joined, waiting, 0, ms}      it waits; joined: 1 if it was not there before; ms:
--                                             until the trip before has drained at the latest, if
--                                             nothing else is missing, -1 else
--            {-1, 0, 0, 1, -1}                the barrier is broken
--            {-2, parties, waiting, 0, -1}    others have come with this number of parties
--            {-3, 0, waiting, broken, -1}     refused: it was broken, or it has left
-- Invariant  a trip takes the first arrivals, as many as there are parties, all alive, each once,
--            and not before those of the trip before have drained or are taken for dead.

local state    = KEYS[1]             -- hash    schema, clock, parties, generation, broken, ...
local arrivals = KEYS[2]             -- zset    token -> arrival, µs, all different
local draining = KEYS[3]             -- zset    token that has passed -> when it counts as gone, ms
local alive    = KEYS[4]             -- zset    process -> until when its arrivals are good, ms
local index    = KEYS[5]             -- hash    token that has passed -> its index
local left     = KEYS[6]             -- zset    token -> until when it is refused, ms
local token    = ARGV[1]             -- <process>.<counter>/<lease>, lease: ms
local parties  = tonumber(ARGV[2])
local lease    = tonumber(ARGV[3])   -- ms for which the arrivals of its process are good from now
local inbox    = ARGV[4]             -- channel of a process, less its id
local memory   = tonumber(ARGV[5])   -- ms for which tokens that have passed or left are known

-- include: barrier
-- include: trip

local passed = redis.call('HGET', index, token)
if passed then return {1, tonumber(passed), redis.call('ZCARD', arrivals), broken, -1} end
if refused(token) then return {-3, 0, redis.call('ZCARD', arrivals), broken, -1} end
if broken == 1 then return {-1, 0, 0, 1, -1} end

-- What has come is kept for a lease at least, but never longer than what says who is dead.
local function keep()
  if redis.call('PTTL', alive) < lease then redis.call('PEXPIRE', alive, 2 * lease) end
  if redis.call('PTTL', arrivals) < lease then
    redis.call('PEXPIRE', arrivals, redis.call('PTTL', alive))
  end
end

redis.call('ZADD', alive, now + lease, process_of(token))
keep()
drop_dead()
-- 0: the server has thrown away what they have agreed on, and nothing else.
if agreed == 0 or redis.call('ZCARD', arrivals) == 0 and undrained() == 0 then agreed = parties end
if parties ~= agreed then return {-2, agreed, redis.call('ZCARD', arrivals), 0, -1} end

local ticket = math.max((tonumber(was[6]) or 0) + 1, us)
local joined = redis.call('ZADD', arrivals, 'NX', ticket, token)
write('parties', agreed, 'ticket', ticket)
keep()
passed = trip(token)
local waiting = redis.call('ZCARD', arrivals)
if passed then return {1, passed, waiting, 0, -1} end
local last = waiting >= agreed and redis.call('ZRANGE', draining, -1, -1, 'WITHSCORES')[2]
return {0, joined, waiting, 0, last and math.max(tonumber(last) - now, 1) or -1}
