-- How the key of a certificate was proven, where that is more or less than usual: JSON.
CREATE TABLE key_proofs (
    certificate  TEXT NOT NULL PRIMARY KEY REFERENCES certificates (serial),
    proof        TEXT NOT NULL
);
