-- Turns: the order of claims among the jobs of one priority. Where services take turns a job gets its turn when it becomes ready; else all have the
-- same one, and age decides. See `port::queue::turn`. Each table in one statement, which has its effect as a whole or not at all, and is made only
-- where it was not made before.
--
-- Programs of earlier versions go on beside this one. They claim by age, and sort and lock what is ready for it; what they enqueue has turn 0.

SET @deploycore_statement = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_jobs' AND column_name = 'turn'),
    'DO 0',
    'ALTER TABLE deploycore_jobs
         ADD COLUMN turn BIGINT NOT NULL DEFAULT 0 CHECK (turn >= 0),
         ADD COLUMN claimed_turn BIGINT GENERATED ALWAYS AS (CASE WHEN turn > 0 AND epoch > 0 THEN turn END) STORED,
         DROP INDEX jobs_queue,
         ADD INDEX jobs_queue (status, is_delayed, concurrency_key, urgency, turn, created_at, id),
         DROP INDEX jobs_queued_name,
         ADD INDEX jobs_queued_name (queued_name, urgency, turn),
         ADD INDEX jobs_claimed_turn (urgency, claimed_turn)'
);
PREPARE deploycore_statement FROM @deploycore_statement;
EXECUTE deploycore_statement;
DEALLOCATE PREPARE deploycore_statement;

SET @deploycore_statement = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_queue_settings' AND column_name = 'fair_share'),
    'DO 0',
    'ALTER TABLE deploycore_queue_settings
         ADD COLUMN fair_share BOOLEAN NOT NULL DEFAULT FALSE,
         ADD COLUMN first_turn BIGINT NOT NULL DEFAULT 0 CHECK (first_turn >= 0)'
);
PREPARE deploycore_statement FROM @deploycore_statement;
EXECUTE deploycore_statement;
DEALLOCATE PREPARE deploycore_statement;
