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

local record, live = record_of(call)
if live and not excluded[record.worker] then
    local _, payload = alive(record.worker, record.pair)
    if payload then
        grant(call, record)
        return {1, payload, record.token, record.node}
    end
end

-- The application's slots: what was set at run time takes the place of its limit. Those who wait ahead have the first
-- that are free.
local place, waiting = 0, false
if application ~= '' then limit = tonumber(redis.call('HGET', prefix .. 'app-limits', application)) or limit end
if application ~= '' and limit >= 0 and not (live and record.application == application) then
    local gone = redis.call('ZRANGEBYSCORE', line_ends, '-inf', now)
    for _, other in ipairs(gone) do
        redis.call('ZREM', line, other)
        redis.call('ZREM', line_ends, other)
    end
    waiting = redis.call('ZRANK', line, call)
    local ahead = waiting or redis.call('ZCARD', line)
    local full = limit - in_set('app-leases:' .. application) <= ahead
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

local marks = {}
local function marked(node)
    if marks[node] == nil then marks[node] = redis.call('EXISTS', prefix .. 'mark:' .. node) == 1 end
    return marks[node]
end

-- The eligible among a pair's workers, and why there are none.
local function workers_of(pair)
    local found, why = {}, 'no_workers'
    local fields = redis.call('HGETALL', prefix .. 'pair:' .. pair)
    for i = 1, #fields, 2 do
        local id = string.sub(fields[i], 3)
        if string.sub(fields[i], 1, 1) == 'w' and not excluded[id] then
            local capacity, flag, _, node = announced(fields[i + 1])
            if capacity and (flag == '1' or marked(node)) then
                if why == 'no_workers' then why = 'all_draining' end
            elseif capacity then
                why = 'all_full'
                local active = flag == '0' and on_worker(id)
                if active and active < capacity then
                    found[#found + 1] = {id = id, load = active / capacity, pair = pair}
                end
            end
        end
    end
    return found, why
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
    return best[redis.call('HINCRBY', prefix .. 'turns', of, 1) % #best + 1]
end

local reasons = {no_workers = 1, all_draining = 2, all_full = 3}
local function weightier(one, other) return reasons[one] < reasons[other] and other or one end

local function choose_inbound(own)
    local found, why = workers_of(own)
    local chosen = least('pair ' .. own, found)
    if chosen then return chosen, home end
    local others = {}
    for i = 2, #pairs_named do
        local more, so = workers_of(pairs_named[i])
        for _, worker in ipairs(more) do others[#others + 1] = worker end
        why = weightier(why, so)
    end
    return least('spill ' .. own, others), home, why
end

-- What is needed of a pair to compare it with others. It is kept until somebody of the pair announces himself, for a
-- second at most: to look at all workers of all pairs for each call would be too much.
local function summary(pair, kept)
    if kept ~= '' then
        local found = cmsgpack.unpack(kept)
        if found.ends > now then return found end
    end
    local fields = redis.call('HGETALL', prefix .. 'pair:' .. pair)
    if #fields == 0 then redis.call('HDEL', KEYS[1], pair) end
    local found = {ends = now + 1000, capacity = 0, others = {}, nodes = {}, why = 'no_workers'}
    local counted = {}
    for i = 1, #fields, 2 do
        local kind, id = string.sub(fields[i], 1, 1), string.sub(fields[i], 3)
        local capacity, flag, calls, node, ends = announced(fields[i + 1])
        if ends and ends < found.ends then found.ends = ends end
        if kind == 'w' then
            if capacity and flag == '0' and not marked(node) then
                found.capacity, found.why = found.capacity + capacity, 'all_full'
            else
                found.others[#found.others + 1] = id -- what it has does not count
                if capacity then
                    found.why = weightier(found.why, (flag == '1' or marked(node)) and 'all_draining' or 'all_full')
                end
            end
        elseif capacity and flag == '0' and not counted[node] and not marked(node) then
            counted[node] = true
            found.nodes[#found.nodes + 1] = {id = node, capacity = capacity, calls = calls}
        end
    end
    if #fields > 0 then redis.call('HSET', KEYS[1], pair, cmsgpack.pack(found)) end
    return found
end

-- The PBX nodes of a pair that have room, and the load of all.
local function pbx_of(found)
    local free, calls, capacity = {}, 0, 0
    for _, pbx in ipairs(found.nodes) do
        if not excluded[pbx.id] then
            -- What it has announced may be a second old, and calls without a stream have no lease.
            local busy = math.max(pbx.calls, in_set('node-leases:' .. pbx.id))
            calls, capacity = calls + busy, capacity + pbx.capacity
            if busy < pbx.capacity then free[#free + 1] = {id = pbx.id, load = busy / pbx.capacity} end
        end
    end
    return free, capacity > 0 and calls / capacity
end

local passed = {} -- pairs that turned out to have nobody

local function choose_outbound()
    local options, lowest, why, unserved = {}, math.huge, 'no_workers', nil
    local all = redis.call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do
        local pair = all[i]
        local found = summary(pair, passed[pair] and '' or all[i + 1])
        why = weightier(why, found.why)
        local load = math.huge
        if found.capacity > 0 and not passed[pair] then
            local active = in_set('pair-leases:' .. pair)
            for _, worker in ipairs(found.others) do active = active - on_worker(worker) end
            load = active / found.capacity
        end
        if load < 1 and load <= lowest then
            local free, pbx_load = pbx_of(found)
            unserved = (pbx_load or unserved == 'all_full') and 'all_full' or 'no_pbx'
            if free[1] then
                options[#options + 1] = {id = pair, load = math.max(load, pbx_load), free = free}
                lowest = math.min(lowest, options[#options].load)
            end
        end
    end
    local best = least('pairs', options)
    if not best then return nil, '', unserved or why end
    local nodes = {}
    for _, pbx in ipairs(best.free) do
        if not marked(pbx.id) then nodes[#nodes + 1] = pbx end
    end
    local node, worker = least('pbx ' .. best.id, nodes), least('pair ' .. best.id, (workers_of(best.id)))
    if node and worker then return worker, node.id end
    passed[best.id] = true
    return choose_outbound()
end

while true do
    local chosen, node, why
    if pair_count > 0 then
        chosen, node, why = choose_inbound(pairs_named[1])
    else
        chosen, node, why = choose_outbound()
    end
    if not chosen then return {0, why, place} end
    local payload = redis.call('GET', prefix .. 'worker:' .. chosen.id)
    if payload then
        if live then revoke(call, record) end
        if waiting then
            redis.call('ZREM', line, call)
            redis.call('ZREM', line_ends, call)
        end
        local token = new_token()
        grant(call, {token = token, worker = chosen.id, node = node, pair = chosen.pair, application = application})
        return {1, payload, token, node}
    end
    excluded[chosen.id] = true -- it has taken its registration back
end
