//! Files that matter: read with checks, written whole.
