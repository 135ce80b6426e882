-- The first schema of the account service.
--
-- Conventions: times are Unix milliseconds (BIGINT); identifiers are TEXT; hashes and serial
-- numbers are lower-case hexadecimal TEXT; DER and MACs are bytes. A NULL time means "not yet".
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
    issued      BIGINT NOT NULL DEFAULT 0 CHECK (issued >= 0),
    -- Whether installations after the first need the signature of an administrator.
    later_installs TEXT NOT NULL DEFAULT 'free' CHECK (later_installs IN ('free', 'approval')),
    -- Administrators whose signatures together replace the business representative's decision;
    -- 0 where that route is closed.
    quorum      BIGINT NOT NULL DEFAULT 2 CHECK (quorum >= 0)
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
    -- The language of texts to it.
    language      TEXT   NOT NULL DEFAULT 'en' CHECK (language IN ('en', 'zh')),
    -- Argon2id in PHC string format.
    password_hash TEXT   NOT NULL,
    -- When it was created.
    created_at    BIGINT NOT NULL,
    -- When the login was closed.
    disabled_at   BIGINT,
    PRIMARY KEY (account, id)
);
CREATE INDEX operators_by_mobile ON operators (mobile);

-- A business representative: works for the platform, outside every account, and decides what
-- people sent in on paper.
CREATE TABLE representatives (
    -- Chosen at creation.
    id            TEXT   NOT NULL PRIMARY KEY,
    -- What people call it.
    name          TEXT   NOT NULL,
    -- Argon2id in PHC string format.
    password_hash TEXT   NOT NULL,
    -- When it was created.
    created_at    BIGINT NOT NULL,
    -- When the login was closed.
    disabled_at   BIGINT
);

