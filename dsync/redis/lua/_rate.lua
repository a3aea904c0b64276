-- Included.  Needs `state`.  Gives the server's time, `us` in µs, and what the record says: `rate`
-- per `per` µs and `burst`, as declared at `stamp`; `level`, the units that were taken and have not
-- drained yet, more than `burst` where some are reserved for later; `taken`, all that ever were.
-- Invariant: level drains at the rate, and by no more than the time that has passed: a clock that
-- steps back drains nothing, and what it steps forward by drains once.
local time = redis.call('TIME')
local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local text = redis.call('GET', state)
local clock, level, taken, epoch, stamp, rate, per, burst, recent = string.match(text or
  '1 0 0 0 0 0   0 ;', '^1 (%d+) (%S+) (%d+) (%d+) (%d+) (%S*) (%d*) (%d+) (;.*)$')
if not clock then
  local schema = string.match(text, '^(%d+) %d+ ')
  if schema and schema ~= '1' then return redis.error_reply('SCHEMA ' .. schema) end
  return redis.error_reply('FOREIGN ' .. state)
end
clock, level, taken, burst = tonumber(clock), tonumber(level), tonumber(taken), tonumber(burst)
local pace -- µs in which a unit drains
if text then
  pace = per / rate
  if us > clock then level = math.max(0, level - (us - clock) / pace) end
end

-- What rounding may add up to.
local function tiny()
  return 1e-9 + 1e-12 * burst
end

-- How long until `units` have drained, µs.
local function drained(units)
  return units > tiny() and math.ceil(units * pace) or 0
end

-- Units that are free, µs until all are.
local function room()
  return math.max(0, math.floor(burst - level + tiny())), drained(level)
end

-- Writes it down, for as long as it takes to drain, and a minute.
local function write()
  if epoch == '0' then epoch = string.format('%d', us) end
  redis.call('SET', state, string.format('1 %d %.17g %d %s %s %s %s %d %s', us, level, taken,
    epoch, stamp, rate, per, burst, recent), 'PX', math.ceil(drained(level) / 1000) + 60000)
end
