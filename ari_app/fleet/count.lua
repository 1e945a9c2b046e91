-- ARGV[4...]: workers, or names of sets where they hold a colon: of leases, or of calls by the end of their place in a line.
-- Returns how many are in each.
local function in_line(set)
    return redis.call('ZCOUNT', prefix .. set, '(' .. now, '+inf')
end

local counts = {}
for i = 4, #ARGV do
    local name = ARGV[i]
    local count = not string.find(name, ':', 1, true) and on_worker
        or string.find(name, 'app-line-ends:', 1, true) == 1 and in_line or in_set
    counts[#counts + 1] = count(name)
end
return counts
