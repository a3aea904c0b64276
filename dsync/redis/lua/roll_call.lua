-- Ask processes what they hold and wait for, and who of them does.  Safe to repeat.
--
-- Returns    {heard}   of how many connections the question was heard
-- Invariant  nothing is stored.

local state     = KEYS[1]            -- never there: in a cluster it says where the processes listen
local processes = ARGV[1]            -- client ids, separated by spaces
local question  = ARGV[2]            -- <asker> <number of the question> <places of interest>
local inbox     = ARGV[3]            -- channel of a process, less its id

local heard = 0
for process in string.gmatch(processes, '%S+') do
  heard = heard + (tonumber(redis.pcall('PUBLISH', inbox .. process, '? ' .. question)) or 0)
end
return {heard}
