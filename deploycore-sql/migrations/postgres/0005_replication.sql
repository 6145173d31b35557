-- Which copies go first, and how long they took.

-- As it was registered; 0 goes first.
ALTER TABLE deploycore.artifacts
    ADD COLUMN precedence bigint NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2);

ALTER TABLE deploycore.copies
    -- As it is now.
    ADD COLUMN precedence bigint NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2),
    -- When it was registered or reopened last; where an earlier version has written the row, when it was registered.
    ADD COLUMN pending_since bigint;

DROP INDEX deploycore.copies_pending;
CREATE INDEX copies_pending ON deploycore.copies (region, precedence, registered_at, artifact) WHERE state = 'pending';
CREATE INDEX copies_completed ON deploycore.copies (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX copies_unfinished ON deploycore.copies (state, region) WHERE state IN ('pending', 'failed');
