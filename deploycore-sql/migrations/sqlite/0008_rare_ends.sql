-- What failed or was cancelled of one service. By its name alone a list of it walks over all that ever succeeded.

CREATE INDEX jobs_rare_end_name ON jobs (name, status, created_at, id) WHERE finished_at IS NOT NULL AND status <> 'SUCCEEDED';
