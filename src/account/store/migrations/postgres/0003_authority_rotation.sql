-- The key of the issuing authority changes with overlap.
--
-- Until now there was one, so whatever was issued or listed is its work.
ALTER TABLE certificates ADD COLUMN issuer TEXT REFERENCES service_keys (fingerprint);
UPDATE certificates SET issuer = (SELECT fingerprint FROM service_keys
                                  WHERE purpose = 'issuing' AND retired_at IS NULL AND waits = 0);
-- What a list is made of, in its order and without a look at the certificates themselves: however many
-- there are, a list costs what is on it.
DROP INDEX certificates_revoked;
CREATE INDEX certificates_revoked ON certificates (serial, not_after, revoked_at, revocation_reason)
    WHERE revoked_at IS NOT NULL;
CREATE INDEX certificates_by_issuer ON certificates (issuer, not_after) WHERE revoked_at IS NULL;
ALTER TABLE crls ADD COLUMN issuer TEXT REFERENCES service_keys (fingerprint);
UPDATE crls SET issuer = (SELECT fingerprint FROM service_keys
                          WHERE purpose = 'issuing' AND retired_at IS NULL AND waits = 0);
CREATE INDEX crls_by_issuer ON crls (issuer, number);
ALTER TABLE certificates ALTER COLUMN issuer SET NOT NULL;
ALTER TABLE crls ALTER COLUMN issuer SET NOT NULL;

-- What one key of the authority says of another (RFC 4210 section 4.4): both have its name.
CREATE TABLE link_certificates (
    -- The key that is certified, and the one that certifies it.
    subject     TEXT   NOT NULL REFERENCES service_keys (fingerprint),
    issuer      TEXT   NOT NULL REFERENCES service_keys (fingerprint),
    -- The certificate.
    certificate BYTEA   NOT NULL,
    PRIMARY KEY (subject, issuer)
);
