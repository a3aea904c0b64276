-- Keep a sleeper's place, or with an `heir` wake it: it waits for the lock under that token from now
-- on, unless it has been notified before.  Safe to repeat.
--
-- Returns    {2, 0, ms, waiting, limit, 0}   it sleeps; ms: until the holder's lease ends, -1 none
--            or what permit_acquire does, of the sleeper and 0 (it has been notified) or 2 (it was
--            forgotten, and takes itself for notified), or of the heir and 1: the sixth
-- Invariant  a sleeper sleeps, waits, holds, or has an heir that does, never two of these.

local state     = KEYS[1]            -- hash, as in permit_acquire
local holders   = KEYS[2]            -- zset
local waiters   = KEYS[3]            -- zset
local since     = KEYS[4]            -- hash
local alive     = KEYS[5]            -- zset
local left      = KEYS[6]            -- zset
local token     = ARGV[1]            -- the sleeper's
local heir      = ARGV[2]            -- '' none
local lease     = tonumber(ARGV[3])  -- ms
local block     = tonumber(ARGV[4])  -- fences a grant reserves
local inbox     = ARGV[5]
local silence   = tonumber(ARGV[6])  -- ms
local tombstone = tonumber(ARGV[7])  -- ms for which the sleeper may still arrive late

-- include: now
-- include: grant
-- include: queue
-- include: take

local sleepers = sleepers_of(condition_of(token))
if heir == '' and redis.call('ZSCORE', sleepers, token) then
  note_alive(token)
  redis.call('PEXPIRE', sleepers, 10 * silence)
  redis.call('PEXPIRE', waiters, 10 * silence) -- one that was notified there may die, too
  hand_over('', 0)
  local next_end = redis.call('ZRANGE', holders, 0, 0, 'WITHSCORES')[2]
  local ms = next_end and math.max(tonumber(next_end) - now, 1) or -1
  return {2, 0, ms, waiting, limit, 0}
end
local notified = redis.call('ZSCORE', waiters, token) or redis.call('ZSCORE', holders, token)
local woken = notified and 0 or 2
if heir ~= '' and not notified then
  woken = 1
  if redis.call('ZREM', sleepers, token) == 0 then
    -- It has not come yet, or is forgotten.
    redis.call('ZREMRANGEBYSCORE', left, '-inf', now)
    redis.call('ZADD', left, now + tombstone, token)
    redis.call('PEXPIRE', left, math.max(redis.call('PTTL', left), 2 * tombstone))
  end
  token = heir
end
local reply = take(token, lease, '1')
reply[7] = reply[6]
reply[6] = woken
return reply
