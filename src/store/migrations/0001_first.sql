-- One text for SQLite and PostgreSQL: TEXT, BIGINT and DOUBLE PRECISION only.
-- Times are microseconds since the Unix epoch, lists and maps are JSON, digests are hexadecimal.

CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    team TEXT,
    labels TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    made_us BIGINT NOT NULL,
    revoked_us BIGINT
);

CREATE TABLE agents (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    credential_hash TEXT NOT NULL,
    token_id TEXT NOT NULL,
    team TEXT,
    claims TEXT NOT NULL,
    labels TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_us BIGINT NOT NULL,
    retry_at_us BIGINT,
    attempt BIGINT NOT NULL,
    releases TEXT NOT NULL,
    instance TEXT,
    registration_key_hash TEXT,
    last_seen_us BIGINT NOT NULL,
    registered_us BIGINT NOT NULL
);

-- What makes a name belong to one agent, whoever asks first.
CREATE UNIQUE INDEX agents_living_name ON agents (name) WHERE state <> 'gone';
CREATE INDEX agents_name ON agents (name);
CREATE INDEX agents_gone ON agents (id, since_us) WHERE state = 'gone';

CREATE TABLE agent_events (
    agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT NOT NULL,
    PRIMARY KEY (agent_id, seq)
);

-- A name's team, and the place of its newest version.
CREATE TABLE module_names (
    name TEXT NOT NULL PRIMARY KEY,
    team TEXT NOT NULL,
    newest BIGINT NOT NULL
);

CREATE TABLE modules (
    name TEXT NOT NULL REFERENCES module_names (name),
    digest TEXT NOT NULL,
    place BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    world TEXT NOT NULL,
    imports TEXT NOT NULL,
    language TEXT,
    uploaded_us BIGINT NOT NULL,
    PRIMARY KEY (name, digest),
    UNIQUE (name, place)
);

CREATE TABLE bundle_names (
    name TEXT NOT NULL PRIMARY KEY,
    team TEXT NOT NULL,
    newest BIGINT NOT NULL
);

CREATE TABLE bundles (
    name TEXT NOT NULL REFERENCES bundle_names (name),
    version TEXT NOT NULL,
    place BIGINT NOT NULL,
    files BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    pushed_us BIGINT NOT NULL,
    PRIMARY KEY (name, version),
    UNIQUE (name, place)
);

-- The pointer that a swap moves.
CREATE TABLE labels (
    label TEXT NOT NULL PRIMARY KEY,
    release BIGINT NOT NULL
);

CREATE TABLE releases (
    label TEXT NOT NULL REFERENCES labels (label),
    release BIGINT NOT NULL,
    team TEXT NOT NULL,
    policy TEXT NOT NULL,
    module TEXT NOT NULL,
    how TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_us BIGINT NOT NULL,
    PRIMARY KEY (label, release)
);

CREATE TABLE runs (
    id TEXT NOT NULL PRIMARY KEY,
    agent_id TEXT NOT NULL REFERENCES agents (id),
    agent TEXT NOT NULL,
    label TEXT NOT NULL,
    release BIGINT NOT NULL,
    module TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT,
    began_us BIGINT NOT NULL,
    ended_us BIGINT,
    calls BIGINT NOT NULL,
    bytes_sent BIGINT NOT NULL,
    bytes_saved BIGINT NOT NULL,
    -- 1 until its log and its journal were cleared away.
    records BIGINT NOT NULL DEFAULT 1
);

CREATE INDEX runs_agent_id ON runs (agent_id, id);
CREATE INDEX runs_agent ON runs (agent, id);
CREATE INDEX runs_label ON runs (label, id);
CREATE INDEX runs_unfinished ON runs (id) WHERE ended_us IS NULL;
CREATE INDEX runs_with_records ON runs (ended_us) WHERE records = 1;

CREATE TABLE run_log (
    run_id TEXT NOT NULL REFERENCES runs (id),
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    level TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
);

CREATE TABLE run_journal (
    run_id TEXT NOT NULL REFERENCES runs (id),
    seq BIGINT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
);
