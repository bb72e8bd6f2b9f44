// SPDX-License-Identifier: GPL-2.0

//! Memory for page tables and their headers, which knows what was freed; and accesses to words.
//!
//! Nothing is used twice within a run, so that whoever uses what was freed is found out.

use std::{
    alloc::{
        alloc_zeroed,
        Layout, //
    },
    cell::UnsafeCell, //
};

use crate::sched::{
    fail,
    note,
    point_on, //
};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a header.
pub const HEADER: usize = 256;
/// Pages for tables.
const PAGES: usize = 1 << 15;
/// Headers.
const HEADERS: usize = 1 << 15;
/// The physical address of the first table.
pub const PHYS: u64 = 0x10_0000_0000;
/// What freed memory is filled with. As an address it is none.
const POISON: u8 = 0x6b;

#[derive(Clone, Copy, PartialEq)]
enum Use {
    Never,
    Live,
    Freed,
}

/// A kind of memory.
struct Pool {
    base: usize,
    size: usize,
    used: Vec<Use>,
    next: usize,
    live: usize,
}

impl Pool {
    fn new(size: usize, count: usize) -> Self {
        let layout = Layout::from_size_align(size * count, PAGE).expect("constants");
        // SAFETY: The size is not 0.
        let base = unsafe { alloc_zeroed(layout) } as usize;

        assert!(base != 0, "no memory for the simulated machine");
        Pool {
            base,
            size,
            used: vec![Use::Never; count],
            next: 0,
            live: 0,
        }
    }

    fn reset(&mut self) {
        self.used[..self.next].fill(Use::Never);
        self.next = 0;
        self.live = 0;
    }

    fn alloc(&mut self, fill: u8) -> *mut u8 {
        let Some(used) = self.used.get_mut(self.next) else {
            fail("the simulated machine is out of memory".into());
        };
        *used = Use::Live;
        let ptr = (self.base + self.next * self.size) as *mut u8;
        // SAFETY: Within the pool.
        unsafe { ptr.write_bytes(fill, self.size) };
        self.next += 1;
        self.live += 1;
        ptr
    }

    #[inline]
    fn index(&self, addr: usize) -> Option<usize> {
        let offset = addr.wrapping_sub(self.base);

        (offset < self.size * self.used.len()).then_some(offset / self.size)
    }

    fn free(&mut self, ptr: usize, what: &str) {
        match self.index(ptr) {
            Some(index)
                if self.used[index] == Use::Live && ptr == self.base + index * self.size =>
            {
                self.used[index] = Use::Freed;
                self.live -= 1;
                // SAFETY: Within the pool.
                unsafe { (ptr as *mut u8).write_bytes(POISON, self.size) };
            }
            _ => fail(format!("frees {what} that is not there: {ptr:#x}")),
        }
    }
}

/// Bytes for everything else.
const REST: usize = 1 << 22;

struct Mem {
    /// The rest: where it is, and how much is used. The same run has the same at the same place.
    rest: (usize, usize),
    tables: Pool,
    headers: Pool,
    /// The header of each table; `page_private()`. Stays after the table is freed.
    private: Vec<usize>,
}

struct Global(UnsafeCell<Option<Mem>>);
// SAFETY: One OS thread runs the simulation.
unsafe impl Sync for Global {}
static GLOBAL: Global = Global(UnsafeCell::new(None));

#[inline]
fn mem() -> &'static mut Mem {
    // SAFETY: One OS thread; nobody keeps the reference over a switch.
    let mem = unsafe { &mut *GLOBAL.0.get() };

    mem.get_or_insert_with(|| Mem {
        rest: (Pool::new(REST, 1).base, 0),
        tables: Pool::new(PAGE, PAGES),
        headers: Pool::new(HEADER, HEADERS),
        private: vec![0; PAGES],
    })
}

/// Begins a run: all memory is free.
pub fn begin() {
    let m = mem();

    m.tables.reset();
    m.headers.reset();
    m.rest.1 = 0;
}

/// Moves a value to memory that is the run's. Whoever asked for it drops it.
pub fn alloc_rest<T>(value: T) -> *mut T {
    let ptr: *mut T = alloc_bytes(size_of::<T>(), align_of::<T>()).cast();

    // SAFETY: Within the memory, aligned, and nobody else's.
    unsafe { ptr.write(value) };
    ptr
}

/// Zeroed words.
pub fn alloc_words(n: usize) -> *mut usize {
    let bytes = alloc_bytes(n * size_of::<usize>(), align_of::<usize>());

    // SAFETY: The memory is ours, and has that many bytes.
    unsafe { bytes.write_bytes(0, n * size_of::<usize>()) };
    bytes.cast()
}

/// Memory that is the run's, of any contents.
fn alloc_bytes(size: usize, align: usize) -> *mut u8 {
    let m = mem();
    let offset = m.rest.1.next_multiple_of(align.max(64));

    m.rest.1 = offset + size;
    if m.rest.1 > REST {
        fail("the simulated machine is out of memory".into());
    }
    (m.rest.0 + offset) as *mut u8
}

