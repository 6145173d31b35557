-- Lists of the history by indexes of what waits and of what has ended. An index of all jobs gets an entry at each step of each job, though nothing
-- in it has changed; these get one when a job comes and one when it ends, and a claim writes to none of them. What runs is in none: it is as many
-- rows as builds run.
--
-- Programs of earlier versions go on beside this one, and list more slowly until they are replaced.

-- Only for who asks in these words, as before.
CREATE INDEX jobs_queued_created ON deploycore.jobs (created_at, id) WHERE coalesce(status = 'QUEUED', false);
CREATE INDEX jobs_queued_commit ON deploycore.jobs ("commit") WHERE coalesce(status = 'QUEUED', false);
CREATE INDEX jobs_ended_created ON deploycore.jobs (created_at, id) WHERE coalesce(finished_at IS NOT NULL, false);
CREATE INDEX jobs_ended_name ON deploycore.jobs (name, created_at, id) WHERE coalesce(finished_at IS NOT NULL, false);
CREATE INDEX jobs_ended_commit ON deploycore.jobs ("commit", created_at, id) WHERE coalesce(finished_at IS NOT NULL, false);

DROP INDEX deploycore.jobs_created, deploycore.jobs_name, deploycore.jobs_commit;
