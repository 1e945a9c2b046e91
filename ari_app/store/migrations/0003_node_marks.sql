-- Nodes that an operator has taken out of placement. The mark that placement reads is a copy of this in Redis.
CREATE TABLE node_marks (
    node text PRIMARY KEY,
    mark text NOT NULL CHECK (mark IN ('cordoned', 'draining')),
    set_by text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
