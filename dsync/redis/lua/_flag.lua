-- Included.  Needs `state`.  Gives the server's time, `us` in µs and `now` in ms, never behind an
-- earlier step on this record, and what the record says: `flag`, whether the event is set,
-- `generation`, and `ends`, when it is unset by itself (ms, 0: never).
local time = redis.call('TIME')
local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local was = redis.call('HMGET', state, 'schema', 'clock', 'flag', 'generation', 'ends')
if was[1] and was[1] ~= '1' then
  return redis.error_reply('SCHEMA ' .. was[1])
elseif not was[1] and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local now = math.max(math.floor(us / 1000), tonumber(was[2]) or 0)
local generation = tonumber(was[4]) or 0
local ends = tonumber(was[5]) or 0
local flag = was[3] == '1' and (ends == 0 or ends > now)

-- What every transition of an event returns.
local function reply()
  return {flag and 1 or 0, generation, flag and ends > 0 and ends - now or -1}
end
