-- Included after `flag`.  Needs `left`, `token`, `channel`, `tombstone`; change() and repeated().
-- Invariant: the generation moves with every change, and never back, so whoever knows an unset event's
-- generation sees from the next one whether it was set in between.

-- Whether this token has changed the event already: a copy that comes late changes nothing.
local function repeated()
  if (tonumber(redis.call('ZSCORE', left, token)) or 0) > now then return true end
  redis.call('ZREMRANGEBYSCORE', left, '-inf', now)
  redis.call('ZADD', left, now + tombstone, token)
  redis.call('PEXPIRE', left, math.max(redis.call('PTTL', left), 2 * tombstone))
  return false
end

-- Sets the event (until `till`, ms, 0: for good) or unsets it, and tells everybody by one message.
-- An event that is set for good has no time to live: it outlives all clients.
local function change(wanted, till)
  if wanted ~= flag then generation = math.max(generation + 1, us) end
  flag, ends = wanted, till
  redis.call('HSET', state, 'schema', 1, 'clock', now, 'flag', flag and 1 or 0,
    'generation', generation, 'ends', ends)
  if flag and ends == 0 then
    redis.call('PERSIST', state)
  else
    redis.call('PEXPIRE', state, 604800000 + math.max(0, ends - now))
  end
  redis.pcall('PUBLISH', channel, (flag and '1 ' or '0 ') .. string.format('%.0f', generation)
    .. ' ' .. (flag and ends > 0 and ends - now or -1))
end
