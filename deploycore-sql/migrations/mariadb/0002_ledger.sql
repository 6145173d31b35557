-- The ledger of copies. It joins with no table of the queue: the two may live in two databases.

CREATE TABLE IF NOT EXISTS deploycore_artifacts (
    name          VARCHAR(128) NOT NULL PRIMARY KEY,
    digest        VARCHAR(64)  NOT NULL,
    size          BIGINT       NOT NULL CHECK (size >= 0),
    service       VARCHAR(63)  NOT NULL,
    job           BINARY(16)   NOT NULL,
    registered_at BIGINT       NOT NULL,
    INDEX artifacts_registered (registered_at, name),
    INDEX artifacts_service (service, registered_at, name)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS deploycore_copies (
    artifact      VARCHAR(128) NOT NULL,
    region        VARCHAR(63)  NOT NULL,
    state         VARCHAR(8)   NOT NULL CHECK (state IN ('pending', 'complete', 'failed')),
    -- Of the artifact: the order of claims and lists.
    registered_at BIGINT       NOT NULL,
    -- Counts claims and reopenings; only grows.
    epoch         BIGINT       NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    attempts      BIGINT       NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    bytes         BIGINT       NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    eligible_at   BIGINT       NOT NULL,
    -- The newest claim; it stays when its attempt ends, so that a repeated call is known as one.
    claim_id      BINARY(16),
    -- While an attempt runs. In no index: a report of progress writes one row and nothing else.
    leased_until  BIGINT,
    updated_at    BIGINT       NOT NULL,
    completed_at  BIGINT,
    last_error    MEDIUMTEXT,
    PRIMARY KEY (artifact, region),
    INDEX copies_claim (claim_id, region),
    INDEX copies_state (region, state, registered_at, artifact),
    FOREIGN KEY (artifact) REFERENCES deploycore_artifacts (name) ON DELETE CASCADE,
    CHECK ((state = 'complete') = (completed_at IS NOT NULL)),
    CHECK (leased_until IS NULL OR (state = 'pending' AND claim_id IS NOT NULL))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS deploycore_pins (
    artifact VARCHAR(128) NOT NULL,
    holder   VARCHAR(200) NOT NULL,
    PRIMARY KEY (artifact, holder),
    FOREIGN KEY (artifact) REFERENCES deploycore_artifacts (name) ON DELETE CASCADE
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
