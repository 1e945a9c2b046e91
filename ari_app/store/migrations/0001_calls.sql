-- One row per call. Times are when it happened, not when it was written.
CREATE TABLE calls (
    call_id           uuid PRIMARY KEY,
    call_sid          text NOT NULL UNIQUE,      -- the platform-style id that applications and REST clients see
    stream_sid        text,
    node              text NOT NULL,             -- PBX node that carries it
    direction         text NOT NULL,             -- inbound, outbound
    trunk             text,
    caller            text,
    callee            text,
    application       text,
    state             text NOT NULL,
    caller_channel_id text,
    worker_id         text,                      -- media worker of the latest leg
    leg_uuid          uuid,                      -- the latest leg
    created_at        timestamptz NOT NULL,
    answered_at       timestamptz,
    connected_at      timestamptz,               -- caller and media bridged
    ended_at          timestamptz,               -- null: the call is open
    result            text,
    reason            text,
    detail            text,
    hangup_cause      integer,                   -- ITU-T Q.850
    media             jsonb                      -- MediaFigures of the session
);

CREATE INDEX calls_open_idx ON calls (node) WHERE ended_at IS NULL;
CREATE INDEX calls_newest_idx ON calls (created_at DESC, call_id DESC);

-- Every transition of a call with its time and cause. No foreign key: an event may be written before its call.
CREATE TABLE call_events (
    call_id    uuid NOT NULL,
    source     text NOT NULL,                    -- process run that saw it: (source, seq) is given once
    seq        integer NOT NULL,
    at         timestamptz NOT NULL,
    event      text NOT NULL,
    from_state text,
    to_state   text,
    cause      text,
    detail     jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (call_id, source, seq)
);
