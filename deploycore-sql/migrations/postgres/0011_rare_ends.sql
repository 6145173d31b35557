-- What failed or was cancelled of one service. By its name alone a list of it walks over all that ever succeeded.
--
-- Programs of earlier versions go on beside this one.

-- Only for who asks in these words, as before.
CREATE INDEX jobs_unsuccessful_name ON deploycore.jobs (name, status, created_at, id)
    WHERE coalesce(status IN ('FAILED', 'CANCELLED'), false);
