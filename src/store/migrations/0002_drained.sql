-- Why a person drained an agent, if one did.
ALTER TABLE agents ADD COLUMN drained TEXT;
