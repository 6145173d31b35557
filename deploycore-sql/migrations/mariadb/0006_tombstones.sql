-- Which artifacts are collected.

-- Altered in one statement, unless that was done before; MySQL has no ADD COLUMN IF NOT EXISTS. An artifact is deleted once no store has the
-- bytes for its sake; then it has no copies.
SET @deploycore = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_artifacts' AND column_name = 'last_pinned_at'),
    'DO 0',
    'ALTER TABLE deploycore_artifacts
         ADD COLUMN last_pinned_at BIGINT,
         ADD COLUMN deleted_at BIGINT,
         ADD COLUMN deleted_because MEDIUMTEXT,
         ADD INDEX artifacts_digest (digest)');
PREPARE deploycore FROM @deploycore;
EXECUTE deploycore;
DEALLOCATE PREPARE deploycore;

-- Of the artifacts with a digest that are not deleted.
CREATE TABLE IF NOT EXISTS deploycore_tombstones (
    digest VARCHAR(64) NOT NULL PRIMARY KEY,
    stage  VARCHAR(8)  NOT NULL CHECK (stage IN ('marked', 'deleting')),
    reason MEDIUMTEXT  NOT NULL,
    since  BIGINT      NOT NULL,
    INDEX tombstones_since (since, digest)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
