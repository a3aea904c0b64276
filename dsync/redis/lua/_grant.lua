-- Included after `now`.  Needs `holders`, `since` and `block`; grant().
--
-- Gives `token` a permit for `lease` ms.  `ttl`: how long `holders` is kept at least, as it is.
-- Each grant of a lock has up to `block` fences, one for each task it is passed to, and is numbered
-- by the first: above all earlier ones, also when the record was lost in between.  The time in µs is
-- that, for no pass takes less than 1 µs; where time stands still or steps back, counting is.  Only
-- counting would run ahead of the time, and a lost record would begin below.
-- `counted`: the last fence that was ahead of the time, and its passes with it: until the time has
-- passed its whole block, counting goes on.
-- Invariant: what a key holds ends before the key does.
local function grant(token, lease, ttl)
  redis.call('ZADD', holders, now + lease, token)
  if ttl < lease then redis.call('PEXPIRE', holders, 2 * lease) end
  if block > 0 then
    local last = tonumber(was[8]) == fence and fence + block - 1 or fence
    if us > last then
      fence = us
      write('fence', fence, 'since', now)
    else
      fence = fence + block
      write('fence', fence, 'since', now, 'counted', fence)
    end
  else
    write()
    redis.call('HSET', since, token, now)
    if ttl < lease then redis.call('PEXPIRE', since, 2 * lease) end
  end
end
