-- Break everybody who waits at a barrier, and break the barrier itself or mend it.  Safe to repeat:
-- one token does it once.  Those who have passed stay so.
--
-- Returns    {count, broken}   count: how many waited
-- Invariant  nobody waits at a broken barrier; who was broken does not wait again.

local state    = KEYS[1]             -- hash, as in barrier_arrive
local arrivals = KEYS[2]             -- zset
local draining = KEYS[3]             -- zset
local alive    = KEYS[4]             -- zset
local index    = KEYS[5]             -- hash
local left     = KEYS[6]             -- zset, here also: tokens of calls that were carried out
local token    = ARGV[1]
local abort    = tonumber(ARGV[2])   -- 1: the barrier is broken from now on; 0: it is not
local inbox    = ARGV[3]
local memory   = tonumber(ARGV[4])   -- ms

-- include: barrier
-- include: trip

if refused(token) then return {0, broken} end
local waiting = redis.call('ZRANGE', arrivals, 0, -1)
-- This write comes first: after it a server out of memory still lets the rest happen.
redis.call('DEL', arrivals)
forget()
write('broken', abort)
refuse(token)
for _, waiter in ipairs(waiting) do refuse(waiter) end
for _, waiter in ipairs(waiting) do
  redis.pcall('PUBLISH', inbox .. process_of(waiter), 'b ' .. waiter .. ' ' .. abort)
end
return {#waiting, abort}
