-- Which artifacts are collected.

ALTER TABLE artifacts ADD COLUMN last_pinned_at INTEGER;
-- Once no store has the bytes for its sake; then it has no copies.
ALTER TABLE artifacts ADD COLUMN deleted_at INTEGER;
ALTER TABLE artifacts ADD COLUMN deleted_because TEXT;

CREATE INDEX artifacts_digest ON artifacts (digest);

-- Of the artifacts with a digest that are not deleted.
CREATE TABLE tombstones (
    digest TEXT    NOT NULL PRIMARY KEY,
    stage  TEXT    NOT NULL CHECK (stage IN ('marked', 'deleting')),
    reason TEXT    NOT NULL,
    since  INTEGER NOT NULL
) STRICT;

CREATE INDEX tombstones_since ON tombstones (since, digest);
