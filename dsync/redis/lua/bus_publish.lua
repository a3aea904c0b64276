-- Number messages and publish them, in their order.  Safe to repeat: a batch is published once.
--
-- Returns    {epoch, sequence}   of the last message
-- Invariant  state first, messages last: what gets lost on the way has its number, so it is missed.

local state     = KEYS[1]            -- hash, as in bus_look
local publisher = ARGV[1]            -- client id
local batch     = tonumber(ARGV[2])  -- how many it has sent, this one included
local sizes     = ARGV[3]            -- of the messages, bytes, separated by spaces
local messages  = ARGV[4]            -- one behind the other: <event> <data>
local channel   = ARGV[5]
local remember  = tonumber(ARGV[6])  -- ms for which a repeated batch is known as one

-- include: bus

local last = string.sub(state, 1, -6) .. 'last:' .. publisher
if (tonumber(redis.call('GET', last)) or 0) >= batch then
  return {epoch, sequence}
end
local first = sequence + 1
for _ in string.gmatch(sizes, '%d+') do sequence = sequence + 1 end
redis.call('SET', last, batch, 'PX', remember)
if epoch == 0 then
  local time = redis.call('TIME')
  epoch = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
redis.call('HSET', state, 'schema', 1, 'epoch', epoch, 'sequence', sequence)
redis.call('PEXPIRE', state, 2592000000)
local refused                        -- an ACL does not let us publish
local head, from = string.format('%.0f', epoch) .. ' ', 1
for size in string.gmatch(sizes, '%d+') do
  local message = string.sub(messages, from, from + size - 1)
  from = from + size
  local heard = redis.pcall('PUBLISH', channel, head .. string.format('%.0f', first) .. ' '
    .. publisher .. ' ' .. message)
  if not tonumber(heard) then refused = heard end
  first = first + 1
end
return refused or {epoch, sequence}
