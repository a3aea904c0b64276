-- Leave a barrier: wait there no more, or, having passed, say that the task has run.  The last one
-- to do so makes room for the next generation.  Safe to repeat.
--
-- Returns    {waiting, broken}
-- Invariant  afterwards the token neither waits nor keeps others waiting.

local state    = KEYS[1]             -- hash, as in barrier_arrive
local arrivals = KEYS[2]             -- zset
local draining = KEYS[3]             -- zset
local alive    = KEYS[4]             -- zset
local index    = KEYS[5]             -- hash
local left     = KEYS[6]             -- zset
local token    = ARGV[1]
local late     = ARGV[2]             -- 1: an arrival of this token may still be under way; 0: none
local inbox    = ARGV[3]
local memory   = tonumber(ARGV[4])   -- ms

-- These writes come first: after them a server out of memory still lets the rest happen.
redis.call('ZREM', arrivals, token)
redis.call('ZREM', draining, token)
redis.call('HDEL', index, token)

-- include: barrier
-- include: trip

if late == '1' then
  forget()
  refuse(token)
else
  redis.call('ZREM', left, token)
end
drop_dead()
trip('')
return {redis.call('ZCARD', arrivals), broken}
