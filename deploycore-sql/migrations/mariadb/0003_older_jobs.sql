-- Jobs that take the place of what is queued of their service. In one statement, which has its effect as a whole or not at all, and is made only where
-- it was not made before.

SET @deploycore_statement = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_jobs' AND column_name = 'cancels_older'),
    'DO 0',
    'ALTER TABLE deploycore_jobs
         ADD COLUMN cancels_older BOOLEAN NOT NULL DEFAULT FALSE,
         ADD COLUMN queued_name VARCHAR(63) GENERATED ALWAYS AS (CASE WHEN status = ''QUEUED'' THEN name END) STORED,
         ADD INDEX jobs_queued_name (queued_name)'
);
PREPARE deploycore_statement FROM @deploycore_statement;
EXECUTE deploycore_statement;
DEALLOCATE PREPARE deploycore_statement;
