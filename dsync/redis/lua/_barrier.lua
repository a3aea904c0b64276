-- Included.  Needs `state`.  Gives the server's time, `us` in µs and `now` in ms, never behind an
-- earlier step on this record, and what the record says: `agreed`, the number of parties that those
-- who wait or drain have come with, `generation`, how often it has tripped, and `broken`.
local time = redis.call('TIME')
local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local was = redis.call('HMGET', state, 'schema', 'clock', 'parties', 'generation', 'broken',
  'ticket', 'kept')
if was[1] and was[1] ~= '1' then
  return redis.error_reply('SCHEMA ' .. was[1])
elseif not was[1] and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local now = math.max(math.floor(us / 1000), tonumber(was[2]) or 0)
local agreed = tonumber(was[3]) or 0
local generation = tonumber(was[4]) or 0
local broken = tonumber(was[5]) or 0

local function process_of(token)
  return string.match(token, '^(.*)%.')
end
