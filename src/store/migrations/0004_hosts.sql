-- The keys of hosts that were trusted at their first use.
CREATE TABLE ssh_hosts (
    host TEXT NOT NULL PRIMARY KEY,
    key TEXT NOT NULL,
    since_us BIGINT NOT NULL
);
