-- Let a permit end `lease` ms from now.  Never brings back one that is gone.  Safe to repeat.
--
-- Returns    {1, fence, lease, waiting, limit}   it is held; fence: the first of a new block, or 0
--            {0, 0, 0, 0, limit, holder}         it is lost; holder: whose lease ends next, '' where
--                                                nobody holds
-- Invariant  a lease that has ended stays ended.

local state   = KEYS[1]              -- hash, as in permit_acquire
local holders = KEYS[2]              -- zset
local waiters = KEYS[3]              -- zset
local since   = KEYS[4]              -- hash
local token   = ARGV[1]
local lease   = tonumber(ARGV[2])    -- ms
local block   = tonumber(ARGV[3])    -- fences to reserve anew; 0: none

-- include: now

local ends = tonumber(redis.call('ZSCORE', holders, token))
if not ends or ends <= now then
  local others = redis.call('ZRANGEBYSCORE', holders, '(' .. now, '+inf', 'LIMIT', 0, 1)
  return {0, 0, 0, 0, limit, others[1] or ''}
end
-- PEXPIRE first: after it a server out of memory still lets the rest happen.
local ttl = math.max(redis.call('PTTL', holders), 2 * lease)
redis.call('PEXPIRE', holders, ttl)
redis.call('PEXPIRE', since, ttl)
redis.call('ZADD', holders, now + lease, token)
if block > 0 then
  if us > fence + block then
    fence = us
    write('fence', fence)
  else
    fence = fence + block
    write('fence', fence, 'counted', fence)
  end
else
  fence = 0
  write()
end
return {1, fence, lease, redis.call('ZCARD', waiters), limit}
