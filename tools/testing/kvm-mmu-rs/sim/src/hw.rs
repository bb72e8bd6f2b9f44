// SPDX-License-Identifier: GPL-2.0

//! The CPU's side: a walker with a TLB and with paging-structure caches, which keep what they have
//! until a flush reaches this CPU, and which sets A and D bits by locked updates.
//!
//! A cached upper-level entry leads into a table that may have been unlinked since: the walker then
//! reads, and sets D, there. An access is one instruction: an interrupt is taken before or after
//! it.

use kvm_c::{
    bindings::*,
    model::{
        FRAME,
        LARGE,
        ROOT_LEVEL, //
    }, //
};
use machine::{
    chance,
    fail,
    mem,
    note,
    sched, //
};

/// The formats of page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// AMD.
    Npt,
    /// Intel, with A/D bits.
    EptAd,
    /// Intel, without.
    Ept,
    /// Intel, with A/D bits and a log of writes.
    EptPml,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 4] = [Format::Npt, Format::EptAd, Format::Ept, Format::EptPml];

    fn is_npt(self) -> bool {
        self == Format::Npt
    }

    /// Whether the CPU sets A and D.
    pub fn has_ad(self) -> bool {
        self != Format::Ept
    }

    fn accessed(self) -> u64 {
        if self.is_npt() {
            1 << 5
        } else {
            1 << 8
        }
    }

    fn dirty(self) -> u64 {
        if self.is_npt() {
            1 << 6
        } else {
            1 << 9
        }
    }

    /// Sets C's mask globals as the vendor module does; `kvm_mmu_reset_all_pte_masks()` and
    /// `kvm_mmu_set_ept_masks()`. `encrypted`: memory is encrypted, on AMD.
    pub fn install(self, encrypted: bool) {
        let npt = self.is_npt();

        // SAFETY: There is no VM now; one OS thread.
        unsafe {
            shadow_host_writable_mask = if npt { 1 << 9 } else { 1 << 53 };
            shadow_mmu_writable_mask = if npt { 1 << 10 } else { 1 << 55 };
            shadow_nx_mask = if npt { 1 << 63 } else { 0 };
            shadow_user_mask = if npt { 1 << 2 } else { 0 };
            shadow_xs_mask = if npt { 0 } else { 1 << 2 };
            shadow_xu_mask = 0;
            shadow_accessed_mask = self.accessed();
            shadow_dirty_mask = if self.has_ad() { self.dirty() } else { 0 };
            shadow_present_mask = if npt { 1 } else { 1 << 63 };
            shadow_acc_track_mask = if npt { 0 } else { 0b111 };
            shadow_mmio_mask = if npt { 1 << 51 | 1 } else { 0b111 | 1 << 63 };
            shadow_mmio_access_mask = 0;
            shadow_nonpresent_or_rsvd_mask = 0;
            // A bit that no frame here has.
            shadow_me_value = if npt && encrypted { 1 << 58 } else { 0 };
            kvm_ad_enabled = self.has_ad();
        }
    }

    /// `shadow_mmio_value`.
    pub fn mmio_value(self) -> u64 {
        if self.is_npt() {
            1 << 51 | 1
        } else {
            0b110
        }
    }

    /// Whether the CPU takes an entry for present.
    fn is_present(self, entry: u64) -> bool {
        if self.is_npt() {
            entry & 1 != 0
        } else {
            entry & 0b111 != 0
        }
    }

    /// Whether the CPU finds reserved bits set, or a misconfiguration: an entry for MMIO.
    fn is_reserved(self, entry: u64) -> bool {
        if self.is_npt() {
            entry & (1 << 51 | 1) == 1 << 51 | 1
        } else {
            entry & 0b111 == 0b110
        }
    }

    fn allows(self, entry: u64, access: Access) -> bool {
        match access {
            Access::Read => entry & 1 != 0,
            Access::Write => entry & 2 != 0,
            Access::Fetch if self.is_npt() => entry & 1 << 63 == 0,
            Access::Fetch => entry & 4 != 0,
        }
    }
}

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

impl Access {
    fn code(self) -> u64 {
        match self {
            Access::Read => 0,
            Access::Write => PFERR_WRITE,
            Access::Fetch => PFERR_FETCH,
        }
    }
}

/// Pages below an entry of a table of `level`.
fn pages(level: u32) -> u64 {
    kvm_c::model::HUGE_PAGES.pow(level - 1)
}

/// A translation in the TLB.
#[derive(Clone, Copy)]
struct Translation {
    gfn: u64,
    pages: u64,
    pfn: u64,
    entry: u64,
    dirty: bool,
}

/// An upper-level entry in a paging-structure cache: the table that it points to.
#[derive(Clone, Copy)]
struct Upper {
    gfn: u64,
    /// The level of the table.
    level: u32,
    table: *mut u64,
}

/// A CPU in the guest.
pub struct Cpu {
    format: Format,
    /// The root, an address.
    pub root: u64,
    tlb: Vec<Translation>,
    upper: Vec<Upper>,
    /// Frames whose D bit this CPU has set, for PML.
    pub log: Vec<u64>,
    /// In L2: the CPU logs no writes then.
    pub nested: bool,
    /// The same, in L2 without nested paging.
    pub guest_mode: bool,
    /// Whether executable huge pages are forbidden.
    pub no_executable_huge: bool,
}

