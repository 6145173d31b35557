-- Turns: the order of claims among the jobs of one priority. Where services take turns a job gets its turn when it becomes ready; else all have the
-- same one, and age decides. See `port::queue::turn`.
--
-- Programs of earlier versions go on beside this one. They claim by age, and sort what is ready for it; what they enqueue has turn 0.

ALTER TABLE deploycore.jobs ADD COLUMN turn bigint NOT NULL DEFAULT 0 CHECK (turn >= 0);

-- No job that was enqueued under the present order has an earlier turn than the first.
ALTER TABLE deploycore.queue_settings
    ADD COLUMN fair_share boolean NOT NULL DEFAULT false,
    ADD COLUMN first_turn bigint NOT NULL DEFAULT 0 CHECK (first_turn >= 0);

DROP INDEX deploycore.jobs_ready, deploycore.jobs_ready_keyed, deploycore.jobs_queued_name;
CREATE INDEX jobs_ready ON deploycore.jobs (priority DESC, turn, created_at, id)
    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL;
CREATE INDEX jobs_ready_keyed ON deploycore.jobs (concurrency_key, priority DESC, turn, created_at, id)
    WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL;
-- What is queued of a service, and its last turn. Only for who asks in these words, as before.
CREATE INDEX jobs_queued_name ON deploycore.jobs (name, priority, turn) WHERE coalesce(status = 'QUEUED', false);
-- The last turn that was claimed. It has no rows while all turns are 0.
CREATE INDEX jobs_claimed_turn ON deploycore.jobs (priority, turn) WHERE turn > 0 AND epoch > 0;

