//! consent.