impl Cpu {
    /// A CPU with empty caches.
    pub fn new(format: Format) -> Self {
        Cpu {
            format,
            root: INVALID_PAGE,
            tlb: Vec::new(),
            upper: Vec::new(),
            log: Vec::new(),
            nested: false,
            guest_mode: false,
            no_executable_huge: false,
        }
    }

    /// Empties the caches.
    pub fn flush(&mut self) {
        note("CPU: flushes its TLB", [0; 3]);
        self.tlb.clear();
        self.upper.clear();
    }

    fn invalidate(&mut self, gfn: u64) {
        self.tlb
            .retain(|t| !(t.gfn..t.gfn + t.pages).contains(&gfn));
        self.upper
            .retain(|u| !(u.gfn..u.gfn + pages(u.level + 1)).contains(&gfn));
    }

    /// Translates: the frame, or the error code of a fault.
    pub fn translate(&mut self, gfn: u64, access: Access) -> Result<u64, u64> {
        // Caches are small.
        if !self.tlb.is_empty() && chance(16) {
            let n = machine::choose(self.tlb.len() as u64) as usize;
            self.tlb.swap_remove(n);
        }

        let cached = self
            .tlb
            .iter()
            .find(|t| (t.gfn..t.gfn + t.pages).contains(&gfn))
            .copied();
        if let Some(t) = cached {
            if !self.format.allows(t.entry, access) {
                // It is dropped with the fault; or the CPU looks again.
                self.invalidate(gfn);
                if chance(2) {
                    return Err(access.code() | PFERR_PRESENT);
                }
            } else if access != Access::Write || t.dirty || !self.format.has_ad() {
                note("CPU: TLB hit", [gfn, t.pfn + (gfn - t.gfn), 0]);
                return Ok(t.pfn + (gfn - t.gfn));
            } else {
                self.tlb
                    .retain(|t| !(t.gfn..t.gfn + t.pages).contains(&gfn));
            }
        }
        let result = self.walk(gfn, access);
        if result.is_err() {
            self.invalidate(gfn);
        }
        result
    }

    fn walk(&mut self, gfn: u64, access: Access) -> Result<u64, u64> {
        'again: loop {
            let mut level = ROOT_LEVEL;
            let mut table = mem::va(self.root);
            let best = self
                .upper
                .iter()
                .filter(|u| (u.gfn..u.gfn + pages(u.level + 1)).contains(&gfn))
                .min_by_key(|u| u.level);

            if let Some(upper) = best.filter(|_| !chance(8)) {
                level = upper.level;
                table = upper.table;
                note(
                    "CPU: starts in a cached table",
                    [table as u64, level.into(), 0],
                );
            }
            loop {
                let index = gfn / pages(level) % pages(2);
                // SAFETY: Within the table.
                let slot = unsafe { table.add(index as usize) };
                let entry = mem::load(slot);

                if !self.format.is_present(entry) {
                    return Err(access.code());
                }
                if self.format.is_reserved(entry) {
                    return Err(access.code() | PFERR_RSVD);
                }
                let leaf = level == 1 || entry & LARGE != 0;
                if leaf && !self.format.allows(entry, access) {
                    return Err(access.code() | PFERR_PRESENT);
                }
                let mut new = entry;
                if self.format.has_ad() {
                    new |= self.format.accessed();
                    if leaf && access == Access::Write {
                        new |= self.format.dirty();
                    }
                }
                if new != entry {
                    let what = "CPU: sets A, D";
                    if !mem::update(what, slot, |now| (now == entry).then_some(new)).1 {
                        continue 'again;
                    }
                    if self.format == Format::EptPml
                        && !self.nested
                        && !self.guest_mode
                        && leaf
                        && (new ^ entry) & self.format.dirty() != 0
                    {
                        self.log.push(gfn);
                    }
                }
                if leaf {
                    return Ok(self.fill(gfn, level, new));
                }
                table = mem::va(new & FRAME);
                let below = gfn - gfn % pages(level);
                level -= 1;
                self.upper.retain(|u| u.level != level || u.gfn != below);
                if !chance(8) {
                    self.upper.push(Upper {
                        gfn: below,
                        level,
                        table,
                    });
                }
            }
        }
    }

    fn fill(&mut self, gfn: u64, level: u32, entry: u64) -> u64 {
        let first = gfn - gfn % pages(level);
        let pfn = (entry & FRAME) >> 12;

        if level > 1 && self.no_executable_huge && self.format.allows(entry, Access::Fetch) {
            fail(format!("gfn {gfn:#x} is executable in a huge page"));
        }
        let t = Translation {
            gfn: first,
            pages: pages(level),
            pfn,
            entry,
            dirty: entry & self.format.dirty() != 0,
        };
        self.tlb.push(t);
        note("CPU: walked", [gfn, pfn + (gfn - first), level.into()]);
        let _ = sched::me();
        pfn + (gfn - first)
    }
}
