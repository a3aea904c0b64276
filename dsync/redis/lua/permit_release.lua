-- Give a permit back or leave the queue: afterwards the token neither holds nor waits, and those
-- waiting have been served.  Safe to repeat: a token that is gone touches nobody.
--
-- Returns    {1, waiting, handed}   it held a permit until now; handed: how many got one by this
--            1                      the same, and nobody waited
--            {0, waiting, holder}   it did not; holder: whose lease ends next, '' where nobody holds
-- Invariant  the queue's head owns the permit before anybody else can ask for it.

local state     = KEYS[1]            -- hash, as in permit_acquire
local holders   = KEYS[2]            -- zset
local waiters   = KEYS[3]            -- zset
local since     = KEYS[4]            -- hash
local alive     = KEYS[5]            -- zset
local left      = KEYS[6]            -- zset
local token     = ARGV[1]
local block     = tonumber(ARGV[2])  -- fences a grant reserves
local inbox     = ARGV[3]
local silence   = tonumber(ARGV[4])  -- ms
local tombstone = tonumber(ARGV[5])  -- ms for which an acquire of this token is refused; 0: none

-- This write comes first: after it a server out of memory still lets the rest happen.
local held = redis.call('ZREM', holders, token)
if held == 0 then
  redis.call('ZREM', waiters, token)
elseif block == 0 then
  redis.call('HDEL', since, token)
end
if tombstone == 0 and redis.call('EXISTS', waiters) == 0 then
  if held == 1 then return 1 end
  return {0, 0, redis.call('ZRANGE', holders, 0, 0)[1] or ''}
end

-- include: now
-- include: grant
-- include: queue

if tombstone > 0 then
  redis.call('ZREMRANGEBYSCORE', left, '-inf', now)
  redis.call('ZADD', left, now + tombstone, token)
  redis.call('PEXPIRE', left, math.max(redis.call('PTTL', left), 2 * tombstone))
end
hand_over('', 0)
if held == 1 then return {1, waiting, handed} end
return {0, waiting, redis.call('ZRANGE', holders, 0, 0)[1] or ''}
