-- The queue. Instants and durations are integer microseconds, instants since 1970 by this database's clock.
-- The schema `deploycore` exists when this runs. Text is compared by its bytes, whatever the database's collation.

CREATE TABLE deploycore.jobs (
    id               uuid   NOT NULL PRIMARY KEY,
    created_at       bigint NOT NULL,
    "commit"         text   COLLATE "C" NOT NULL,
    -- The service.
    name             text   COLLATE "C" NOT NULL,
    status           text   COLLATE "C" NOT NULL
                     CHECK (status IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    last_heartbeat   bigint,

    -- What was enqueued; never changed.
    priority         bigint NOT NULL,
    not_before       bigint,
    max_attempts     bigint NOT NULL CHECK (max_attempts > 0),
    max_releases     bigint NOT NULL CHECK (max_releases >= 0),
    build_timeout    bigint NOT NULL CHECK (build_timeout >= 0),
    dedup_key        text   COLLATE "C",
    concurrency_key  text   COLLATE "C",

    -- Counts claims; only grows.
    epoch            bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts         bigint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    releases         bigint NOT NULL DEFAULT 0 CHECK (releases >= 0),
    rescues          bigint NOT NULL DEFAULT 0 CHECK (rescues >= 0),
    eligible_at      bigint NOT NULL,
    -- True while eligible_at has not been seen to pass. A claim turns it to false once, so that no claim walks over waiting jobs.
    delayed          boolean NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,

    -- The newest lease: the current one while RUNNING. A running attempt stands here alone; when it ends it is written to `attempts`.
    claim_id         uuid,
    worker           text   COLLATE "C",
    claimed_at       bigint,
    deadline         bigint,

    finished_at      bigint,
    artifact         text   COLLATE "C",
    digest           text   COLLATE "C",
    size             bigint CHECK (size >= 0),
    -- JSON of the last failure, as text: it may hold what jsonb refuses.
    failure          text   COLLATE "C",

    CHECK (status <> 'RUNNING' OR (claim_id IS NOT NULL AND worker IS NOT NULL AND claimed_at IS NOT NULL
                                   AND last_heartbeat IS NOT NULL AND deadline IS NOT NULL)),
    CHECK ((epoch = 0) = (claim_id IS NULL)),
    CHECK ((status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CHECK ((status = 'SUCCEEDED') = (artifact IS NOT NULL)),
    CHECK ((artifact IS NULL) = (digest IS NULL)),
    CHECK ((artifact IS NULL) = (size IS NULL))
) WITH (
    -- Room on each page for the next versions of its rows: a heartbeat stays on its page and touches no index (HOT).
    fillfactor = 70,
    -- Dead rows are a matter of how many jobs ran, not of how many are kept.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000
);

-- One unfinished job a dedup key.
CREATE UNIQUE INDEX jobs_dedup ON deploycore.jobs (dedup_key) WHERE finished_at IS NULL AND dedup_key IS NOT NULL;

-- The order of claims: of jobs without a concurrency key, and within each key.
CREATE INDEX jobs_ready ON deploycore.jobs (priority DESC, created_at, id)
    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL;
CREATE INDEX jobs_ready_keyed ON deploycore.jobs (concurrency_key, priority DESC, created_at, id)
    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL;
-- Which delays have passed.
CREATE INDEX jobs_delayed ON deploycore.jobs (eligible_at) WHERE status = 'QUEUED' AND delayed;
-- Small whatever the history: as many rows as builds run. last_heartbeat is in no index.
CREATE INDEX jobs_running ON deploycore.jobs (claim_id) WHERE status = 'RUNNING';
CREATE INDEX jobs_running_keyed ON deploycore.jobs (concurrency_key)
    WHERE status = 'RUNNING' AND concurrency_key IS NOT NULL;

CREATE INDEX jobs_created ON deploycore.jobs (created_at, id);
CREATE INDEX jobs_name ON deploycore.jobs (name, created_at, id);
CREATE INDEX jobs_commit ON deploycore.jobs ("commit", created_at, id);
CREATE INDEX jobs_finished ON deploycore.jobs (finished_at, id) WHERE finished_at IS NOT NULL;
-- The rare ends. What succeeded is nearly all of the history, and what has not ended stands in the small indexes above.
CREATE INDEX jobs_unsuccessful ON deploycore.jobs (status, created_at, id) WHERE status IN ('FAILED', 'CANCELLED');

-- Each claim of a job that has ended, and how.
CREATE TABLE deploycore.attempts (
    job        uuid   NOT NULL,
    epoch      bigint NOT NULL CHECK (epoch > 0),
    claim_id   uuid   NOT NULL,
    worker     text   COLLATE "C" NOT NULL,
    claimed_at bigint NOT NULL,
    ended_at   bigint NOT NULL,
    -- JSON of how it ended: a repeated call is known by it.
    outcome    text   COLLATE "C" NOT NULL,
    PRIMARY KEY (job, epoch)
);

-- Whether a claim was answered before.
CREATE INDEX attempts_claim ON deploycore.attempts (claim_id);

-- How many jobs of a key may run at once; 1 for a key that is not here.
CREATE TABLE deploycore.concurrency_limits (
    concurrency_key text   COLLATE "C" NOT NULL PRIMARY KEY,
    max_running     bigint NOT NULL CHECK (max_running > 0)
);

CREATE TABLE deploycore.queue_settings (
    one    bigint  NOT NULL PRIMARY KEY CHECK (one = 1),
    paused boolean NOT NULL
);

INSERT INTO deploycore.queue_settings (one, paused) VALUES (1, false);

-- This instant, as instants are stored. It goes on within a transaction and a statement: what a statement sees is in its past.
CREATE FUNCTION deploycore.instant() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT round(extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- Hands out jobs, in one call and one transaction: the decisions of `port::queue::transition::claim`, which a test compares it with.
--
-- It is a function because each of its statements sees what was committed before that statement, not before the call. So what it looks at
-- under a lock is what stands when the lock is held: whether the claim was answered before, and how many jobs of a key run.
--
-- Names of a function are never given to another body: programs of an earlier version call it while a newer one migrates.
CREATE FUNCTION deploycore.claim_1(the_claim uuid, the_worker text, the_limit bigint)
RETURNS TABLE (is_new boolean, job deploycore.jobs) LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    -- One at a time: who ends delays, and who takes jobs with a concurrency key. ('deploy' and 'c' in ASCII.)
    turn CONSTANT bigint := x'6465706c6f790063'::bigint;
    now_is bigint;
BEGIN
    -- A repeated call waits until the first has ended, though the first caller is gone.
    PERFORM pg_advisory_xact_lock(hashtextextended(the_claim::text, turn));
    IF EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND status = 'RUNNING')
        OR EXISTS (SELECT FROM deploycore.attempts WHERE claim_id = the_claim) THEN
        RETURN QUERY SELECT false, j FROM deploycore.jobs j WHERE j.claim_id = the_claim AND j.status = 'RUNNING';
        RETURN;
    END IF;
    IF (SELECT paused FROM deploycore.queue_settings WHERE one = 1) THEN
        RETURN;
    END IF;

    -- Each job passes here at most once a delay, so the price is one look at an index. All that are due pass: the most urgent one may have
    -- become due last. In steps, for which one plan does.
    now_is := deploycore.instant();
    IF EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is) THEN
        PERFORM pg_advisory_xact_lock(turn);
        LOOP
            UPDATE deploycore.jobs SET delayed = false WHERE id = ANY (ARRAY(
                SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is
                ORDER BY eligible_at LIMIT 1000 FOR UPDATE SKIP LOCKED
            ));
            EXIT WHEN NOT FOUND;
        END LOOP;
    END IF;

    IF NOT EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL) THEN
        RETURN QUERY
            WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
            picked AS MATERIALIZED (
                SELECT id FROM deploycore.jobs
                WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL
                ORDER BY priority DESC, created_at, id LIMIT the_limit FOR UPDATE SKIP LOCKED
            )
            UPDATE deploycore.jobs j SET
                status = 'RUNNING', epoch = j.epoch + 1, attempts = j.attempts + 1, claim_id = the_claim,
                worker = the_worker, claimed_at = clock.now, last_heartbeat = clock.now,
                deadline = clock.now + j.build_timeout
            FROM clock
            WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND j.status = 'QUEUED' AND NOT j.delayed
            RETURNING true, j;
        RETURN;
    END IF;

    -- Steps through the distinct keys that wait by index seeks, and looks at as many jobs of each key as it has room for: what waits
    -- behind a full key is never walked over. An end of an attempt takes no lock here: it only makes room.
    -- The clock is read in the statement: what it sees ended before that instant.
    PERFORM pg_advisory_xact_lock(turn);
    RETURN QUERY
        WITH RECURSIVE clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
        waiting (name) AS (
            SELECT (SELECT concurrency_key FROM deploycore.jobs
                    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL
                    ORDER BY concurrency_key LIMIT 1)
            UNION ALL
            SELECT (SELECT concurrency_key FROM deploycore.jobs
                    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key > waiting.name
                    ORDER BY concurrency_key LIMIT 1)
            FROM waiting WHERE waiting.name IS NOT NULL
        ),
        counted (name, room) AS MATERIALIZED (
            SELECT waiting.name,
                   coalesce((SELECT max_running FROM deploycore.concurrency_limits l WHERE l.concurrency_key = waiting.name), 1)
                   - (SELECT count(*) FROM deploycore.jobs r
                      WHERE r.status = 'RUNNING' AND r.concurrency_key = waiting.name)
            FROM waiting WHERE waiting.name IS NOT NULL
        ),
        keyless AS MATERIALIZED (
            SELECT k.id, k.priority, k.created_at FROM deploycore.jobs k
            WHERE k.status = 'QUEUED' AND NOT k.delayed AND k.concurrency_key IS NULL
            ORDER BY k.priority DESC, k.created_at, k.id LIMIT the_limit FOR UPDATE SKIP LOCKED
        ),
        keyed AS MATERIALIZED (
            SELECT k.id, k.priority, k.created_at FROM counted CROSS JOIN LATERAL (
                SELECT h.id, h.priority, h.created_at FROM deploycore.jobs h
                WHERE h.status = 'QUEUED' AND NOT h.delayed AND h.concurrency_key = counted.name
                ORDER BY h.priority DESC, h.created_at, h.id LIMIT least(counted.room, the_limit)
            ) k
            WHERE counted.room > 0
        ),
        first AS MATERIALIZED (
            SELECT c.id FROM (SELECT * FROM keyless UNION ALL SELECT * FROM keyed) c
            ORDER BY c.priority DESC, c.created_at, c.id LIMIT the_limit
        ),
        picked AS MATERIALIZED (
            SELECT p.id FROM deploycore.jobs p
            WHERE p.id = ANY (ARRAY(SELECT id FROM first)) AND p.status = 'QUEUED' AND NOT p.delayed
            FOR UPDATE SKIP LOCKED
        )
        UPDATE deploycore.jobs j SET
            status = 'RUNNING', epoch = j.epoch + 1, attempts = j.attempts + 1, claim_id = the_claim,
            worker = the_worker, claimed_at = clock.now, last_heartbeat = clock.now,
            deadline = clock.now + j.build_timeout
        FROM clock
        WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND j.status = 'QUEUED' AND NOT j.delayed
        RETURNING true, j;
END
$$;
