-- Included after `now`.  Needs `holders`, `since` and `block`; grant().
--
-- Gives `token` a permit for `lease` ms.  `ttl`: how long `holders` is kept at least, as it is.
-- Each grant of a lock reserves `block` fences and is numbered by the first: above all earlier
-- ones, also when the record was lost in between.
-- Invariant: what a key holds ends before the key does.
local function grant(token, lease, ttl)
  redis.call('ZADD', holders, now + lease, token)
  if ttl < lease then redis.call('PEXPIRE', holders, 2 * lease) end
  if block > 0 then
    fence = math.max(fence + block, us)
    write('fence', fence, 'since', now)
  else
    write()
    redis.call('HSET', since, token, now)
    if ttl < lease then redis.call('PEXPIRE', since, 2 * lease) end
  end
end
