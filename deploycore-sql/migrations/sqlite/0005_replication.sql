-- Which copies go first, and how long they took.

-- As it was registered; 0 goes first.
ALTER TABLE artifacts ADD COLUMN precedence INTEGER NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);

-- As it is now.
ALTER TABLE copies ADD COLUMN precedence INTEGER NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);
-- When it was registered or reopened last; where an earlier version has written the row, when it was registered.
ALTER TABLE copies ADD COLUMN pending_since INTEGER;

DROP INDEX copies_pending;
CREATE INDEX copies_pending ON copies (region, precedence, registered_at, artifact, eligible_at, leased_until)
    WHERE state = 'pending';
CREATE INDEX copies_completed ON copies (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX copies_unfinished ON copies (state, region) WHERE state IN ('pending', 'failed');
