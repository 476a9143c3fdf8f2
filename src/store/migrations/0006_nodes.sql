-- The nodes that agents have at controllers. A row is there before its node is asked for, and until the node is known to be gone. It outlives
-- its agent, so it refers to none.
CREATE TABLE nodes (
    controller TEXT NOT NULL,
    name TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    label TEXT NOT NULL,
    plan TEXT NOT NULL,
    began_us BIGINT NOT NULL,
    -- Since when it is known to be there; before, it may be somebody else's.
    made_us BIGINT,
    -- Since when it is to go, although its agent stays.
    leaving_us BIGINT,
    PRIMARY KEY (controller, name),
    UNIQUE (controller, agent_id)
);
