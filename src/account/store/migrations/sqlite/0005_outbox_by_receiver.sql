-- What is due is looked for by receiver, so that the backlog of one is in the way of no other.
DROP INDEX outbox_due;
CREATE INDEX outbox_by_receiver ON outbox (COALESCE(subscription, ''), next_attempt_at)
    WHERE delivered_at IS NULL AND abandoned_at IS NULL;
