-- The queue. Instants and durations are integer microseconds, instants since 1970 by this database's clock.
-- Ids are hyphenated lower-case UUIDs, so that their text sorts as their bytes do.

CREATE TABLE jobs (
    id               TEXT    NOT NULL PRIMARY KEY,
    created_at       INTEGER NOT NULL,
    "commit"         TEXT    NOT NULL,
    -- The service.
    name             TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    last_heartbeat   INTEGER,

    -- What was enqueued; never changed.
    priority         INTEGER NOT NULL,
    not_before       INTEGER,
    max_attempts     INTEGER NOT NULL CHECK (max_attempts > 0),
    max_releases     INTEGER NOT NULL CHECK (max_releases >= 0),
    build_timeout    INTEGER NOT NULL CHECK (build_timeout >= 0),
    dedup_key        TEXT,
    concurrency_key  TEXT,

    -- Counts claims; only grows.
    epoch            INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts         INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    releases         INTEGER NOT NULL DEFAULT 0 CHECK (releases >= 0),
    rescues          INTEGER NOT NULL DEFAULT 0 CHECK (rescues >= 0),
    eligible_at      INTEGER NOT NULL,
    -- 1 while eligible_at has not been seen to pass. A claim turns it to 0 once, so that no claim walks over waiting jobs.
    delayed          INTEGER NOT NULL CHECK (delayed IN (0, 1)),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),

    -- The lease, while RUNNING.
    claim_id         TEXT,
    worker           TEXT,
    claimed_at       INTEGER,
    deadline         INTEGER,

    finished_at      INTEGER,
    artifact         TEXT,
    digest           TEXT,
    size             INTEGER CHECK (size >= 0),
    -- JSON of the last failure.
    failure          TEXT,

    CHECK ((status = 'RUNNING') = (claim_id IS NOT NULL)),
    CHECK ((claim_id IS NULL) = (worker IS NULL)),
    CHECK ((claim_id IS NULL) = (claimed_at IS NULL)),
    CHECK ((claim_id IS NULL) = (last_heartbeat IS NULL)),
    CHECK ((claim_id IS NULL) = (deadline IS NULL)),
    CHECK ((status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CHECK ((status = 'SUCCEEDED') = (artifact IS NOT NULL)),
    CHECK ((artifact IS NULL) = (digest IS NULL)),
    CHECK ((artifact IS NULL) = (size IS NULL))
) STRICT;

-- One unfinished job a dedup key.
CREATE UNIQUE INDEX jobs_dedup ON jobs (dedup_key) WHERE finished_at IS NULL AND dedup_key IS NOT NULL;

-- The order of claims: of jobs without a concurrency key, and within each key.
CREATE INDEX jobs_ready ON jobs (priority DESC, created_at, id)
    WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NULL;
CREATE INDEX jobs_ready_keyed ON jobs (concurrency_key, priority DESC, created_at, id)
    WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NOT NULL;
-- Which delays have passed, and since when the oldest job waits.
CREATE INDEX jobs_eligible ON jobs (delayed, eligible_at) WHERE status = 'QUEUED';
-- Small whatever the history: as many rows as builds run. last_heartbeat is in no index.
CREATE INDEX jobs_running ON jobs (concurrency_key) WHERE status = 'RUNNING';

CREATE INDEX jobs_created ON jobs (created_at, id);
CREATE INDEX jobs_status ON jobs (status, created_at, id);
CREATE INDEX jobs_name ON jobs (name, created_at, id);
CREATE INDEX jobs_commit ON jobs ("commit", created_at, id);
CREATE INDEX jobs_finished ON jobs (finished_at, id) WHERE finished_at IS NOT NULL;

-- Each claim of a job and how it ended.
CREATE TABLE attempts (
    job        TEXT    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    epoch      INTEGER NOT NULL CHECK (epoch > 0),
    claim_id   TEXT    NOT NULL,
    worker     TEXT    NOT NULL,
    claimed_at INTEGER NOT NULL,
    ended_at   INTEGER,
    -- JSON of how it ended: a repeated call is known by it.
    outcome    TEXT,
    PRIMARY KEY (job, epoch),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT;

-- Whether a claim was answered before.
CREATE INDEX attempts_claim ON attempts (claim_id);

-- How many jobs of a key may run at once; 1 for a key that is not here.
CREATE TABLE concurrency_limits (
    concurrency_key TEXT    NOT NULL PRIMARY KEY,
    max_running     INTEGER NOT NULL CHECK (max_running > 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE queue_settings (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    paused INTEGER NOT NULL CHECK (paused IN (0, 1))
) STRICT;

INSERT INTO queue_settings (one, paused) VALUES (1, 0);
