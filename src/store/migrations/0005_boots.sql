-- What each boot was sent: the first run of a label that succeeded since the agent's program was started. It outlives the run and the agent.
CREATE TABLE boots (
    label TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    image TEXT,
    bytes_sent BIGINT NOT NULL,
    sync_us BIGINT NOT NULL,
    PRIMARY KEY (label, at_us, run_id)
);

-- Which labels succeeded since which start of the agent's program.
ALTER TABLE agents ADD COLUMN booted TEXT;
