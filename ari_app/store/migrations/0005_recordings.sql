-- All parts of a call's recording, in order: [{"recording", "worker_id", "began_at"}]. Null: there is none.
ALTER TABLE calls ADD COLUMN recordings jsonb;
