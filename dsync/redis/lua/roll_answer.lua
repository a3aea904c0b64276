-- Tell who has called the roll what this process holds and waits for.  Safe to repeat.
--
-- Returns    {heard}   of how many connections the answer was heard
-- Invariant  nothing is stored.

local state   = KEYS[1]              -- never there: in a cluster it says where the asker listens
local answer  = ARGV[1]              -- JSON
local channel = ARGV[2]

return {redis.call('PUBLISH', channel, answer)}
