// SPDX-License-Identifier: GPL-2.0

//! `WARN()` fails the run.

/// The flag of a taint.
pub const fn bugflag_taint(taint: u32) -> u32 {
    taint << 8
}

/// Warns.
#[macro_export]
macro_rules! warn_flags {
    ($file:expr, $flags:expr) => {{
        let _ = $flags;
        $crate::bug::warn($file, line!())
    }};
}

/// Ends the run.
#[cold]
pub fn warn(file: &str, line: u32) {
    let file = file.rsplit_once("mmu/").map_or(file, |(_, name)| name);
    machine::fail(format!("WARN at {file}:{line}"));
}
