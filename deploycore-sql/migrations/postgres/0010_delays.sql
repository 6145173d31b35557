-- Delays end by 1,000 at most in one transaction. Under the functions before, all that were due ended within one claim: each step walked over what
-- the steps before had left, and beyond some 200,000 jobs a claim took longer than a statement may, was undone, and so was each after it.
--
-- Programs of earlier versions go on beside this one, and end all at once.

-- Makes jobs ready whose time has come, the longest due first; whether more may be due. One call at a time. A job whose earliest start has passed
-- takes its turn; one that comes back has it.
CREATE FUNCTION deploycore.end_delays_1(now_is bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    setting record;
    due uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock(x'6465706c6f790063'::bigint);
    SELECT fair_share, first_turn INTO STRICT setting FROM deploycore.queue_settings WHERE one = 1;
    due := ARRAY(
        SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is
        ORDER BY eligible_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    );
    UPDATE deploycore.jobs j SET delayed = false, ready_xid = pg_current_xact_id()::text::bigint, turn = w.turn
    FROM (
        SELECT d.id, CASE WHEN d.epoch > 0 OR NOT setting.fair_share THEN d.turn
                          ELSE deploycore.last_turn_1(d.name, d.priority, setting.first_turn)
                               + row_number() OVER (PARTITION BY d.name, d.priority, d.epoch > 0
                                                    ORDER BY d.eligible_at, d.created_at, d.id) END AS turn
        FROM deploycore.jobs d WHERE d.id = ANY (due)
    ) w
    WHERE j.id = w.id;
    RETURN cardinality(due) = 1000;
END
$$;

-- Takes ready jobs, with a concurrency key or without.
CREATE FUNCTION deploycore.take_1(the_claim uuid, the_worker text, the_limit bigint)
RETURNS SETOF deploycore.jobs LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    -- One at a time: who ends delays, and who takes jobs with a concurrency key. ('deploy' and 'c' in ASCII.)
    turns CONSTANT bigint := x'6465706c6f790063'::bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL) THEN
        RETURN QUERY
            WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
            picked AS MATERIALIZED (
                SELECT id FROM deploycore.jobs
                WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL
                ORDER BY priority DESC, turn, created_at, id LIMIT the_limit FOR UPDATE SKIP LOCKED
            )
            UPDATE deploycore.jobs j SET
                status = 'RUNNING', epoch = j.epoch + 1, attempts = j.attempts + 1, claim_id = the_claim,
                worker = the_worker, claimed_at = clock.now, last_heartbeat = clock.now,
                deadline = clock.now + j.build_timeout
            FROM clock
            WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND coalesce(j.status = 'QUEUED' AND NOT j.delayed, false)
            RETURNING j.*;
        RETURN;
    END IF;

    -- Steps through the distinct keys that wait by index seeks, and looks at as many jobs of each key as it has room for: what waits
    -- behind a full key is never walked over. An end of an attempt takes no lock here: it only makes room.
    -- The clock is read in the statement: what it sees ended before that instant.
    PERFORM pg_advisory_xact_lock(turns);
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
            SELECT k.id, k.priority, k.turn, k.created_at FROM deploycore.jobs k
            WHERE k.status = 'QUEUED' AND NOT k.delayed AND k.concurrency_key IS NULL
            ORDER BY k.priority DESC, k.turn, k.created_at, k.id LIMIT the_limit FOR UPDATE SKIP LOCKED
        ),
        keyed AS MATERIALIZED (
            SELECT k.id, k.priority, k.turn, k.created_at FROM counted CROSS JOIN LATERAL (
                SELECT h.id, h.priority, h.turn, h.created_at FROM deploycore.jobs h
                WHERE h.status = 'QUEUED' AND NOT h.delayed AND h.concurrency_key = counted.name
                ORDER BY h.priority DESC, h.turn, h.created_at, h.id LIMIT least(counted.room, the_limit)
            ) k
            WHERE counted.room > 0
        ),
        first AS MATERIALIZED (
            SELECT c.id FROM (SELECT * FROM keyless UNION ALL SELECT * FROM keyed) c
            ORDER BY c.priority DESC, c.turn, c.created_at, c.id LIMIT the_limit
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
        RETURNING j.*;
END
$$;

-- Hands out jobs in any case. All delays that are due end before: the most urgent job may have become due last. Where more are due than end in one
-- transaction, it gives no job but says so, and shall be called again; unless they may wait, which is for a caller that has come often.
CREATE FUNCTION deploycore.claim_5(the_claim uuid, the_worker text, the_limit bigint, may_wait boolean)
RETURNS TABLE (are_more_due boolean, is_new boolean, job deploycore.jobs) LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    now_is bigint;
    are_more boolean;
BEGIN
    -- A repeated call waits until the first has ended, though the first caller is gone.
    PERFORM pg_advisory_xact_lock(hashtextextended(the_claim::text, x'6465706c6f790063'::bigint));
    IF EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND status = 'RUNNING')
        OR EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND build_ms IS NOT NULL)
        OR EXISTS (SELECT FROM deploycore.attempts WHERE claim_id = the_claim) THEN
        RETURN QUERY SELECT false, false, j FROM deploycore.jobs j WHERE j.claim_id = the_claim AND j.status = 'RUNNING';
        RETURN;
    END IF;
    IF (SELECT paused FROM deploycore.queue_settings WHERE one = 1) THEN
        RETURN;
    END IF;
    now_is := deploycore.instant();
    -- One condition after the other: of several in one the server asks the cheapest first.
    IF EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is) THEN
        are_more := deploycore.end_delays_1(now_is);
        IF are_more AND NOT may_wait THEN
            RETURN QUERY SELECT true, true, NULL::deploycore.jobs;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT false, true, t FROM deploycore.take_1(the_claim, the_worker, the_limit) t;
END
$$;
