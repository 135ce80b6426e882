//! The rules in force, and what was used of the limits: one handle for all who ask.
//!
//! Rules are checked before they come here, and files never are read.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::rules::{Changes, PolicySet};
use super::usage::Usage;

/// A handle to the set in force; clones share it. A request takes the set once and decides by it,
/// so a set that changes meanwhile never mixes with the old one.
#[derive(Debug, Clone)]
pub struct Policies(Arc<Live>);

#[derive(Debug)]
struct Live {
    current: ArcSwap<PolicySet>,
    usage: Usage,
}

impl Policies {
    /// Puts `set` in force, nothing used yet.
    pub fn new(set: PolicySet) -> Self {
        let usage = Usage::default();
        usage.set_limits(set.limits(), set.time_zone());
        Self(Arc::new(Live {
            current: ArcSwap::from_pointee(set),
            usage,
        }))
    }

    /// The set in force.
    pub fn current(&self) -> Arc<PolicySet> {
        self.0.current.load_full()
    }

    /// What was used of its limits.
    pub fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// Puts another set in force and tells what differs.
    pub fn replace(&self, set: PolicySet) -> Changes {
        let set = Arc::new(set);
        self.0.usage.set_limits(set.limits(), set.time_zone());
        let before = self.0.current.swap(set.clone());
        set.changes_since(&before)
    }
}
