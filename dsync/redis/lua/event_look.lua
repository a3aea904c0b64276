-- Look, and change nothing.
--
-- Returns    {set, generation, ms}   set: 1 or 0; ms: until it is unset by itself, -1 never
-- Invariant  the event was set since a look found it unset if it is set, or its generation has moved.

local state = KEYS[1]                -- hash    schema, clock, flag, generation, ends

-- include: flag
return reply()
