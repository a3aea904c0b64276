-- Look, and change nothing.
--
-- Returns    {1, value}   the value that is kept
--            {0, ''}      there is none
-- Invariant  a value whose time is over is not returned.

local state = KEYS[1]                -- hash    schema, fence, value; its time to live is the value's

-- include: flight
local value = stored > 0 and redis.call('HGET', state, 'value')
return {value and 1 or 0, value or ''}
