-- Raise the limit by one and serve those waiting: a release by somebody who holds nothing, as
-- asyncio's Semaphore counts it.  Safe to repeat: one token raises it once.
--
-- Returns    {limit, waiting}
-- Invariant  limit = declared (or pinned) + the tokens that were added.

local state     = KEYS[1]            -- hash, as in permit_acquire
local holders   = KEYS[2]            -- zset
local waiters   = KEYS[3]            -- zset
local since     = KEYS[4]            -- hash
local alive     = KEYS[5]            -- zset
local left      = KEYS[6]            -- zset, here: tokens already counted
local token     = ARGV[1]
local declared  = tonumber(ARGV[2])  -- the limit the caller was made with
local stamp     = ARGV[3]            -- µs, when its client was born; '' now
local block     = tonumber(ARGV[4])  -- fences a grant reserves
local inbox     = ARGV[5]
local silence   = tonumber(ARGV[6])  -- ms
local tombstone = tonumber(ARGV[7])  -- ms for which a repeated call is known as one

-- include: now
-- include: grant
-- include: queue

if (tonumber(redis.call('ZSCORE', left, token)) or 0) <= now then
  if not was[4] then
    limit = declared + extra
    write('limit', declared, 'stamp', tonumber(stamp) or us)
  end
  limit = limit + 1
  write('extra', extra + 1)
  redis.call('ZREMRANGEBYSCORE', left, '-inf', now)
  redis.call('ZADD', left, now + tombstone, token)
  redis.call('PEXPIRE', left, math.max(redis.call('PTTL', left), 2 * tombstone))
  hand_over('', 0)
  tell('')
end
return {limit, waiting}
