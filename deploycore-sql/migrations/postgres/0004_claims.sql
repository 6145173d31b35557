-- Claims that do not walk over what was claimed before, also while a long transaction keeps the dead from being cleaned; and jobs that take the
-- place of what is queued of their service.

ALTER TABLE deploycore.jobs ADD COLUMN cancels_older boolean NOT NULL DEFAULT false;
-- Only for who asks in these words. With `status = 'QUEUED'` as its condition, it would look to the server like a quick way to all that is
-- queued, in a table with a history and an empty queue, and the looks of claims for what is rare would walk over the queue.
CREATE INDEX jobs_queued_name ON deploycore.jobs (name) WHERE coalesce(status = 'QUEUED', false);

-- The transaction in which the job became ready; 0 before this version. What a snapshot does not show as ready became so in a transaction that
-- is not older than the oldest one under way at that snapshot.
ALTER TABLE deploycore.jobs ADD COLUMN ready_xid bigint NOT NULL DEFAULT 0;
ALTER TABLE deploycore.jobs ALTER COLUMN ready_xid SET DEFAULT (pg_current_xact_id()::text::bigint);

CREATE INDEX jobs_ready_since ON deploycore.jobs (ready_xid)
    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL;

-- Whether a claim is what nearly every claim is: new, while claiming is open, no delay has passed and no job with a concurrency key is ready. It
-- holds off a claim of the same id until the end of the transaction. Its look is later than that, and so later than the snapshot of the
-- statement that calls it. Any other claim is one for `claim_2`.
CREATE FUNCTION deploycore.is_plain_claim_1(the_claim uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    now_is CONSTANT bigint := deploycore.instant();
BEGIN
    -- As in `claim_2`.
    IF NOT pg_try_advisory_xact_lock(hashtextextended(the_claim::text, x'6465706c6f790063'::bigint)) THEN
        RETURN false;
    END IF;
    RETURN NOT (
        EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND status = 'RUNNING')
        OR EXISTS (SELECT FROM deploycore.attempts WHERE claim_id = the_claim)
        OR (SELECT paused FROM deploycore.queue_settings WHERE one = 1)
        OR EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is)
        OR EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL)
    );
END
$$;

-- A job that is looked at by its id is asked for its status in a form that matches no index of ready jobs: in a table with a history and an empty
-- queue, such an index looks to the server like a quick way to the id, and then every claim walks over all that is queued.
--
-- Hands out jobs in any case: `claim_1`, which programs of earlier versions go on to call, with the transaction noted in which delays pass.
CREATE FUNCTION deploycore.claim_2(the_claim uuid, the_worker text, the_limit bigint)
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
            UPDATE deploycore.jobs SET delayed = false, ready_xid = pg_current_xact_id()::text::bigint WHERE id = ANY (ARRAY(
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
            WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND coalesce(j.status = 'QUEUED' AND NOT j.delayed, false)
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
            WHERE p.id = ANY (ARRAY(SELECT id FROM first)) AND coalesce(p.status = 'QUEUED' AND NOT p.delayed, false)
            FOR UPDATE SKIP LOCKED
        )
        UPDATE deploycore.jobs j SET
            status = 'RUNNING', epoch = j.epoch + 1, attempts = j.attempts + 1, claim_id = the_claim,
            worker = the_worker, claimed_at = clock.now, last_heartbeat = clock.now,
            deadline = clock.now + j.build_timeout
        FROM clock
        WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND coalesce(j.status = 'QUEUED' AND NOT j.delayed, false)
        RETURNING true, j;
END
$$;
