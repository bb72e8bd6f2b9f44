// SPDX-License-Identifier: GPL-2.0

//! What an MMU notifier asks of a page's age.

/// What to do with a page that was accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Say so.
    Test,
    /// Say so, and make it old.
    TestAndClear,
}
