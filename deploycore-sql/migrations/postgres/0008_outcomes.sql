-- A job that succeeds is one write: the attempt that did it stands in the row of its job, as it does while it runs, and `attempts` has those that
-- were followed by another or ended the job otherwise.
--
-- Programs of earlier versions go on beside this one. Each ends the attempts that it claimed, and knows of those; of one that succeeded under
-- this version it shows no entry in the history of the job.

-- Of the attempt that succeeded, beside the artifact: whether its log was kept, and where the time went in milliseconds. They are there for what
-- succeeded since this version: a repeated call is known by them.
ALTER TABLE deploycore.jobs
    ADD COLUMN has_log  boolean,
    ADD COLUMN build_ms bigint,
    ADD COLUMN store_ms bigint;

-- Whether a claim was answered before, of jobs that succeeded since.
CREATE INDEX jobs_succeeded ON deploycore.jobs (claim_id) WHERE build_ms IS NOT NULL;

-- Each claim of a job, and how it ended if it has.
CREATE VIEW deploycore.all_attempts AS
    SELECT job, epoch, claim_id, worker, claimed_at, ended_at, outcome FROM deploycore.attempts
    UNION ALL
    SELECT id, epoch, claim_id, worker, claimed_at, finished_at,
           CASE WHEN build_ms IS NOT NULL THEN json_build_object(
               'kind', 'completed',
               'completion', json_build_object(
                   'kind', 'succeeded',
                   'artifact', json_build_object('name', artifact, 'digest', digest, 'size', size),
                   'log', CASE WHEN has_log THEN json_build_object('job', id, 'epoch', epoch) END,
                   'timings', json_build_object('build_ms', build_ms, 'store_ms', store_ms)))::text END
    FROM deploycore.jobs
    WHERE status = 'RUNNING' OR build_ms IS NOT NULL;

-- Only for who asks in these words: the server shall neither take this index for a way to all that is ready, nor the order of claims for a way to
-- what became ready lately.
DROP INDEX deploycore.jobs_ready_since;
CREATE INDEX jobs_ready_since ON deploycore.jobs (ready_xid)
    WHERE coalesce(status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL, false);

-- As `is_plain_claim_1`, which programs of earlier versions go on to call.
CREATE FUNCTION deploycore.is_plain_claim_2(the_claim uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE AS
$$
DECLARE
    now_is CONSTANT bigint := deploycore.instant();
BEGIN
    -- As in `claim_3`.
    IF NOT pg_try_advisory_xact_lock(hashtextextended(the_claim::text, x'6465706c6f790063'::bigint)) THEN
        RETURN false;
    END IF;
    RETURN NOT (
        EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND status = 'RUNNING')
        OR EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND build_ms IS NOT NULL)
        OR EXISTS (SELECT FROM deploycore.attempts WHERE claim_id = the_claim)
        OR (SELECT paused FROM deploycore.queue_settings WHERE one = 1)
        OR EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed AND eligible_at <= now_is)
        OR EXISTS (SELECT FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL)
    );
END
$$;

-- Hands out jobs in any case: `claim_3`, which programs of earlier versions go on to call, knowing the claims of what succeeded too.
CREATE FUNCTION deploycore.claim_4(the_claim uuid, the_worker text, the_limit bigint)
RETURNS TABLE (is_new boolean, job deploycore.jobs) LANGUAGE plpgsql VOLATILE AS
$$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(the_claim::text, x'6465706c6f790063'::bigint));
    IF EXISTS (SELECT FROM deploycore.jobs WHERE claim_id = the_claim AND build_ms IS NOT NULL) THEN
        RETURN QUERY SELECT false, j FROM deploycore.jobs j WHERE j.claim_id = the_claim AND j.status = 'RUNNING';
    ELSE
        RETURN QUERY SELECT * FROM deploycore.claim_3(the_claim, the_worker, the_limit);
    END IF;
END
$$;
