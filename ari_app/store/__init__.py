"""State outside the process: PostgreSQL is the truth (calls, events), Redis the present (specs, reports, commands)."""
