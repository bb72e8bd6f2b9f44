// SPDX-License-Identifier: GPL-2.0

//! What an MMU notifier wants to know about the age of a page.

/// What to do with a page that was accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Report it.
    Test,
    /// Report it, and age the page.
    TestAndClear,
}
