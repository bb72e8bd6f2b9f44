// SPDX-License-Identifier: GPL-2.0

//! Errors.

/// A negative errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error(i32);

/// A result.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    /// C's number.
    pub fn to_errno(self) -> i32 {
        self.0
    }
}

/// The errors that the MMU returns.
pub mod code {
    use super::Error;

    pub const EINTR: Error = Error(-4);
    pub const EIO: Error = Error(-5);
    pub const EAGAIN: Error = Error(-11);
    pub const ENOSPC: Error = Error(-28);
    pub const ENOMEM: Error = Error(-12);
    pub const EBUSY: Error = Error(-16);
    pub const EINVAL: Error = Error(-22);
}

/// Converts C's return value.
pub fn to_result(errno: i32) -> Result {
    if errno < 0 {
        Err(Error(errno))
    } else {
        Ok(())
    }
}
