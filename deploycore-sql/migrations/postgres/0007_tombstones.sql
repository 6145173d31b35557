-- Which artifacts are collected.

ALTER TABLE deploycore.artifacts
    ADD COLUMN last_pinned_at bigint,
    -- Once no store has the bytes for its sake; then it has no copies.
    ADD COLUMN deleted_at bigint,
    ADD COLUMN deleted_because text COLLATE "C";

CREATE INDEX artifacts_digest ON deploycore.artifacts (digest);

-- Of the artifacts with a digest that are not deleted.
CREATE TABLE deploycore.tombstones (
    digest text   COLLATE "C" NOT NULL PRIMARY KEY,
    stage  text   COLLATE "C" NOT NULL CHECK (stage IN ('marked', 'deleting')),
    reason text   COLLATE "C" NOT NULL,
    since  bigint NOT NULL
);

CREATE INDEX tombstones_since ON deploycore.tombstones (since, digest);
