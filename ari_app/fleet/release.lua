-- ARGV[4]: call; [5]: token, 0: not known. Returns whether the call had a lease under it.
local call, token = ARGV[4], tonumber(ARGV[5])
local record, live = record_of(call)
if token == 0 and record then token = record.token end
if record and record.token > token then return 0 end
if record and record.worker ~= '' then revoke(call, record) end
-- Remembered, so that a renewal that comes late grants it no more.
write(call, {token = token, worker = '', node = '', pair = '', application = ''}, lease_ms + keep_ms)
return live and record.token == token and 1 or 0
