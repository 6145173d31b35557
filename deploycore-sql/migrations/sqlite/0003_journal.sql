-- Uploads under way to regions' stores: at most one a copy, with the parts that the store has taken.

CREATE TABLE copy_uploads (
    artifact  TEXT    NOT NULL,
    region    TEXT    NOT NULL,
    upload    TEXT    NOT NULL,
    part_size INTEGER NOT NULL CHECK (part_size > 0),
    PRIMARY KEY (artifact, region),
    FOREIGN KEY (artifact, region) REFERENCES copies (artifact, region) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE copy_parts (
    artifact TEXT    NOT NULL,
    region   TEXT    NOT NULL,
    part     INTEGER NOT NULL CHECK (part >= 0),
    tag      TEXT    NOT NULL,
    PRIMARY KEY (artifact, region, part),
    FOREIGN KEY (artifact, region) REFERENCES copy_uploads (artifact, region) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