/// A table, full of `fill`.
pub fn alloc_table(fill: u8) -> *mut u64 {
    let m = mem();
    let ptr = m.tables.alloc(fill);
    let index = m.tables.next - 1;

    m.private[index] = 0;
    note("alloc table", [ptr as u64, 0, 0]);
    ptr.cast()
}

/// A zeroed header.
pub fn alloc_header() -> *mut u8 {
    mem().headers.alloc(0)
}

/// Frees a table.
pub fn free_table(ptr: *mut u64) {
    note("free table", [ptr as u64, 0, 0]);
    mem().tables.free(ptr as usize, "a table");
}

/// Frees a header.
pub fn free_header(ptr: *mut u8) {
    mem().headers.free(ptr as usize, "a header");
}

/// How many tables and headers are not free.
pub fn live() -> (usize, usize) {
    (mem().tables.live, mem().headers.live)
}

/// The physical address of a word in a table.
#[inline]
pub fn pa(ptr: *const u64) -> u64 {
    PHYS + (ptr as usize).wrapping_sub(mem().tables.base) as u64
}

/// The table at a physical address.
#[inline]
pub fn va(pa: u64) -> *mut u64 {
    let offset = pa.wrapping_sub(PHYS) as usize;

    if offset >= PAGES * PAGE {
        fail(format!("looks for a page table at {pa:#x}"));
    }
    (mem().tables.base + offset) as *mut u64
}

/// Whether a physical address is that of a table that is not free.
pub fn is_live_table(pa: u64) -> bool {
    let index = (pa.wrapping_sub(PHYS) as usize) / PAGE;

    index < PAGES && mem().tables.used[index] == Use::Live
}

/// Remembers the header of a table.
pub fn set_private(table: *mut u64, header: usize) {
    let m = mem();
    let index = m.tables.index(table as usize).expect("a table");

    m.private[index] = header;
}

/// The header of the table that a word is in, also of a freed one; 0 if it is in none.
pub fn private(word: usize) -> usize {
    let m = mem();

    m.tables.index(word).map_or(0, |index| m.private[index])
}

/// Fails unless the address is in memory of the machine that is not free. That memory is never
/// unmapped, so what passes may be accessed.
#[inline]
pub fn check(addr: usize, what: &'static str) {
    let m = mem();
    let (kind, used) = if let Some(index) = m.tables.index(addr) {
        ("page table", m.tables.used[index])
    } else if let Some(index) = m.headers.index(addr) {
        ("page header", m.headers.used[index])
    } else if addr.wrapping_sub(m.rest.0) < REST {
        return;
    } else {
        fail(format!(
            "{what}: {addr:#x} is not in the memory of the machine"
        ));
    };

    if used != Use::Live {
        note(what, [addr as u64, 0, 0]);
        fail(format!("{what}: uses a {kind} that was freed"));
    }
}

/// A word that several parties access.
pub trait Word: Copy + PartialEq {
    /// For the log.
    fn bits(self) -> u64;
}

impl Word for u64 {
    fn bits(self) -> u64 {
        self
    }
}

impl Word for u32 {
    fn bits(self) -> u64 {
        self.into()
    }
}

impl Word for bool {
    fn bits(self) -> u64 {
        self.into()
    }
}

/// Reads a word; one step.
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "`check` fails unless the word is in the memory of the machine"
)]
#[inline]
pub fn load<T: Word>(ptr: *mut T) -> T {
    point_on(ptr as usize, false);
    check(ptr as usize, "load");
    // SAFETY: The word is in the machine's memory, which stays; no other OS thread.
    let value = unsafe { ptr.read_volatile() };

    note("load", [ptr as u64, value.bits(), 0]);
    value
}

/// Writes a word; one step.
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "`check` fails unless the word is in the memory of the machine"
)]
#[inline]
pub fn store<T: Word>(ptr: *mut T, value: T) {
    point_on(ptr as usize, true);
    check(ptr as usize, "store");
    // SAFETY: As above.
    let old = unsafe { ptr.read_volatile() };
    note("store", [ptr as u64, old.bits(), value.bits()]);
    // SAFETY: As above.
    unsafe { ptr.write_volatile(value) };
}

/// Reads a word and writes what `f` says, if anything; one step. Returns what was there, and
/// whether it was replaced.
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "`check` fails unless the word is in the memory of the machine"
)]
#[inline]
pub fn update<T: Word>(
    what: &'static str,
    ptr: *mut T,
    f: impl FnOnce(T) -> Option<T>,
) -> (T, bool) {
    point_on(ptr as usize, true);
    check(ptr as usize, what);
    // SAFETY: As above.
    let old = unsafe { ptr.read_volatile() };

    match f(old) {
        Some(new) => {
            note(what, [ptr as u64, old.bits(), new.bits()]);
            // SAFETY: As above.
            unsafe { ptr.write_volatile(new) };
            (old, true)
        }
        None => {
            note("cmpxchg, lost", [ptr as u64, old.bits(), 0]);
            (old, false)
        }
    }
}
