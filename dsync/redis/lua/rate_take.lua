-- Take units of a rate limit, now or in advance: a leaky bucket as a meter (the generic cell rate
-- algorithm, ITU-T I.371), kept in units.  Safe to repeat while it is among the last ones.
--
-- Returns    {1, wait, remaining, reset, position, epoch, us, ...}   taken, to be used in `wait` µs
--            {0, wait, remaining, reset, 0, epoch, us, ...}    not taken: so long until it could be
--            {-1, 0, remaining, reset, 0, epoch, us, ...}      more than the burst: it never could
--            remaining: units that are free; reset: µs until all are; position: units taken in all;
--            epoch: when the record was made; us: now; and rate, per, burst as text where they are
--            not what the caller was made with
-- Invariant  in any time t no more than rate * t + burst units are used, if each is used when its
--            wait is over, and not later; nobody's wait ends before that of one who came earlier.

local state    = KEYS[1]             -- string  schema, clock, level, taken, epoch, stamp, rate, ...
local token    = ARGV[1]
local amount   = tonumber(ARGV[2])   -- units
local patience = tonumber(ARGV[3])   -- µs to wait at most; -1: any time
local declared = ARGV[4]             -- the rate the caller was made with: units ...
local period   = ARGV[5]             -- ... per so many µs
local capacity = tonumber(ARGV[6])   -- and its burst, units
local born     = ARGV[7]             -- µs, when its client was born; '' now

-- include: rate

-- The newest client's declaration holds.  What is in the bucket stays in it; and more where those
-- who sleep are due later than they would be by the new one: who comes now is due behind them.
if born == '' then born = string.format('%d', us) end
local newer = born ~= stamp and tonumber(born) > tonumber(stamp)
if newer then
  local ahead = text and (level - burst) * pace or 0
  stamp, rate, per, burst, pace = born, declared, period, capacity, period / declared
  if ahead > 0 then level = math.max(level, burst + ahead / pace) end
end

local function reply(code, wait, position)
  local remaining, reset = room()
  local answer = {code, wait, remaining, reset, position, tonumber(epoch), us}
  if rate ~= declared or per ~= period or burst ~= capacity then
    answer[8], answer[9], answer[10] = rate, per, string.format('%d', burst)
  end
  return answer
end

-- A repeated call: its answer was lost.
local named = ';' .. token .. ' '
local from = string.find(recent, named, 1, true)
if from then
  local position, at = string.match(recent, '^(%d+) (%d+);', from + #named)
  if position then return reply(1, math.max(0, tonumber(at) - us), tonumber(position)) end
end

local wait = drained(level + amount - burst)
if amount > burst or patience >= 0 and wait > patience then
  if newer or us < clock then write() end
  if amount > burst then return reply(-1, 0, 0) end
  return reply(0, wait, 0)
end
level, taken = level + amount, taken + amount
recent = string.sub(string.format(';%s %d %d', token, taken, us + wait) .. recent, 1, 400)
write()
return reply(1, wait, taken)
