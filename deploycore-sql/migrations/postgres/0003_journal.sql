-- Uploads under way to regions' stores: at most one a copy, with the parts that the store has taken.

CREATE TABLE deploycore.copy_uploads (
    artifact  text   COLLATE "C" NOT NULL,
    region    text   COLLATE "C" NOT NULL,
    upload    text   COLLATE "C" NOT NULL,
    part_size bigint NOT NULL CHECK (part_size > 0),
    PRIMARY KEY (artifact, region),
    FOREIGN KEY (artifact, region) REFERENCES deploycore.copies (artifact, region) ON DELETE CASCADE
);

CREATE TABLE deploycore.copy_parts (
    artifact text    COLLATE "C" NOT NULL,
    region   text    COLLATE "C" NOT NULL,
    part     integer NOT NULL CHECK (part >= 0),
    tag      text    COLLATE "C" NOT NULL,
    PRIMARY KEY (artifact, region, part),
    FOREIGN KEY (artifact, region) REFERENCES deploycore.copy_uploads (artifact, region) ON DELETE CASCADE
);
