//! JWS, JWK and JWK sets (RFC 7515, RFC 7517).
