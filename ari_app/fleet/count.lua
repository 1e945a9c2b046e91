-- ARGV[4...]: names of sets. Returns how many leases are in each.
local counts = {}
for i = 4, #ARGV do counts[#counts + 1] = count(ARGV[i]) end
return counts
