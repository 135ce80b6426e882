//! What every other module stands on: values and helpers without a policy of their own.
//!
//! Time comes from a [`Clock`], randomness from the operating system, keys and signatures are
//! typed by [`key`], tokens are named by [`pkcs11`]. Nothing here opens a socket, reads a
//! configuration or knows what an operation is.

pub mod backoff;
pub mod clock;
pub mod cms;
pub mod encoding;
pub mod files;
pub mod ids;
pub mod jose;
pub mod jwe;
pub mod key;
pub mod memory;
pub mod pkcs11;
pub mod secret;
pub mod sysexits;
pub mod tree;
pub mod x509;

pub use clock::Clock;
