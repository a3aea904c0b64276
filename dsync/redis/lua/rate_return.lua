-- Hand back units that were taken and are not used, if nobody has taken any since.  Safe to repeat.
--
-- Returns    {1}   handed back
--            {0}   somebody has, or it was handed back before
-- Invariant  what others have reserved stays where it is.

local state    = KEYS[1]             -- string, as in rate_take
local token    = ARGV[1]             -- of the last that is handed back
local position = tonumber(ARGV[2])   -- what `taken` was after it
local amount   = tonumber(ARGV[3])   -- units, up to there

-- include: rate

-- The newest of those that are known took the last units, so it has to be this one; where none is
-- known any more, for so many were handed back, the position has to do.
local last = string.match(recent, '^;(%S+) ')
if taken ~= position or taken < amount or last and last ~= token then return {0} end
level, taken = math.max(0, level - amount), taken - amount
local kept = ';'
for known, at, when in string.gmatch(recent, '([^; ]+) (%d+) (%d+);') do
  if tonumber(at) <= taken then kept = kept .. known .. ' ' .. at .. ' ' .. when .. ';' end
end
recent = kept
write()
return {1}
