-- Store a value and tell everybody who waits for it, by one message.  Safe to repeat.
--
-- Returns    {1}   it is kept
--            {0}   refused: who was given the lock later has stored one, which is kept
-- Invariant  while a value is kept, the fences of those that take its place grow.

local state   = KEYS[1]              -- hash, as in flight_look
local fence   = tonumber(ARGV[1])    -- of the lock under which it was computed
local value   = ARGV[2]
local ttl     = tonumber(ARGV[3])    -- ms for which it is kept
local channel = ARGV[4]              -- where it is told
local most    = tonumber(ARGV[5])    -- bytes; of a larger value the message says only that it is there

-- include: flight
if fence > stored then
  redis.call('HSET', state, 'schema', 1, 'fence', string.format('%.0f', fence), 'value', value)
  redis.call('PEXPIRE', state, ttl)
  redis.pcall('PUBLISH', channel, #value > most and 'look' or 'v' .. value)
end
return {fence >= stored and 1 or 0}
