// SPDX-License-Identifier: GPL-2.0

//! What the MMU uses of the kernel crate, simulated. Every access that others can see is a
//! scheduling point.

pub mod bindings;
pub mod bug;
pub mod error;
pub mod sync;

/// The CPU.
pub mod processor {
    /// This thread waits for another one.
    pub fn cpu_relax() {
        machine::sched::spin();
    }
}

/// C's types.
pub mod ffi {
    pub use core::ffi::{
        c_int,
        c_uint,
        c_void, //
    };
    /// As the kernel has it.
    #[allow(non_camel_case_types)]
    pub type c_ulong = usize;
}

/// Marker types.
pub mod types {
    use core::marker::PhantomData;

    /// Keeps a value on its thread.
    pub type NotThreadSafe = PhantomData<*mut ()>;
    /// The value of that type.
    #[allow(non_upper_case_globals)]
    pub const NotThreadSafe: NotThreadSafe = PhantomData;
}

/// What `use kernel::prelude::*` gives.
pub mod prelude {
    pub use crate::{
        error::{
            Error,
            Result, //
        },
        pr_err, //
    };
}

/// Logs an error: a note in the run's log.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { eprint!("pr_err: {}", format!($($arg)*)) };
}

/// Logs a warning, which ends the run next.
#[macro_export]
macro_rules! pr_warn_once {
    ($($arg:tt)*) => { eprint!("pr_warn: {}", format!($($arg)*)) };
}

/// A pointer to the structure that a field is in.
#[macro_export]
macro_rules! container_of {
    ($field:expr, $type:ty, $name:ident) => {
        $field
            .byte_sub(core::mem::offset_of!($type, $name))
            .cast::<$type>()
    };
}
