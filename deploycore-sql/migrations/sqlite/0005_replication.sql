-- Which copies go first, and how long they took.

-- As it was registered; 0 goes first.
ALTER TABLE artifacts ADD COLUMN precedence INTEGER NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);

-- As it is now.
ALTER TABLE copies ADD COLUMN precedence INTEGER NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);
-- When it was reopened last; a copy that never was is pending since it was registered.
ALTER TABLE copies ADD COLUMN reopened_at INTEGER;

DROP INDEX copies_pending;
CREATE INDEX copies_pending ON copies (region, precedence, registered_at, artifact, eligible_at, leased_until)
    WHERE state = 'pending';
CREATE INDEX copies_completed ON copies (region, completed_at) WHERE completed_at IS NOT NULL;
