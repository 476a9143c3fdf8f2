-- The CRC-32 of a content's frame, so that damage is seen without decompressing it; none of what was stored before.
ALTER TABLE contents ADD COLUMN crc BIGINT;
