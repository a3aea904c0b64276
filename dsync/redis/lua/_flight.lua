-- Included.  Needs `state`.  Gives `stored`, the fence of whoever stored the value that is kept; 0
-- where there is none.
local was = redis.call('HMGET', state, 'schema', 'fence')
if was[1] and was[1] ~= '1' then
  return redis.error_reply('SCHEMA ' .. was[1])
elseif not was[1] and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local stored = tonumber(was[2]) or 0
