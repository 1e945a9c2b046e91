-- Announces a worker or a controller, to those who read registrations and to placement alike.
-- KEYS[1]: the registration. ARGV[1]: key prefix; [2]: its lifetime in ms; [3]: now in ms, 0: by Redis' clock;
-- [4]: the registration as JSON; [5]: set of all ids; [6]: id; [7]: pair; [8]: name in the pair's hash; [9]: what
-- placement reads there; [10]: key of leases that are asked for, or nothing.
-- Returns {the registration until now or nil, the calls that have those leases}.
local prefix, lifetime_ms, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local keep_ms = lifetime_ms
if now == 0 then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
else
    keep_ms = keep_ms + 3600000 -- the caller's clock is not the one that ends keys
end
local before = redis.call('SET', KEYS[1], ARGV[4], 'PX', keep_ms, 'GET')
redis.call('SADD', ARGV[5], ARGV[6])
redis.call('HSET', prefix .. 'pairs', ARGV[7], '') -- what was known of it is to be looked at again
local pair = prefix .. 'pair:' .. ARGV[7]
redis.call('HSET', pair, ARGV[8], string.format('%.0f %s', now + lifetime_ms, ARGV[9]))
redis.call('PEXPIRE', pair, keep_ms)
if not before then
    -- Who is gone for longer than any lease lasts is forgotten.
    local fields = redis.call('HGETALL', pair)
    for i = 1, #fields, 2 do
        local ends = tonumber(string.match(fields[i + 1], '^%d+') or 0)
        if ends < now - 600000 then redis.call('HDEL', pair, fields[i]) end
    end
else
    local readable, info = pcall(cjson.decode, before)
    if readable and type(info) == 'table' and type(info.pair) == 'string' and info.pair ~= ARGV[7] then
        redis.call('HDEL', prefix .. 'pair:' .. info.pair, ARGV[8])
        redis.call('HSET', prefix .. 'pairs', info.pair, '')
    end
end
return {before, ARGV[10] ~= '' and redis.call('ZRANGEBYSCORE', ARGV[10], '(' .. now, '+inf') or {}}
