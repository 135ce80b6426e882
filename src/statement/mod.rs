//! Operations, challenges and approvals: hostile bytes in, typed values out.
//!
//! Parsing happens once. A [`Statement`] obeys the rules of its kind, so what a person is shown
//! and what is signed come from the same value. Nothing here does input or output, and time is
//! an argument.

pub mod kinds;
pub mod money;
pub mod operation;
pub mod strict;
pub mod text;

pub use money::Money;
pub use operation::{Facts, Kind, Language, Statement};
