-- The ledger of copies. It joins with no table of the queue: the two may live in two databases.

CREATE TABLE artifacts (
    name          TEXT    NOT NULL PRIMARY KEY,
    digest        TEXT    NOT NULL,
    size          INTEGER NOT NULL CHECK (size >= 0),
    service       TEXT    NOT NULL,
    job           TEXT    NOT NULL,
    registered_at INTEGER NOT NULL
) STRICT;

CREATE INDEX artifacts_registered ON artifacts (registered_at, name);
CREATE INDEX artifacts_service ON artifacts (service, registered_at, name);

CREATE TABLE copies (
    artifact      TEXT    NOT NULL REFERENCES artifacts (name) ON DELETE CASCADE,
    region        TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('pending', 'complete', 'failed')),
    -- Of the artifact: the order of claims and lists.
    registered_at INTEGER NOT NULL,
    -- Counts claims and reopenings; only grows.
    epoch         INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts      INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    bytes         INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    eligible_at   INTEGER NOT NULL,
    -- The newest claim; it stays when its attempt ends, so that a repeated call is known as one.
    claim_id      TEXT,
    -- While an attempt runs.
    leased_until  INTEGER,
    updated_at    INTEGER NOT NULL,
    completed_at  INTEGER,
    last_error    TEXT,
    PRIMARY KEY (artifact, region),
    CHECK ((state = 'complete') = (completed_at IS NOT NULL)),
    CHECK (leased_until IS NULL OR (state = 'pending' AND claim_id IS NOT NULL))
) STRICT;

CREATE INDEX copies_pending ON copies (region, registered_at, artifact, eligible_at, leased_until)
    WHERE state = 'pending';
CREATE INDEX copies_claim ON copies (claim_id) WHERE claim_id IS NOT NULL;
CREATE INDEX copies_state ON copies (region, state, registered_at, artifact);

CREATE TABLE pins (
    artifact TEXT NOT NULL REFERENCES artifacts (name) ON DELETE CASCADE,
    holder   TEXT NOT NULL,
    PRIMARY KEY (artifact, holder)
) STRICT, WITHOUT ROWID;
