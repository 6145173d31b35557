-- The queue. Instants and durations are integer microseconds, instants since 1970 by this database's clock. Ids are the 16 bytes of UUIDs.
-- Text is compared by its bytes, whatever the database's collation.
--
-- The server commits each of these statements by itself. So each does nothing where it has been done before: a migration that was cut off
-- is taken up again.
--
-- Neither MariaDB nor MySQL has partial indexes. Their place is taken by generated columns that are NULL where a row does not belong.

CREATE TABLE IF NOT EXISTS deploycore_jobs (
    id               BINARY(16)   NOT NULL PRIMARY KEY,
    created_at       BIGINT       NOT NULL,
    commit           VARCHAR(64)  NOT NULL,
    -- The service.
    name             VARCHAR(63)  NOT NULL,
    status           VARCHAR(9)   NOT NULL
                     CHECK (status IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    -- In no index, so that a heartbeat writes one row and nothing else.
    last_heartbeat   BIGINT,

    -- What was enqueued; never changed.
    priority         BIGINT       NOT NULL,
    not_before       BIGINT,
    max_attempts     BIGINT       NOT NULL CHECK (max_attempts > 0),
    max_releases     BIGINT       NOT NULL CHECK (max_releases >= 0),
    build_timeout    BIGINT       NOT NULL CHECK (build_timeout >= 0),
    dedup_key        VARCHAR(200),
    concurrency_key  VARCHAR(200),

    -- Counts claims; only grows.
    epoch            BIGINT       NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts         BIGINT       NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    releases         BIGINT       NOT NULL DEFAULT 0 CHECK (releases >= 0),
    rescues          BIGINT       NOT NULL DEFAULT 0 CHECK (rescues >= 0),
    eligible_at      BIGINT       NOT NULL,
    -- True while eligible_at has not been seen to pass. A claim turns it to false once, so that no claim walks over waiting jobs.
    is_delayed       BOOLEAN      NOT NULL,
    cancel_requested BOOLEAN      NOT NULL DEFAULT FALSE,

    -- The newest lease: the current one while RUNNING. A running attempt stands here alone; when it ends it is written to
    -- deploycore_attempts.
    claim_id         BINARY(16),
    worker           VARCHAR(128),
    claimed_at       BIGINT,
    deadline         BIGINT,
    -- Which of the places that its key has, while it runs.
    slot             BIGINT       CHECK (slot > 0),

    finished_at      BIGINT,
    artifact         VARCHAR(128),
    digest           VARCHAR(64),
    size             BIGINT       CHECK (size >= 0),
    -- JSON of the last failure.
    failure          MEDIUMTEXT,

    urgency          BIGINT       GENERATED ALWAYS AS (-priority) STORED,
    open_dedup_key   VARCHAR(200) GENERATED ALWAYS AS (CASE WHEN finished_at IS NULL THEN dedup_key END) STORED,
    running_key      VARCHAR(200) GENERATED ALWAYS AS (CASE WHEN status = 'RUNNING' THEN concurrency_key END) STORED,
    delayed_until    BIGINT       GENERATED ALWAYS AS (CASE WHEN status = 'QUEUED' AND is_delayed THEN eligible_at END) STORED,
    -- What succeeded is nearly all of the history.
    rare_end         VARCHAR(9)   GENERATED ALWAYS AS (CASE WHEN status IN ('FAILED', 'CANCELLED') THEN status END) STORED,

    -- One unfinished job a dedup key.
    UNIQUE INDEX jobs_dedup (open_dedup_key),
    -- One running job a slot: no claim, however it came about, passes the limit of a key.
    UNIQUE INDEX jobs_slot (running_key, slot),
    -- Whether a claim was answered before.
    INDEX jobs_claim (claim_id),
    -- The order of claims: of jobs without a concurrency key, and within each key. It also begins with what runs.
    INDEX jobs_queue (status, is_delayed, concurrency_key, urgency, created_at, id),
    -- Which delays have passed.
    INDEX jobs_delayed (delayed_until),

    INDEX jobs_created (created_at, id),
    INDEX jobs_name (name, created_at, id),
    INDEX jobs_commit (commit, created_at, id),
    INDEX jobs_finished (finished_at, id),
    INDEX jobs_rare_end (rare_end, created_at, id),

    CHECK (status <> 'RUNNING' OR (claim_id IS NOT NULL AND worker IS NOT NULL AND claimed_at IS NOT NULL
                                   AND last_heartbeat IS NOT NULL AND deadline IS NOT NULL)),
    CHECK (status <> 'RUNNING' OR (concurrency_key IS NULL) = (slot IS NULL)),
    CHECK ((epoch = 0) = (claim_id IS NULL)),
    CHECK ((status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CHECK ((status = 'SUCCEEDED') = (artifact IS NOT NULL)),
    CHECK ((artifact IS NULL) = (digest IS NULL)),
    CHECK ((artifact IS NULL) = (size IS NULL))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Each claim of a job that has ended, and how.
CREATE TABLE IF NOT EXISTS deploycore_attempts (
    job        BINARY(16)   NOT NULL,
    epoch      BIGINT       NOT NULL CHECK (epoch > 0),
    claim_id   BINARY(16)   NOT NULL,
    worker     VARCHAR(128) NOT NULL,
    claimed_at BIGINT       NOT NULL,
    ended_at   BIGINT       NOT NULL,
    -- JSON of how it ended: a repeated call is known by it.
    outcome    MEDIUMTEXT   NOT NULL,
    PRIMARY KEY (job, epoch),
    -- Whether a claim was answered before.
    INDEX attempts_claim (claim_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- How many jobs of a key may run at once; 1 for a key that is not here.
CREATE TABLE IF NOT EXISTS deploycore_concurrency_limits (
    concurrency_key VARCHAR(200) NOT NULL PRIMARY KEY,
    max_running     BIGINT       NOT NULL CHECK (max_running > 0)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS deploycore_queue_settings (
    one    BIGINT  NOT NULL PRIMARY KEY CHECK (one = 1),
    paused BOOLEAN NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT INTO deploycore_queue_settings (one, paused) VALUES (1, FALSE) ON DUPLICATE KEY UPDATE one = 1;

-- Who ends delays, or takes jobs with a concurrency key, holds this row: one at a time.
CREATE TABLE IF NOT EXISTS deploycore_claim_turn (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT INTO deploycore_claim_turn (one) VALUES (1) ON DUPLICATE KEY UPDATE one = 1;
