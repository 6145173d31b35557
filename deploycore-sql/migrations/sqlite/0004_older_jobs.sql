-- Jobs that take the place of what is queued of their service.

ALTER TABLE jobs ADD COLUMN cancels_older INTEGER NOT NULL DEFAULT 0 CHECK (cancels_older IN (0, 1));
CREATE INDEX jobs_queued_name ON jobs (name) WHERE status = 'QUEUED';
