//! Nobody watches: what the others are compared with.

use anyhow::Result;

use super::{Attached, READ_AHEAD_KIB, Seen, Subject};
use crate::scene::Scene;

/// Nobody, on a mount with a certain read-ahead.
pub(super) struct NoOne {
    name: &'static str,
    read_ahead_kib: u32,
}

/// On the mount that most subjects have.
pub(super) const NONE: NoOne = NoOne {
    name: "none",
    read_ahead_kib: READ_AHEAD_KIB,
};

/// On a mount as the kernel makes it.
pub(super) const WITH_USUAL_READ_AHEAD: NoOne = NoOne {
    name: "none, read-ahead 128 KiB",
    read_ahead_kib: 128,
};

/// On the mount of those that see single pages.
pub(super) const WITHOUT_READ_AHEAD: NoOne = NoOne {
    name: "none, no read-ahead",
    read_ahead_kib: 0,
};

struct Nothing;

impl Subject for NoOne {
    fn name(&self) -> &str {
        self.name
    }

    fn read_ahead_kib(&self) -> u32 {
        self.read_ahead_kib
    }

    fn attach(&self, _scene: &Scene) -> Result<Box<dyn Attached>> {
        Ok(Box::new(Nothing))
    }
}

impl Attached for Nothing {
    fn finish(self: Box<Self>, _scene: &Scene) -> Result<Option<Seen>> {
        Ok(None)
    }
}
