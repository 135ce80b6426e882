-- The first schema of the account service.
--
-- Conventions: times are Unix milliseconds (BIGINT); identifiers are TEXT; hashes and serial
-- numbers are lower-case hexadecimal TEXT; DER and MACs are BLOB. A NULL time means "not yet".
-- Single use is a NULL that one conditional UPDATE fills: whoever changes the row has won.

-- A merchant account.
CREATE TABLE accounts (
    -- Chosen at creation; appears in certificates and statements.
    id          TEXT   NOT NULL PRIMARY KEY,
    -- What people call it.
    name        TEXT   NOT NULL,
    -- When it was created.
    created_at  BIGINT NOT NULL,
    -- Certificates ever issued. Every issue changes this row first, so that two issues for one
    -- account never count its quota side by side.
    issued      BIGINT NOT NULL DEFAULT 0 CHECK (issued >= 0)
);

-- A person with a login in an account.
CREATE TABLE operators (
    -- The account.
    account       TEXT   NOT NULL REFERENCES accounts (id),
    -- Chosen at creation; unique in its account.
    id            TEXT   NOT NULL,
    -- What the operator may do besides approving.
    role          TEXT   NOT NULL CHECK (role IN ('super-administrator', 'administrator', 'operator')),
    -- The mobile number codes go to, E.164 ("+8613800000001").
    mobile        TEXT   NOT NULL,
    -- Argon2id in PHC string format.
    password_hash TEXT   NOT NULL,
    -- When it was created.
    created_at    BIGINT NOT NULL,
    -- When the login was closed.
    disabled_at   BIGINT,
    PRIMARY KEY (account, id)
);

-- An installed daemon, known from its first enrolment on.
CREATE TABLE computers (
    -- The account it belongs to.
    account    TEXT   NOT NULL REFERENCES accounts (id),
    -- The daemon's own identifier.
    id         TEXT   NOT NULL,
    -- The name the operator gave it at the latest enrolment.
    name       TEXT   NOT NULL,
    -- When its first certificate was issued.
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account, id)
);

-- A mobile number that codes were sent to. Sending changes this row first, so that two requests
-- for one number never count its limits side by side.
CREATE TABLE mobiles (
    -- E.164.
    mobile TEXT   NOT NULL PRIMARY KEY,
    -- Codes ever sent to it.
    sent   BIGINT NOT NULL CHECK (sent >= 0)
);

