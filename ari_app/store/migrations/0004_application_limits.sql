-- Limits that were set at run time. An application without a row has the limit of the configuration file.
CREATE TABLE application_limits (
    application text PRIMARY KEY,
    calls       integer NOT NULL CHECK (calls >= 0),
    source      text NOT NULL,                   -- operator, webhook
    set_by      text NOT NULL,
    set_at      timestamptz NOT NULL DEFAULT now()
);
