-- Look, and change nothing.
--
-- Returns    {wait, remaining, reset, reserved, epoch, rate, per, burst}
--            wait: µs until one unit may be taken; remaining: units that may be now; reset: µs until
--            all may be; reserved: units taken in advance; epoch: 0 where there is no record; rate,
--            per and burst are text, '' there
-- Invariant  what it says holds at the moment at which it looks.

local state = KEYS[1]                -- string, as in rate_take

-- include: rate
if not text then return {0, 0, 0, 0, 0, '', '', ''} end
local remaining, reset = room()
local reserved = math.max(0, math.ceil(level - burst - tiny()))
return {drained(level + 1 - burst), remaining, reset, reserved, tonumber(epoch), rate, per,
  string.format('%d', burst)}
