-- Keys of the service change with overlap.
--
-- A key is published before it signs, so that whoever has pinned the keys learns it in time.
ALTER TABLE service_keys ADD COLUMN waits BIGINT NOT NULL DEFAULT 0 CHECK (waits IN (0, 1));

-- One key signs at a time, and one waits to take its place.
DROP INDEX service_keys_current;
CREATE UNIQUE INDEX service_keys_current ON service_keys (purpose)
    WHERE retired_at IS NULL AND waits = 0;
CREATE UNIQUE INDEX service_keys_next ON service_keys (purpose) WHERE waits = 1;
