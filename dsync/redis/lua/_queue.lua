-- Included after `grant`.  Needs `waiters`, `alive`, `inbox`, `silence`; hand_over() and tell().
-- Invariant: state first, message last: a message that fails or gets lost costs a heartbeat.
-- The loops are bounded; whoever asks next carries on.
local taken = redis.call('ZCARD', holders)

local function process_of(token)
  return string.match(token, '^(.*)%.')
end

local function drop(token)
  taken = taken - redis.call('ZREM', holders, token)
  if block == 0 then redis.call('HDEL', since, token) end
end

local function drop_expired()
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', holders, '-inf', now, 'LIMIT', 0, 100)) do
    drop(token)
  end
end

-- Serves the queue in order while permits are free; `asker`, if it gets its turn, gets a full
-- `lease` and no message.  A waiter silent for too long is dropped.  One that is not listening at
-- the moment is dropped only if it is also late with its heartbeat.  -> true: the asker was served
local function hand_over(asker, lease)
  if taken >= limit then drop_expired() end
  for _ = 1, 1000 do
    local head = taken < limit and redis.call('ZRANGE', waiters, 0, 0)[1]
    if not head then return false end
    if head == asker then
      grant(head, lease, taken > 0 and redis.call('PTTL', holders) or 0)
      taken = taken + 1
      redis.call('ZREM', waiters, head)
      return true
    end
    local process = process_of(head)
    local silent = now - (tonumber(redis.call('ZSCORE', alive, process)) or 0)
    if silent < silence then
      local claim = tonumber(string.match(head, '/(%d+)$'))
      grant(head, claim, taken > 0 and redis.call('PTTL', holders) or 0)
      taken = taken + 1
      redis.call('ZREM', waiters, head)
      local listening = redis.pcall('PUBLISH', inbox .. process, 'g ' .. head .. ' '
        .. string.format('%.0f', fence) .. ' ' .. claim .. ' '
        .. redis.call('ZCARD', waiters) .. ' ' .. limit)
      if listening == 0 and silent > silence / 2 then drop(head) end
    else
      redis.call('ZREM', waiters, head)
    end
  end
  return false
end

-- Tells the processes that hold permits how many wait, and the limit.
local function tell(asker)
  local told = {[asker] = true}
  local news = ' ' .. redis.call('ZCARD', waiters) .. ' ' .. limit
  for _, token in ipairs(redis.call('ZRANGE', holders, 0, 31)) do
    local process = process_of(token)
    if not told[process] then
      told[process] = true
      redis.pcall('PUBLISH', inbox .. process, 'w ' .. token .. news)
    end
  end
end
