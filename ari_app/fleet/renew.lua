-- ARGV[4...]: call, worker, token (0: not known), application, PBX node; again and again.
-- Returns {calls without a lease under their token, calls and tokens of those whose token was not known}.

-- The lease that the call is to have now; nothing: it has none.
local function renewed(call, worker, token, application, node)
    local record, live = record_of(call)
    if record and record.worker == '' and record.token >= token then return end -- it was given back
    if record and token > 0 and record.token > token then return end -- it is somebody else's since
    if live and (token == 0 or record.token == token) then return record.worker == worker and record or nil end
    if live then revoke(call, record) end -- an older token's, which came first to a Redis that had lost its memory
    local capacity, _, pair = alive(worker)
    if not capacity or on_worker(worker) >= capacity then return end
    if token == 0 then
        token = new_token()
    elseif token > tonumber(redis.call('GET', prefix .. 'lease-token') or 0) then
        redis.call('SET', prefix .. 'lease-token', string.format('%.0f', token))
    end
    return {token = token, worker = worker, node = node, pair = pair, application = application}
end

local lost, learned = {}, {}
for i = 4, #ARGV, 5 do
    local call, token = ARGV[i], tonumber(ARGV[i + 2])
    local record = renewed(call, ARGV[i + 1], token, ARGV[i + 3], ARGV[i + 4])
    if not record then
        lost[#lost + 1] = call
    else
        grant(call, record)
        if token == 0 then
            learned[#learned + 1] = call
            learned[#learned + 1] = record.token
        end
    end
end
return {lost, learned}