-- After which turn the next job of a service stands: `Turns::last_in`, less one. What was claimed left dead entries before the last turn that was
-- claimed only, so the look at what is queued begins behind that. In this language, which keeps its plans from call to call.
CREATE FUNCTION deploycore.last_turn_1(the_name text, the_priority bigint, first_turn bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS
$$
DECLARE
    claimed CONSTANT bigint := greatest(first_turn, (SELECT c.turn FROM deploycore.jobs c
                                                     WHERE c.priority = the_priority AND c.turn > 0 AND c.epoch > 0
                                                     ORDER BY c.turn DESC LIMIT 1));
BEGIN
    RETURN coalesce((SELECT q.turn FROM deploycore.jobs q
                     WHERE coalesce(q.status = 'QUEUED', false) AND q.name = the_name AND q.priority = the_priority AND q.turn > claimed
                     ORDER BY q.turn DESC LIMIT 1), claimed);
END
$$;

-- The turns of jobs that are enqueued where services take turns, in the order of the jobs. One that is not added, because its id or its dedup key is
-- taken, leaves no gap. One that cancels others is enqueued alone. What has an earliest start gets its turn when that has passed.
CREATE FUNCTION deploycore.new_turns_1(now_is bigint, first_turn bigint, ids uuid[], names text[], priorities bigint[], starts bigint[],
                                       dedup_keys text[], cancel_older boolean[])
RETURNS bigint[] LANGUAGE plpgsql STABLE AS
$$
BEGIN
    IF cardinality(ids) = 1 THEN
        RETURN ARRAY[CASE
            WHEN coalesce(starts[1] > now_is, false) THEN first_turn
            WHEN cancel_older[1] THEN coalesce(
                (SELECT q.turn FROM deploycore.jobs q
                 WHERE coalesce(q.status = 'QUEUED', false) AND q.name = names[1] AND q.priority = priorities[1] AND NOT q.delayed
                 ORDER BY q.turn LIMIT 1), deploycore.last_turn_1(names[1], priorities[1], first_turn) + 1)
            ELSE deploycore.last_turn_1(names[1], priorities[1], first_turn) + 1
        END];
    END IF;
    RETURN ARRAY(
        WITH n AS MATERIALIZED (
            SELECT u.*, coalesce(u.start > now_is, false) AS is_delayed,
                   NOT EXISTS (SELECT FROM deploycore.jobs k WHERE k.id = u.id)
                   AND (u.dedup_key IS NULL
                        OR NOT EXISTS (SELECT FROM deploycore.jobs h WHERE h.dedup_key = u.dedup_key AND h.finished_at IS NULL)) AS is_free
            FROM unnest(ids, names, priorities, starts, dedup_keys) WITH ORDINALITY AS u (id, name, priority, start, dedup_key, place)
        ),
        added AS MATERIALIZED (
            SELECT n.*, n.is_free AND NOT n.is_delayed
                        AND (n.dedup_key IS NULL OR row_number() OVER (PARTITION BY n.dedup_key, n.is_free ORDER BY n.place) = 1) AS has_turn
            FROM n
        ),
        line AS MATERIALIZED (
            SELECT l.name, l.priority, deploycore.last_turn_1(l.name, l.priority, first_turn) AS last
            FROM (SELECT DISTINCT name, priority FROM added WHERE has_turn) l
        )
        SELECT CASE WHEN a.has_turn
                    THEN line.last + count(*) FILTER (WHERE a.has_turn) OVER (PARTITION BY a.name, a.priority ORDER BY a.place)
                    ELSE first_turn END
        FROM added a LEFT JOIN line ON line.name = a.name AND line.priority = a.priority
        ORDER BY a.place
    );
END
$$;

-- Hands out jobs in any case: `claim_2`, which programs of earlier versions go on to call, in the order of turns.
CREATE FUNCTION deploycore.claim_3(the_claim uuid, the_worker text, the_limit bigint)
RETURNS TABLE (is_new boolean, job deploycore.jobs) LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    -- One at a time: who ends delays, and who takes jobs with a concurrency key. ('deploy' and 'c' in ASCII.)
    turns CONSTANT bigint := x'6465706c6f790063'::bigint;
    now_is bigint;
    setting record;
    due uuid[];
BEGIN
    -- A repeated call waits until the first has ended, though the first caller is gone.
    PERFORM pg_advisory_xact_lock(hashtextextended(the_claim::text, turns));
    IF EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND status = 'RUNNING')
        OR EXISTS (SELECT FROM deploycore.attempts WHERE claim_id = the_claim) THEN
        RETURN QUERY SELECT false, j FROM deploycore.jobs j WHERE j.claim_id = the_claim AND j.status = 'RUNNING';
        RETURN;
    END IF;
    IF (SELECT paused FROM deploycore.queue_settings WHERE one = 1) THEN
        RETURN;
    END IF;

    -- Each job passes here at most once a delay, so the price is one look at an index. All that are due pass: the most urgent one may have
    -- become due last. In steps, for which one plan does. A job whose earliest start has passed takes its turn; one that comes back has it.
    now_is := deploycore.instant();
    IF EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is) THEN
        PERFORM pg_advisory_xact_lock(turns);
        SELECT fair_share, first_turn INTO STRICT setting FROM deploycore.queue_settings WHERE one = 1;
        LOOP
            due := ARRAY(
                SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is
                ORDER BY eligible_at LIMIT 1000 FOR UPDATE SKIP LOCKED
            );
            EXIT WHEN cardinality(due) = 0;
            UPDATE deploycore.jobs j SET delayed = false, ready_xid = pg_current_xact_id()::text::bigint, turn = w.turn
            FROM (
                SELECT d.id, CASE WHEN d.epoch > 0 OR NOT setting.fair_share THEN d.turn
                                  ELSE deploycore.last_turn_1(d.name, d.priority, setting.first_turn)
                                       + row_number() OVER (PARTITION BY d.name, d.priority, d.epoch > 0
                                                            ORDER BY d.eligible_at, d.created_at, d.id) END AS turn
                FROM deploycore.jobs d WHERE d.id = ANY (due)
            ) w
            WHERE j.id = w.id;
        END LOOP;
    END IF;

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
            RETURNING true, j;
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
        RETURNING true, j;
END
$$;