-- An SMS code, kept as a keyed hash.
CREATE TABLE sms_codes (
    -- Random; named in the answer and when the code is handed in.
    id            TEXT   NOT NULL PRIMARY KEY,
    -- Who asked.
    account       TEXT   NOT NULL,
    operator      TEXT   NOT NULL,
    -- What the code is good for.
    purpose       TEXT   NOT NULL CHECK (purpose IN ('install')),
    -- The computer it is good for.
    computer      TEXT   NOT NULL,
    computer_name TEXT   NOT NULL,
    -- Where it was sent, E.164.
    mobile        TEXT   NOT NULL REFERENCES mobiles (mobile),
    -- HMAC-SHA-256 over id and code with the key in the state directory.
    mac           BLOB   NOT NULL,
    -- When it was sent.
    created_at    BIGINT NOT NULL,
    -- When it stops working.
    expires_at    BIGINT NOT NULL,
    -- Wrong tries still allowed.
    tries_left    BIGINT NOT NULL CHECK (tries_left >= 0),
    -- When it was used.
    spent_at      BIGINT,
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX sms_codes_by_mobile ON sms_codes (mobile, created_at);

-- An enrolment ticket. The ticket itself is a signed token and is not kept.
CREATE TABLE tickets (
    -- The token's jti.
    jti           TEXT   NOT NULL PRIMARY KEY,
    -- The code it was given for: one ticket for one code.
    code          TEXT   NOT NULL UNIQUE REFERENCES sms_codes (id),
    -- Who may enrol, and where.
    account       TEXT   NOT NULL,
    operator      TEXT   NOT NULL,
    computer      TEXT   NOT NULL,
    computer_name TEXT   NOT NULL,
    -- When it was given.
    created_at    BIGINT NOT NULL,
    -- When it stops working.
    expires_at    BIGINT NOT NULL,
    -- When a certificate was issued for it.
    spent_at      BIGINT,
    -- SHA-256 of the request (DER) it was spent on; the same request is answered again.
    request_hash  TEXT,
    CHECK ((spent_at IS NULL) = (request_hash IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);

-- An operating certificate.
CREATE TABLE certificates (
    -- Serial number, hexadecimal.
    serial            TEXT   NOT NULL PRIMARY KEY,
    -- Whose it is, and where its key lives.
    account           TEXT   NOT NULL,
    operator          TEXT   NOT NULL,
    computer          TEXT   NOT NULL,
    -- The ticket it was issued for: one certificate for one ticket.
    ticket            TEXT   NOT NULL UNIQUE REFERENCES tickets (jti),
    -- SHA-256 of the SubjectPublicKeyInfo: no key is certified twice.
    key_fingerprint   TEXT   NOT NULL UNIQUE,
    -- The certificate.
    der               BLOB   NOT NULL,
    -- Its validity, and when it was issued.
    not_before        BIGINT NOT NULL,
    not_after         BIGINT NOT NULL,
    issued_at         BIGINT NOT NULL,
    -- When an approval was last accepted from it.
    last_used_at      BIGINT,
    -- When and why (RFC 5280 section 5.3.1 by name) it was revoked.
    revoked_at        BIGINT,
    revocation_reason TEXT,
    CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id),
    FOREIGN KEY (account, computer) REFERENCES computers (account, id)
);
CREATE INDEX certificates_by_account ON certificates (account, not_after);
CREATE INDEX certificates_revoked ON certificates (revoked_at) WHERE revoked_at IS NOT NULL;

-- A certificate revocation list. Only the newest is served.
CREATE TABLE crls (
    -- CRL number (RFC 5280 section 5.2.3).
    number      BIGINT NOT NULL PRIMARY KEY,
    -- The list.
    der         BLOB   NOT NULL,
    -- How many certificates had ever been revoked when it was made: once there are more, the
    -- list is out of date, whatever the clocks say.
    revocations BIGINT NOT NULL,
    -- Its validity.
    this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL
);

-- A key of the service on a token.
CREATE TABLE service_keys (
    -- SHA-256 of the SubjectPublicKeyInfo; the kid of a challenge key.
    fingerprint TEXT   NOT NULL PRIMARY KEY,
    -- What it signs: certificates and CRLs, or challenges and tickets.
    purpose     TEXT   NOT NULL CHECK (purpose IN ('issuing', 'challenge')),
    -- Where it is: module, label and serial number of the token, and CKA_ID (hexadecimal).
    module      TEXT   NOT NULL,
    label       TEXT   NOT NULL,
    serial      TEXT   NOT NULL,
    key_id      TEXT   NOT NULL,
    -- SubjectPublicKeyInfo.
    spki        BLOB   NOT NULL,
    -- The certificate of an issuing key.
    certificate BLOB,
    -- When it was generated.
    created_at  BIGINT NOT NULL,
    -- When it stopped signing; its public half may still be needed.
    retired_at  BIGINT,
    CHECK ((purpose = 'issuing') = (certificate IS NOT NULL))
);
-- One key signs at a time.
CREATE UNIQUE INDEX service_keys_current ON service_keys (purpose) WHERE retired_at IS NULL;

-- A key of the platform's backend.
CREATE TABLE platform_keys (
    -- Given at creation.
    name       TEXT   NOT NULL PRIMARY KEY,
    -- SHA-256 of the key, which has 256 random bits and is not kept.
    key_hash   TEXT   NOT NULL UNIQUE,
    -- When it was created.
    created_at BIGINT NOT NULL,
    -- When it was withdrawn.
    revoked_at BIGINT
);

-- A sensitive operation.
CREATE TABLE operations (
    -- Random.
    id           TEXT   NOT NULL PRIMARY KEY,
    -- Whose, and who is to approve.
    account      TEXT   NOT NULL,
    operator     TEXT   NOT NULL,
    -- The statement, as JSON.
    statement    TEXT   NOT NULL,
    -- The page that may relay the challenge.
    origin       TEXT,
    -- Where it stands.
    state        TEXT   NOT NULL CHECK (state IN ('created', 'approved', 'cancelled', 'expired')),
    -- The platform key that created it.
    platform_key TEXT   NOT NULL REFERENCES platform_keys (name),
    -- When it was created.
    created_at   BIGINT NOT NULL,
    -- When it can no longer be approved.
    expires_at   BIGINT NOT NULL,
    -- When it left the state 'created'.
    closed_at    BIGINT,
    CHECK ((state = 'created') = (closed_at IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX operations_open ON operations (expires_at) WHERE state = 'created';

-- A challenge that was signed for an operation.
CREATE TABLE challenges (
    -- The token's jti.
    jti        TEXT   NOT NULL PRIMARY KEY,
    -- The operation, and the operator asked.
    operation  TEXT   NOT NULL REFERENCES operations (id),
    operator   TEXT   NOT NULL,
    -- The challenge, JWS compact.
    challenge  TEXT   NOT NULL,
    -- When it was signed, and when it stops working.
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX challenges_by_operation ON challenges (operation, created_at);

-- An approval that was accepted.
CREATE TABLE approvals (
    -- The operation, and who approved it: once each.
    operation   TEXT   NOT NULL REFERENCES operations (id),
    operator    TEXT   NOT NULL,
    -- The challenge it answers: each yields one approval.
    challenge   TEXT   NOT NULL UNIQUE REFERENCES challenges (jti),
    -- The certificate it was signed with.
    certificate TEXT   NOT NULL REFERENCES certificates (serial),
    -- The approval, JWS compact.
    approval    TEXT   NOT NULL,
    -- When it was accepted.
    accepted_at BIGINT NOT NULL,
    PRIMARY KEY (operation, operator)
);

-- The answer to a request that carried an Idempotency-Key.
CREATE TABLE idempotency (
    -- Whose key it is, and the key.
    platform_key TEXT   NOT NULL REFERENCES platform_keys (name),
    key          TEXT   NOT NULL,
    -- SHA-256 of method, path and body.
    request_hash TEXT   NOT NULL,
    -- The answer.
    status       BIGINT NOT NULL,
    body         TEXT   NOT NULL,
    -- When it was given.
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (platform_key, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- Notices to the platform, written with the change they tell of and delivered afterwards.
CREATE TABLE outbox (
    -- Random; the receiver's key against duplicates.
    id              TEXT   NOT NULL PRIMARY KEY,
    -- The operation it tells of.
    operation       TEXT   NOT NULL REFERENCES operations (id),
    -- The body, JSON, sent as it is.
    body            TEXT   NOT NULL,
    -- When it was written.
    created_at      BIGINT NOT NULL,
    -- Tries so far, and when the next is due.
    attempts        BIGINT NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL,
    -- When the receiver took it.
    delivered_at    BIGINT,
    -- When trying was given up.
    abandoned_at    BIGINT
);
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE delivered_at IS NULL AND abandoned_at IS NULL;
