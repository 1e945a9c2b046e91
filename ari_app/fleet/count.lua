-- ARGV[4...]: workers, or names of sets where they hold a colon. Returns how many leases are in each.
local counts = {}
for i = 4, #ARGV do
    counts[#counts + 1] = string.find(ARGV[i], ':', 1, true) and in_set(ARGV[i]) or on_worker(ARGV[i])
end
return counts
