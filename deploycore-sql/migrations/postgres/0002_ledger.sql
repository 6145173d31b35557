-- The ledger of copies. It joins with no table of the queue: the two may live in two databases.

CREATE TABLE deploycore.artifacts (
    name          text   COLLATE "C" NOT NULL PRIMARY KEY,
    digest        text   COLLATE "C" NOT NULL,
    size          bigint NOT NULL CHECK (size >= 0),
    service       text   COLLATE "C" NOT NULL,
    job           uuid   NOT NULL,
    registered_at bigint NOT NULL
);

CREATE INDEX artifacts_registered ON deploycore.artifacts (registered_at, name);
CREATE INDEX artifacts_service ON deploycore.artifacts (service, registered_at, name);

CREATE TABLE deploycore.copies (
    artifact      text   COLLATE "C" NOT NULL REFERENCES deploycore.artifacts (name) ON DELETE CASCADE,
    region        text   COLLATE "C" NOT NULL,
    state         text   COLLATE "C" NOT NULL CHECK (state IN ('pending', 'complete', 'failed')),
    -- Of the artifact: the order of claims and lists.
    registered_at bigint NOT NULL,
    -- Counts claims and reopenings; only grows.
    epoch         bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts      bigint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    bytes         bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    eligible_at   bigint NOT NULL,
    -- The newest claim; it stays when its attempt ends, so that a repeated call is known as one.
    claim_id      uuid,
    -- While an attempt runs. In no index: reports of progress stay on their page (HOT).
    leased_until  bigint,
    updated_at    bigint NOT NULL,
    completed_at  bigint,
    last_error    text   COLLATE "C",
    PRIMARY KEY (artifact, region),
    CHECK ((state = 'complete') = (completed_at IS NOT NULL)),
    CHECK (leased_until IS NULL OR (state = 'pending' AND claim_id IS NOT NULL))
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000
);

CREATE INDEX copies_pending ON deploycore.copies (region, registered_at, artifact) WHERE state = 'pending';
CREATE INDEX copies_claim ON deploycore.copies (claim_id) WHERE claim_id IS NOT NULL;
CREATE INDEX copies_state ON deploycore.copies (region, state, registered_at, artifact);

CREATE TABLE deploycore.pins (
    artifact text COLLATE "C" NOT NULL REFERENCES deploycore.artifacts (name) ON DELETE CASCADE,
    holder   text COLLATE "C" NOT NULL,
    PRIMARY KEY (artifact, holder)
);
