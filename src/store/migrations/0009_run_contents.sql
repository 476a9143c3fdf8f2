-- What a module was answered and what is too large for its entry in the journal: compressed with zstd, then as base64.
CREATE TABLE run_contents (
    run_id TEXT NOT NULL REFERENCES runs (id),
    sha256 TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    packed TEXT NOT NULL,
    PRIMARY KEY (run_id, sha256)
);

-- So that they can be summed up without being read.
CREATE INDEX run_contents_bytes ON run_contents (run_id, bytes);
