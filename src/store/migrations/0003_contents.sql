-- Where each content of a bundle lies: a compressed frame in a segment.
CREATE TABLE contents (
    digest TEXT NOT NULL PRIMARY KEY,
    segment BIGINT NOT NULL,
    place BIGINT NOT NULL,
    frame_bytes BIGINT NOT NULL,
    size BIGINT NOT NULL
);
