-- Give a lock back with what goes along: up to `count` sleepers of a condition are notified, and the
-- holder's own sleeper begins to wait for a notification.  Also what a sleeper does that will not
-- use what it has been notified of.  Safe to repeat: a token that is gone touches nobody.
--
-- Returns    {1, waiting, handed}   it held the lock until now; handed: 1 if another got it by this
--            {0, waiting, holder}   it did not; holder: who does, '' where nobody does
-- Invariant  only who holds the lock, or has been notified, notifies; those notified stand in the
--            lock's queue in their order before anybody else can ask for the lock.

local state     = KEYS[1]            -- hash, as in permit_acquire
local holders   = KEYS[2]            -- zset
local waiters   = KEYS[3]            -- zset
local since     = KEYS[4]            -- hash
local alive     = KEYS[5]            -- zset
local left      = KEYS[6]            -- zset
local token     = ARGV[1]
local condition = ARGV[2]            -- whose sleepers are notified; zset token -> ticket
local count     = tonumber(ARGV[3])
local sleeper   = ARGV[4]            -- <process>.<counter>/<claim>/<condition>; '' none
local keep      = ARGV[5]            -- 1: the lock stays with the holder; 0: it gives it back
local block     = tonumber(ARGV[6])  -- fences a grant reserves
local inbox     = ARGV[7]
local silence   = tonumber(ARGV[8])  -- ms
local tombstone = tonumber(ARGV[9])  -- ms for which an acquire of this token is refused (a copy of
                                     -- this call, if the lock is kept); 0: none

-- include: now
-- include: grant
-- include: queue

local held = (tonumber(redis.call('ZSCORE', holders, token)) or 0) > now and 1 or 0
local notified = held
-- Of a holder that stays nothing but this tells a copy of the call, for each condition.
local known = token
if keep == '1' then
  known = token .. ' ' .. condition
  if (tonumber(redis.call('ZSCORE', left, known)) or 0) > now then notified = 0 end
else
  -- One whose lease has ended uncollected is as good as dead: what it was notified of goes on.
  if held == 0 then drop_expired() end
  drop(token)
  if held == 0 then
    if condition_of(token) then
      redis.call('ZREM', sleepers_of(condition_of(token)), token)
    end
    notified = redis.call('ZREM', waiters, token)
    waiting = waiting - notified
  end
end
if notified == 1 and count > 0 then notify(condition, count) end
if held == 1 and sleeper ~= '' and (tonumber(redis.call('ZSCORE', left, sleeper)) or 0) <= now then
  local sleepers = sleepers_of(condition)
  redis.call('ZADD', sleepers, new_ticket(), sleeper)
  write('ticket', last_ticket)
  note_alive(sleeper)
  redis.call('PEXPIRE', sleepers, 10 * silence)
end
if tombstone > 0 then
  redis.call('ZREMRANGEBYSCORE', left, '-inf', now)
  redis.call('ZADD', left, now + tombstone, known)
  redis.call('PEXPIRE', left, math.max(redis.call('PTTL', left), 2 * tombstone))
end
hand_over('', 0)
if held == 1 then return {1, waiting, handed} end
return {0, waiting, redis.call('ZRANGE', holders, 0, 0)[1] or ''}
