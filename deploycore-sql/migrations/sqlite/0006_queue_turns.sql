-- Turns: the order of claims among the jobs of one priority. Where services take turns a job gets its turn when it becomes ready; else all have the
-- same one, and age decides. See `port::queue::turn`.
--
-- Programs of earlier versions go on beside this one. They claim by age, and sort what is ready for it; what they enqueue has turn 0.

ALTER TABLE jobs ADD COLUMN turn INTEGER NOT NULL DEFAULT 0 CHECK (turn >= 0);

-- No job that was enqueued under the present order has an earlier turn than the first.
ALTER TABLE queue_settings ADD COLUMN fair_share INTEGER NOT NULL DEFAULT 0 CHECK (fair_share IN (0, 1));
ALTER TABLE queue_settings ADD COLUMN first_turn INTEGER NOT NULL DEFAULT 0 CHECK (first_turn >= 0);

DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs (priority DESC, turn, created_at, id)
    WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NULL;
DROP INDEX jobs_ready_keyed;
CREATE INDEX jobs_ready_keyed ON jobs (concurrency_key, priority DESC, turn, created_at, id)
    WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NOT NULL;
-- What is queued of a service, and its last turn.
DROP INDEX jobs_queued_name;
CREATE INDEX jobs_queued_name ON jobs (name, priority, turn) WHERE status = 'QUEUED';
-- The last turn that was claimed. It has no rows while all turns are 0.
CREATE INDEX jobs_claimed_turn ON jobs (priority, turn) WHERE turn > 0 AND epoch > 0;
