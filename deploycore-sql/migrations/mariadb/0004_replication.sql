-- The journal of uploads, which copies go first, and how long they took.

-- At most one upload a copy, with the parts that the store has taken.
CREATE TABLE IF NOT EXISTS deploycore_copy_uploads (
    artifact  VARCHAR(128) NOT NULL,
    region    VARCHAR(63)  NOT NULL,
    upload    TEXT         NOT NULL,
    part_size BIGINT       NOT NULL CHECK (part_size > 0),
    PRIMARY KEY (artifact, region),
    FOREIGN KEY (artifact, region) REFERENCES deploycore_copies (artifact, region) ON DELETE CASCADE
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS deploycore_copy_parts (
    artifact VARCHAR(128) NOT NULL,
    region   VARCHAR(63)  NOT NULL,
    part     BIGINT       NOT NULL CHECK (part >= 0),
    tag      TEXT         NOT NULL,
    PRIMARY KEY (artifact, region, part),
    FOREIGN KEY (artifact, region) REFERENCES deploycore_copy_uploads (artifact, region) ON DELETE CASCADE
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Each table is altered in one statement, unless that was done before; MySQL has no ADD COLUMN IF NOT EXISTS.
-- Of an artifact as it was registered, of a copy as it is now; 0 goes first. A copy that an earlier
-- version has written has no pending_since: it is pending since it was registered.
SET @deploycore = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_artifacts' AND column_name = 'precedence'),
    'DO 0',
    'ALTER TABLE deploycore_artifacts ADD COLUMN precedence BIGINT NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2)');
PREPARE deploycore FROM @deploycore;
EXECUTE deploycore;
DEALLOCATE PREPARE deploycore;

SET @deploycore = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'deploycore_copies' AND column_name = 'precedence'),
    'DO 0',
    'ALTER TABLE deploycore_copies
         ADD COLUMN precedence BIGINT NOT NULL DEFAULT 2 CHECK (precedence BETWEEN 0 AND 2),
         ADD COLUMN pending_since BIGINT,
         ADD INDEX copies_turns (region, state, precedence, registered_at, artifact),
         ADD INDEX copies_completed (completed_at),
         ADD INDEX copies_unfinished (state, region)');
PREPARE deploycore FROM @deploycore;
EXECUTE deploycore;
DEALLOCATE PREPARE deploycore;
