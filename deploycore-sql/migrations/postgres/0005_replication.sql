-- Which copies go first, and how long they took.

-- As it was registered; 0 goes first.
ALTER TABLE deploycore.artifacts
    ADD COLUMN precedence bigint NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);

ALTER TABLE deploycore.copies
    -- As it is now.
    ADD COLUMN precedence bigint NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2),
    -- When it was reopened last; a copy that never was is pending since it was registered.
    ADD COLUMN reopened_at bigint;

DROP INDEX deploycore.copies_pending;
CREATE INDEX copies_pending ON deploycore.copies (region, precedence, registered_at, artifact) WHERE state = 'pending';
CREATE INDEX copies_completed ON deploycore.copies (region, completed_at) WHERE completed_at IS NOT NULL;
