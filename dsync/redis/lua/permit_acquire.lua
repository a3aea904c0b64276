-- Take a permit, or join the queue behind those already waiting.  Safe to repeat.
--
-- Returns    fence                               a lock was free and nobody waited: the caller holds
--                                                it for `lease` ms
--            {1, fence, lease, waiting, limit}   the caller holds a permit for `lease` ms
--            {0, place, ms, waiting, limit, holder}
--                                                it waits as the next (0) or behind others (1), or
--                                                does not wait (-1); ms: until the next lease
--                                                ends, -1 where there is none; holder: whose it is
--            {-1, 0, 0, 0, limit}                refused: the token has left before it came
-- Invariant  live holders <= limit, unless the limit shrank; a token holds or waits, never both;
--            nobody gets a permit while somebody who came earlier waits and is there.

local state    = KEYS[1]             -- hash    schema, clock, fence, limit, since (of locks), ...
local holders  = KEYS[2]             -- zset    token -> end of lease, ms
local waiters  = KEYS[3]             -- zset    token -> arrival, µs, all different
local since    = KEYS[4]             -- hash    token -> since when it holds, ms; semaphores only
local alive    = KEYS[5]             -- zset    process -> last heard of as a waiter, ms
local left     = KEYS[6]             -- zset    token -> until when it is refused, ms
local token    = ARGV[1]             -- <process>.<counter>/<claim>, claim: ms for which a grant
                                     -- by message is good, until it is renewed
local declared = tonumber(ARGV[2])   -- the limit the caller was made with
local stamp    = ARGV[3]             -- µs, when its client was born; '' now; 0: the limit is fixed
local lease    = tonumber(ARGV[4])   -- ms
local wait     = ARGV[5]             -- 1: join the queue; 0: now or not at all
local block    = tonumber(ARGV[6])   -- fences reserved by a grant; 0: no fences
local inbox    = ARGV[7]             -- channel of a process, less its id
local silence  = tonumber(ARGV[8])   -- ms after which a silent waiter is taken for dead

-- include: now
-- include: grant

-- The newest client's declaration is the limit, until resize() pins one.
local changed = false
if stamp ~= '0' then
  local mine = tonumber(stamp) or us
  local others = redis.call('HMGET', state, 'stamp', 'pinned')
  if not others[2] and mine > (tonumber(others[1]) or 0) then
    changed = was[4] and limit ~= declared + extra
    limit = declared + extra
    write('limit', declared, 'stamp', mine)
  end
end

-- Nobody holds, nobody waits, nobody has left: most calls end here, and a number costs a tenth less
-- than a list.
if limit > 0 and redis.call('EXISTS', holders, waiters, left) == 0 then
  grant(token, lease, 0)
  if stamp == '0' then return fence end
  return {1, fence, lease, 0, limit}
end

-- include: queue

-- include: take

if changed then tell(process_of(token)) end
return take(token, lease, wait)
