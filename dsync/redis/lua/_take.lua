-- Included after `queue`.  Needs `left`; take().
--
-- Gives `token` a permit, or with `wait` '1' a place in the queue.  -> what permit_acquire returns
local function take(token, lease, wait)
  local ends = tonumber(redis.call('ZSCORE', holders, token))
  if ends and ends > now then
    if now + lease > ends then
      redis.call('ZADD', holders, now + lease, token)
      local ttl = math.max(redis.call('PTTL', holders), 2 * lease)
      redis.call('PEXPIRE', holders, ttl)
      redis.call('PEXPIRE', since, ttl)
    end
    return {1, fence, lease, waiting, limit}
  end
  if ends then drop(token) end
  if (tonumber(redis.call('ZSCORE', left, token)) or 0) > now then
    return {-1, 0, 0, 0, limit}
  end
  local place = false -- of the token in the queue: 0 the next, 1 behind others
  if wait == '1' and (taken >= limit or waiting > 0) then
    note_alive(token)
    if not redis.call('ZSCORE', waiters, token) then
      waiting = waiting + redis.call('ZADD', waiters, new_ticket(), token)
      write('ticket', last_ticket)
    end
    redis.call('PEXPIRE', waiters, 10 * silence)
    place = 1
  end
  if hand_over(token, lease) then
    return {1, fence, lease, waiting, limit}
  end
  if not place and taken < limit then
    give(token, lease, condition_of(token))
    return {1, fence, lease, 0, limit}
  end
  if place and (waiting == 1 or redis.call('ZRANGE', waiters, 0, 0)[1] == token) then
    place = 0
    tell(process_of(token))
  end
  local first = redis.call('ZRANGE', holders, 0, 0, 'WITHSCORES')
  local ms = first[2] and math.max(tonumber(first[2]) - now, 1) or -1
  return {0, place or -1, ms, waiting, limit, first[1] or ''}
end
