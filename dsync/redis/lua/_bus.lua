-- Included.  Needs `state`.  Gives what the record says: `epoch`, µs when it began, and `sequence`,
-- how many messages have been published since.
local was = redis.call('HMGET', state, 'schema', 'epoch', 'sequence')
if was[1] and was[1] ~= '1' then
  return redis.error_reply('SCHEMA ' .. was[1])
elseif not was[1] and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local epoch = tonumber(was[2]) or 0
local sequence = tonumber(was[3]) or 0
