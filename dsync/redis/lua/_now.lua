-- Included.  Needs `state`.  Gives what the record says and the server's time: `us` in µs, `now` in
-- ms, `now` never behind an earlier step on this record (a clock that steps back and forth would
-- otherwise end a lease that was renewed in between).
local time = redis.call('TIME')
local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local was = redis.call('HMGET', state, 'schema', 'clock', 'fence', 'limit', 'extra', 'kept', 'ticket',
  'counted')
if was[1] and was[1] ~= '1' then
  return redis.error_reply('SCHEMA ' .. was[1])
elseif not was[1] and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local now = math.max(math.floor(us / 1000), tonumber(was[2]) or 0)
local fence = tonumber(was[3]) or 0
local extra = tonumber(was[5]) or 0
local limit = (tonumber(was[4]) or 1) + extra

-- Writes fields of the record.  The record outlives its last use by 3.5 to 7 days: it holds the
-- floor of the fences and the limit, nothing that would block anybody.
local function write(...)
  redis.call('HSET', state, 'clock', now, ...)
  if now - (tonumber(was[6]) or 0) > 302400000 then
    was[6] = now
    redis.call('HSET', state, 'schema', 1, 'kept', now)
    redis.call('PEXPIRE', state, 604800000)
  end
end
