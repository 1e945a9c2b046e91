-- What all scripts of the ledger share; it is put in front of each. All keys carry one hash tag, so they are in one slot
-- of a cluster although only KEYS[1] is declared.
-- ARGV[1]: key prefix; [2]: length of a lease in ms; [3]: now in ms, 0: by Redis' clock. What follows is the script's own.
local prefix, lease_ms, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local clock_us, keep_ms = now * 1000, 1000 -- how long a key outlives what it holds
if now == 0 then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
    clock_us = time[1] * 1000000 + time[2]
else
    keep_ms = 3600000 -- the caller's clock is not the one that ends keys
end

-- A call's record: its lease, live or expired; with an empty worker: the token whose lease was given back.
local function record_of(call)
    local text = redis.call('GET', prefix .. 'lease:' .. call)
    if not text then return nil, false end
    local token, worker, node, pair, application = string.match(text, '^(%d+) (%S*) (%S*) (%S*) (%S*)$')
    if not token then return nil, false end -- an older version's
    local record = {token = tonumber(token), worker = worker, node = node, pair = pair, application = application}
    local ends = worker ~= '' and redis.call('ZSCORE', prefix .. 'lease-ends', call)
    return record, ends and tonumber(ends) > now or false
end

local function write(call, record, lives_ms)
    local text = string.format(
        '%.0f %s %s %s %s', record.token, record.worker, record.node, record.pair, record.application)
    redis.call('SET', prefix .. 'lease:' .. call, text, 'PX', lives_ms)
end

-- Where a lease is counted, besides its worker.
local function sets_of(record)
    local sets = {prefix .. 'pair-leases:' .. record.pair}
    if record.node ~= '' then sets[#sets + 1] = prefix .. 'node-leases:' .. record.node end
    if record.application ~= '' then sets[#sets + 1] = prefix .. 'app-leases:' .. record.application end
    return sets
end

-- No lease is longer than 600 s, so that all outlive the last in them, and its record outlives them.
local function grant(call, record)
    local ends, lives_ms = now + lease_ms, 600000 + keep_ms
    for _, sorted in ipairs({prefix .. 'leases:' .. record.worker, prefix .. 'lease-ends'}) do
        redis.call('ZADD', sorted, ends, call)
        redis.call('PEXPIRE', sorted, lives_ms)
    end
    for _, set in ipairs(sets_of(record)) do
        redis.call('SADD', set, call)
        redis.call('PEXPIRE', set, lives_ms)
    end
    write(call, record, lease_ms + lives_ms)
end

local function revoke(call, record)
    redis.call('ZREM', prefix .. 'lease-ends', call)
    redis.call('ZREM', prefix .. 'leases:' .. record.worker, call)
    for _, set in ipairs(sets_of(record)) do redis.call('SREM', set, call) end
end

-- What has expired counts no more. Only so many at once, that nobody waits for long: what is left over counts a moment
-- longer.
for _, call in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'lease-ends', '-inf', now, 'LIMIT', 0, 500)) do
    local record = record_of(call)
    if record and record.worker ~= '' then revoke(call, record) end
    redis.call('ZREM', prefix .. 'lease-ends', call)
end

local function on_worker(worker)
    return redis.call('ZCARD', prefix .. 'leases:' .. worker)
end

local function in_set(set)
    return redis.call('SCARD', prefix .. set)
end

-- Never less than the clock, so that it grows over a Redis that has lost its memory too.
local function new_token()
    local token = math.max(tonumber(redis.call('GET', prefix .. 'lease-token') or 0) + 1, clock_us)
    redis.call('SET', prefix .. 'lease-token', string.format('%.0f', token))
    return token
end

-- What a worker or controller has announced for placement: what it can carry, whether it takes calls (0), is draining (1)
-- or cannot take any for now (2), calls, node, when that ends in ms; nothing of the dead.
local function announced(text)
    local ends, capacity, flag, calls, node = string.match(text, '^(%d+) (%d+) (%d) (%d+) (%S*)$')
    ends = tonumber(ends)
    if ends and ends > now then return tonumber(capacity), flag, tonumber(calls), node, ends end
end

-- A worker's capacity, its registration as JSON, and its pair; nothing when it is dead.
local function alive(worker, pair)
    local payload = redis.call('GET', prefix .. 'worker:' .. worker)
    if payload and not pair then
        local readable, info = pcall(cjson.decode, payload)
        pair = readable and info.pair
    end
    local text = payload and pair and redis.call('HGET', prefix .. 'pair:' .. pair, 'w ' .. worker)
    local capacity = text and announced(text)
    if capacity then return capacity, payload, pair end
end