-- A log-in of a person at the portal.
CREATE TABLE sessions (
    -- SHA-256 of the token, which has 256 random bits and is not kept.
    token_hash     TEXT   NOT NULL PRIMARY KEY,
    -- Whose it is: an operator, or a representative.
    account        TEXT,
    operator       TEXT,
    representative TEXT   REFERENCES representatives (id),
    -- When it began, when it was last used (to the minute), when it ends at the latest.
    created_at     BIGINT NOT NULL,
    last_seen_at   BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    -- When the person, or a change of password, ended it.
    ended_at       BIGINT,
    CHECK ((account IS NULL) = (operator IS NULL)),
    CHECK ((account IS NULL) <> (representative IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX sessions_by_person ON sessions (account, operator);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- Failed log-ins, counted per person and source, and per person alone.
CREATE TABLE login_failures (
    -- SHA-256 over what is counted, so that the table names nobody who does not exist.
    subject    TEXT   NOT NULL PRIMARY KEY,
    -- Failures since the last success.
    failures   BIGINT NOT NULL CHECK (failures >= 0),
    -- When the last one was, and when the next try is looked at.
    failed_at  BIGINT NOT NULL,
    next_at    BIGINT NOT NULL
);
CREATE INDEX login_failures_by_age ON login_failures (failed_at);

-- Where a person logged in from with success: strangers' failures do not slow these down.
CREATE TABLE login_sources (
    -- SHA-256 over person and source.
    subject TEXT   NOT NULL PRIMARY KEY,
    -- When it was last seen.
    seen_at BIGINT NOT NULL
);
CREATE INDEX login_sources_by_age ON login_sources (seen_at);

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
    purpose       TEXT   NOT NULL CHECK (purpose IN ('install', 'secret-change', 'recovery')),
    -- The computer an installation is for, and the serial number of its token where it is known.
    computer      TEXT,
    computer_name TEXT,
    token_serial  TEXT,
    -- What another purpose is about.
    subject       TEXT,
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
    CHECK ((purpose = 'install') = (computer IS NOT NULL)),
    CHECK ((purpose = 'install') = (computer_name IS NOT NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX sms_codes_by_mobile ON sms_codes (mobile, created_at);

-- A text that was handed to the gateway. The text itself is not kept: it may hold a code.
CREATE TABLE sms_messages (
    -- Random; the gateway's key against duplicates.
    id         TEXT   NOT NULL PRIMARY KEY,
    -- Where it goes, E.164, and what it is about.
    mobile     TEXT   NOT NULL,
    purpose    TEXT   NOT NULL,
    -- Where it stands.
    state      TEXT   NOT NULL CHECK (state IN ('sending', 'accepted', 'failed')),
    -- Tries so far, and why the last one failed.
    attempts   BIGINT NOT NULL CHECK (attempts >= 0),
    error      TEXT,
    -- When it was written, and when it last changed.
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE INDEX sms_messages_by_age ON sms_messages (created_at);

-- An enrolment ticket. The ticket itself is a signed token and is not kept.
CREATE TABLE tickets (
    -- The token's jti.
    jti           TEXT   NOT NULL PRIMARY KEY,
    -- SHA-256 of the last part of the token, by which clients with little room present it.
    short_hash    TEXT   NOT NULL UNIQUE,
    -- What it allows.
    purpose       TEXT   NOT NULL CHECK (purpose IN ('install', 'renew')),
    -- What it was given for: an SMS code, or an approved renewal. One ticket for each.
    code          TEXT   UNIQUE REFERENCES sms_codes (id),
    operation     TEXT   UNIQUE,
    -- Who may enrol, and where.
    account       TEXT   NOT NULL,
    operator      TEXT   NOT NULL,
    computer      TEXT   NOT NULL,
    computer_name TEXT   NOT NULL,
    token_serial  TEXT,
    -- Whether an administrator has to approve first, and who did.
    held          BIGINT NOT NULL DEFAULT 0 CHECK (held IN (0, 1)),
    released_by   TEXT,
    released_at   BIGINT,
    -- When it was given.
    created_at    BIGINT NOT NULL,
    -- When it stops working.
    expires_at    BIGINT NOT NULL,
    -- When a certificate was issued for it.
    spent_at      BIGINT,
    -- SHA-256 of the request (DER) it was spent on; the same request is answered again.
    request_hash  TEXT,
    CHECK ((spent_at IS NULL) = (request_hash IS NULL)),
    CHECK ((code IS NULL) <> (operation IS NULL)),
    CHECK ((released_at IS NULL) = (released_by IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX tickets_held ON tickets (account, expires_at) WHERE held = 1;

-- An operating certificate.
CREATE TABLE certificates (
    -- Serial number, hexadecimal.
    serial            TEXT   NOT NULL PRIMARY KEY,
    -- Whose it is, and where its key lives.
    account           TEXT   NOT NULL,
    operator          TEXT   NOT NULL,
    computer          TEXT   NOT NULL,
    -- The token that holds the key, by the serial number its daemon reported.
    token_serial      TEXT,
    -- The ticket it was issued for: one certificate for one ticket. An EST client that renews
    -- with its TLS certificate has none.
    ticket            TEXT   UNIQUE REFERENCES tickets (jti),
    -- The certificate it takes the place of: each has one successor.
    replaces          TEXT   UNIQUE REFERENCES certificates (serial),
    -- SHA-256 of the request that a successor without a ticket was issued for.
    request_hash      TEXT,
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
    -- Who revoked it: an operator, "service" or "administration".
    revoked_by        TEXT,
    CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL)),
    CHECK ((ticket IS NULL) = (request_hash IS NOT NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id),
    FOREIGN KEY (account, computer) REFERENCES computers (account, id)
);
CREATE INDEX certificates_by_account ON certificates (account, not_after);
CREATE INDEX certificates_by_issue ON certificates (account, issued_at, serial);
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
    -- What it is for: certificates and CRLs, challenges and tickets, or secrets sealed to it.
    purpose     TEXT   NOT NULL CHECK (purpose IN ('issuing', 'challenge', 'sealing')),
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
    -- When it stopped signing, and until when its public half is still published.
    retired_at  BIGINT,
    published_until BIGINT,
    CHECK ((purpose = 'issuing') = (certificate IS NOT NULL))
);
-- One key signs at a time.
CREATE UNIQUE INDEX service_keys_current ON service_keys (purpose) WHERE retired_at IS NULL;

-- A key of the platform's backend.
CREATE TABLE platform_keys (
    -- Given at creation.
    name       TEXT   NOT NULL PRIMARY KEY,
    -- SHA-256 of the key, which has 256 random bits and is not kept; or of the TLS client
    -- certificate that stands for it.
    key_hash   TEXT   UNIQUE,
    certificate_hash TEXT UNIQUE,
    -- What it may do, words apart by blanks.
    scopes     TEXT   NOT NULL,
    -- When it was created.
    created_at BIGINT NOT NULL,
    -- When it was withdrawn.
    revoked_at BIGINT,
    CHECK ((key_hash IS NULL) <> (certificate_hash IS NULL))
);

-- How many operators must approve: the row with the highest amount not above the operation's.
CREATE TABLE approval_rules (
    -- Whose, and for which kind of operation.
    account   TEXT   NOT NULL REFERENCES accounts (id),
    kind      TEXT   NOT NULL,
    -- From this amount on, in minor units of this currency; 0 and '' for kinds without amount.
    currency  TEXT   NOT NULL,
    amount    BIGINT NOT NULL CHECK (amount >= 0),
    -- Distinct operators.
    approvals BIGINT NOT NULL CHECK (approvals BETWEEN 1 AND 10),
    PRIMARY KEY (account, kind, currency, amount)
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
    -- Who entered it, where that is known: never one of those who approve.
    maker        TEXT,
    -- Distinct operators that must approve.
    needed       BIGINT NOT NULL DEFAULT 1 CHECK (needed >= 1),
    -- The platform key that created it; none where the service did.
    platform_key TEXT   REFERENCES platform_keys (name),
    -- What the service itself does once it is approved, and to what.
    effect       TEXT   CHECK (effect IN ('delete-certificate', 'renew-certificate',
                                          'release-ticket', 'decide-request', 'set-secret')),
    effect_on    TEXT,
    -- Events told of it so far: their order.
    events       BIGINT NOT NULL DEFAULT 0,
    -- When it was created.
    created_at   BIGINT NOT NULL,
    -- When it can no longer be approved.
    expires_at   BIGINT NOT NULL,
    -- When it left the state 'created'.
    closed_at    BIGINT,
    CHECK ((state = 'created') = (closed_at IS NULL)),
    CHECK ((effect IS NULL) = (effect_on IS NULL)),
    CHECK (platform_key IS NOT NULL OR effect IS NOT NULL),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE INDEX operations_by_age ON operations (created_at, id);
CREATE INDEX operations_by_account ON operations (account, created_at, id);
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
    -- The certificate it was signed with, and the computer that holds its key: once each, too.
    certificate TEXT   NOT NULL REFERENCES certificates (serial),
    computer    TEXT   NOT NULL,
    -- The approval, JWS compact.
    approval    TEXT   NOT NULL,
    -- When it was accepted.
    accepted_at BIGINT NOT NULL,
    PRIMARY KEY (operation, operator),
    UNIQUE (operation, computer)
);

-- The answer to a request that carried an Idempotency-Key.
CREATE TABLE idempotency (
    -- Whose key it is, and the key.
    principal    TEXT   NOT NULL,
    key          TEXT   NOT NULL,
    -- SHA-256 of method, path and body.
    request_hash TEXT   NOT NULL,
    -- The answer.
    status       BIGINT NOT NULL,
    body         TEXT   NOT NULL,
    -- When it was given.
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- An address of the platform that is told of operations.
CREATE TABLE subscriptions (
    -- Random.
    id           TEXT   NOT NULL PRIMARY KEY,
    -- The platform key that made it.
    platform_key TEXT   NOT NULL REFERENCES platform_keys (name),
    -- Where to.
    url          TEXT   NOT NULL,
    -- The secret of its signatures, sealed with the key in the state directory.
    secret       BLOB   NOT NULL,
    -- When it was made, and when it was ended.
    created_at   BIGINT NOT NULL,
    ended_at     BIGINT
);

-- Notices to the platform, written with the change they tell of and delivered afterwards.
CREATE TABLE outbox (
    -- Random; with the receiver, the key of a delivery.
    id              TEXT   NOT NULL PRIMARY KEY,
    -- The event, which has one id for all receivers: their key against duplicates.
    event           TEXT   NOT NULL,
    -- To whom; none is the address in the configuration.
    subscription    TEXT   REFERENCES subscriptions (id),
    -- The operation it tells of, and its place among the events of that operation.
    operation       TEXT   NOT NULL REFERENCES operations (id),
    place           BIGINT NOT NULL,
    -- The body, JSON, sent as it is.
    body            TEXT   NOT NULL,
    -- When it was written.
    created_at      BIGINT NOT NULL,
    -- Tries so far, when the next is due, and why the last one failed.
    attempts        BIGINT NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL,
    error           TEXT,
    -- When the receiver took it.
    delivered_at    BIGINT,
    -- When trying was given up.
    abandoned_at    BIGINT
);
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE delivered_at IS NULL AND abandoned_at IS NULL;
CREATE INDEX outbox_in_order ON outbox (operation, place);
CREATE INDEX outbox_by_subscription ON outbox (subscription, created_at);

-- What happened in an account, for its administrators to read. The audit trail in files, which
-- nobody can change unseen, holds the same.
CREATE TABLE events (
    -- Random.
    id      TEXT   NOT NULL PRIMARY KEY,
    -- Where, when, what, in which request.
    account TEXT   NOT NULL,
    at      BIGINT NOT NULL,
    kind    TEXT   NOT NULL,
    request TEXT   NOT NULL,
    -- The facts, JSON.
    body    TEXT   NOT NULL
);
CREATE INDEX events_by_account ON events (account, at, id);

-- Something administrators, or the business representatives, are told.
CREATE TABLE notices (
    -- Random.
    id         TEXT   NOT NULL PRIMARY KEY,
    -- The account it is about, and who reads it.
    account    TEXT   NOT NULL REFERENCES accounts (id),
    audience   TEXT   NOT NULL CHECK (audience IN ('administrators', 'representatives')),
    -- What it tells.
    kind       TEXT   NOT NULL,
    body       TEXT   NOT NULL,
    -- When.
    created_at BIGINT NOT NULL
);
CREATE INDEX notices_by_account ON notices (audience, account, created_at, id);

-- Who has read a notice.
CREATE TABLE notice_readers (
    notice  TEXT   NOT NULL REFERENCES notices (id),
    -- The operator or representative.
    reader  TEXT   NOT NULL,
    -- When.
    read_at BIGINT NOT NULL,
    PRIMARY KEY (notice, reader)
);

-- A request that a person decides because the usual proof is lost: the mobile number, or the
-- only computer of an administrator.
CREATE TABLE requests (
    -- Random.
    id           TEXT   NOT NULL PRIMARY KEY,
    -- What is asked.
    kind         TEXT   NOT NULL CHECK (kind IN ('mobile-change', 'computer-recovery')),
    -- For whom.
    account      TEXT   NOT NULL,
    operator     TEXT   NOT NULL,
    -- The new number, and the one at the time of the request; E.164.
    new_mobile   TEXT,
    old_mobile   TEXT   NOT NULL,
    -- Where it stands.
    state        TEXT   NOT NULL CHECK (state IN ('open', 'submitted', 'granted', 'refused',
                                                  'withdrawn', 'done')),
    -- When it was made; when a decision was asked for; when and by whom it was decided, and why.
    created_at   BIGINT NOT NULL,
    submitted_at BIGINT,
    decided_at   BIGINT,
    decided_by   TEXT,
    reason       TEXT,
    -- When a grant takes effect, so that its victim can stop it; when it did.
    effective_at BIGINT,
    done_at      BIGINT,
    CHECK ((kind = 'mobile-change') = (new_mobile IS NOT NULL)),
    CHECK ((decided_at IS NULL) = (decided_by IS NULL)),
    FOREIGN KEY (account, operator) REFERENCES operators (account, id)
);
CREATE UNIQUE INDEX requests_open ON requests (account, operator, kind)
    WHERE state IN ('open', 'submitted', 'granted');
CREATE INDEX requests_by_age ON requests (created_at, id);

-- A paper that was sent in with a request.
CREATE TABLE attachments (
    -- Random.
    id         TEXT   NOT NULL PRIMARY KEY,
    request    TEXT   NOT NULL REFERENCES requests (id),
    -- What it shows: one of each.
    kind       TEXT   NOT NULL CHECK (kind IN ('photocopy', 'document')),
    -- Found in the content, not told by the sender.
    media_type TEXT   NOT NULL,
    size       BIGINT NOT NULL CHECK (size > 0),
    -- SHA-256 of the content, and the content, sealed with the key in the state directory.
    sha256     TEXT   NOT NULL,
    content    BLOB   NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (request, kind)
);

-- An API secret of an account: one version of one kind, or one that waits for approvals.
CREATE TABLE secrets (
    -- Random; what is sealed opens only in the row of this id.
    id              TEXT   NOT NULL PRIMARY KEY,
    -- Whose, and which.
    account         TEXT   NOT NULL REFERENCES accounts (id),
    kind            TEXT   NOT NULL CHECK (kind IN ('api', 'apiv3')),
    -- Counts up for each kind as they take effect; none while it waits.
    version         BIGINT CHECK (version >= 1),
    -- A JWE for the sealing key on the token of the service, sealed once more with the key in the
    -- state directory. Gone once it was destroyed.
    sealed          BLOB,
    -- Who set it, and when.
    set_by          TEXT   NOT NULL,
    set_at          BIGINT NOT NULL,
    -- For how many seconds the one before it is still read.
    overlap_seconds BIGINT NOT NULL CHECK (overlap_seconds >= 0),
    -- When it took effect.
    effective_at    BIGINT,
    -- When it is to be destroyed: one that was replaced at the end of the overlap, one that waits
    -- when nobody approved it. The current one has no end.
    ends_at         BIGINT,
    destroyed_at    BIGINT,
    CHECK ((version IS NULL) = (effective_at IS NULL)),
    CHECK ((sealed IS NULL) = (destroyed_at IS NOT NULL)),
    UNIQUE (account, kind, version),
    FOREIGN KEY (account, set_by) REFERENCES operators (account, id)
);
CREATE UNIQUE INDEX secrets_current ON secrets (account, kind)
    WHERE version IS NOT NULL AND ends_at IS NULL;
CREATE UNIQUE INDEX secrets_waiting ON secrets (account, kind)
    WHERE version IS NULL AND destroyed_at IS NULL;
CREATE INDEX secrets_ending ON secrets (ends_at) WHERE destroyed_at IS NULL AND ends_at IS NOT NULL;

-- A key on the token of a computer that secrets are sealed to, as an operating certificate of
-- that computer vouched for it.
CREATE TABLE secret_recipients (
    -- Whose secrets it asks for, and the RFC 7638 thumbprint of the key.
    account    TEXT   NOT NULL,
    kid        TEXT   NOT NULL,
    -- The computer, and the merchant on it that needs them.
    computer   TEXT   NOT NULL,
    merchant   TEXT   NOT NULL,
    -- The operator whose certificate vouched for it first.
    operator   TEXT   NOT NULL,
    -- Whether it gets any: not before the super administrator has let it, and not after its end.
    state      TEXT   NOT NULL CHECK (state IN ('waiting', 'active', 'ended')),
    -- When it first asked; when its newest request was signed.
    asked_at   BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL,
    -- Who let it have secrets or ended it, and when. No name where another key took its place.
    decided_by TEXT,
    decided_at BIGINT,
    -- The highest versions it said to have.
    held_api   BIGINT NOT NULL DEFAULT 0 CHECK (held_api >= 0),
    held_apiv3 BIGINT NOT NULL DEFAULT 0 CHECK (held_apiv3 >= 0),
    PRIMARY KEY (account, kid),
    FOREIGN KEY (account, computer) REFERENCES computers (account, id)
);
CREATE UNIQUE INDEX secret_recipients_in_use ON secret_recipients (account, computer, merchant)
    WHERE state <> 'ended';

-- A secret as it was sealed for a recipient and signed.
CREATE TABLE secret_deliveries (
    -- What, and for whom.
    secret          TEXT   NOT NULL REFERENCES secrets (id),
    account         TEXT   NOT NULL,
    kid             TEXT   NOT NULL,
    -- The signed statement, JWS compact, and the kid of the challenge key that signed it.
    statement       TEXT   NOT NULL,
    signed_by       TEXT   NOT NULL,
    -- When it was made for a courier, and when the computer said that it has it.
    sealed_at       BIGINT NOT NULL,
    acknowledged_at BIGINT,
    PRIMARY KEY (secret, kid),
    FOREIGN KEY (account, kid) REFERENCES secret_recipients (account, kid)
);
CREATE INDEX secret_deliveries_by_recipient ON secret_deliveries (account, kid);
