-- ARGV[4]: call; [5]: application, or nothing; [6]: its limit, -1: none; [7]: how many may wait for it, 0: this call does
-- not wait; [8]: how long a waiting call keeps its place without asking again, in ms; [9]: PBX node; [10]: number of pairs,
-- which follow: the PBX node's own, then those of its spill-over; none: pair and PBX node are to be chosen; then ids that
-- are not to be chosen.
-- Returns {1, WorkerInfo, token, PBX node} or {0, reason, place in the line or 0}.
local call, application, limit, line_max, wait_ms = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local home, pair_count = ARGV[9], tonumber(ARGV[10])
local pairs_named, excluded = {}, {}
for i = 11, 10 + pair_count do pairs_named[#pairs_named + 1] = ARGV[i] end
for i = 11 + pair_count, #ARGV do excluded[ARGV[i]] = true end

local line, line_ends = prefix .. 'app-line:' .. application, prefix .. 'app-line-ends:' .. application

local function leave_line()
    if application ~= '' then
        redis.call('ZREM', line, call)
        redis.call('ZREM', line_ends, call)
    end
end

local record, live = record_of(call)
if live and not excluded[record.worker] then
    local _, payload = alive(record.worker, record.pair)
    if payload then
        grant(call, record)
        leave_line()
        return {1, payload, record.token, record.node}
    end
end

-- The application's slots. Those who wait ahead have the first of them that are free.
local place = 0
if application ~= '' and limit >= 0 and not (live and record.application == application) then
    local gone = redis.call('ZRANGEBYSCORE', line_ends, '-inf', now)
    for _, other in ipairs(gone) do
        redis.call('ZREM', line, other)
        redis.call('ZREM', line_ends, other)
    end
    local waiting = redis.call('ZRANK', line, call)
    local ahead = waiting or redis.call('ZCARD', line)
    local full = limit - count('app-leases:' .. application) <= ahead
    if full and not waiting and ahead < line_max then
        local last = redis.call('ZREVRANGE', line, 0, 0, 'WITHSCORES')
        redis.call('ZADD', line, (tonumber(last[2]) or 0) + 1, call)
        waiting = ahead
    end
    if waiting then
        place = ahead + 1
        redis.call('ZADD', line_ends, now + wait_ms, call)
        redis.call('PEXPIRE', line, wait_ms + keep_ms)
        redis.call('PEXPIRE', line_ends, wait_ms + keep_ms)
    end
    if full then return {0, 'app_full', place} end
end

local function turn(of, among)
    return redis.call('HINCRBY', prefix .. 'turns', of, 1) % among + 1
end

local marks = {}
local function marked(node)
    if marks[node] == nil then marks[node] = redis.call('EXISTS', prefix .. 'mark:' .. node) == 1 end
    return marks[node]
end

-- What a pair has: workers that take calls and have room, the load of all that take calls, and the same for its PBX nodes.
local why = 'no_workers'
local function look_at(pair, with_pbx)
    local found = {pair = pair, workers = {}, active = 0, capacity = 0, nodes = {}, calls = 0, pbx_capacity = 0}
    local fields, counted = redis.call('HGETALL', prefix .. 'pair:' .. pair), {}
    for i = 1, #fields, 2 do
        local kind, id = string.sub(fields[i], 1, 1), string.sub(fields[i], 3)
        local capacity, flag, calls, node = announced(fields[i + 1])
        if capacity and kind == 'w' and not excluded[id] then
            if flag == '1' or marked(node) then
                if why == 'no_workers' then why = 'all_draining' end
            else
                why = 'all_full'
                if flag == '0' then
                    local active = count('leases:' .. id)
                    found.active, found.capacity = found.active + active, found.capacity + capacity
                    if active < capacity then
                        found.workers[#found.workers + 1] = {id = id, load = active / capacity, pair = pair}
                    end
                end
            end
        elseif capacity and kind == 'c' and with_pbx and flag == '0' and not counted[node]
            and not excluded[node] and not marked(node) then
            counted[node] = true
            -- What it has announced may be a second old, and calls without a stream have no lease.
            local busy = math.max(calls, count('node-leases:' .. node))
            found.calls, found.pbx_capacity = found.calls + busy, found.pbx_capacity + capacity
            if busy < capacity then found.nodes[#found.nodes + 1] = {id = node, load = busy / capacity} end
        end
    end
    return found
end

-- The least loaded; equals have their turns.
local function least(of, options)
    local best = {}
    for _, option in ipairs(options) do
        if not best[1] or option.load < best[1].load then
            best = {option}
        elseif option.load == best[1].load then
            best[#best + 1] = option
        end
    end
    if #best < 2 then return best[1] end
    table.sort(best, function(one, other) return one.id < other.id end)
    return best[turn(of, #best)]
end

local function choose()
    if pair_count > 0 then
        local chosen = least('pair ' .. pairs_named[1], look_at(pairs_named[1]).workers)
        if chosen then return chosen, home end
        local others = {}
        for i = 2, #pairs_named do
            for _, worker in ipairs(look_at(pairs_named[i]).workers) do others[#others + 1] = worker end
        end
        return least('spill ' .. pairs_named[1], others), home
    end
    local options, free, busy = {}, false, false
    for _, pair in ipairs(redis.call('SMEMBERS', prefix .. 'pairs')) do
        local found = look_at(pair, true)
        free = free or #found.workers > 0
        busy = busy or #found.workers > 0 and found.pbx_capacity > 0
        if #found.workers > 0 and #found.nodes > 0 then
            found.id = pair
            found.load = math.max(found.active / found.capacity, found.calls / found.pbx_capacity)
            options[#options + 1] = found
        end
    end
    if free then why = busy and 'all_full' or 'no_pbx' end
    local best = least('pairs', options)
    if best then
        return least('pair ' .. best.pair, best.workers), least('pbx ' .. best.pair, best.nodes).id
    end
end

while true do
    local chosen, node = choose()
    if not chosen then return {0, why, place} end
    local payload = redis.call('GET', prefix .. 'worker:' .. chosen.id)
    if payload then
        if live then revoke(call, record) end
        leave_line()
        local token = new_token()
        grant(call, {token = token, worker = chosen.id, node = node, pair = chosen.pair, application = application})
        return {1, payload, token, node}
    end
    excluded[chosen.id], why = true, 'no_workers' -- it has taken its registration back
end
