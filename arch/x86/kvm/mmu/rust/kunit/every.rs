// SPDX-License-Identifier: GPL-2.0

//! KUnit: our SPTE functions against upstream's, on every combination of what they look at.
//!
//! A leaf depends on its level, the role of its table, the rights that are asked for, the fault,
//! the memslot, the entry that it replaces, and the format. All combinations are compared. Of
//! frames two are enough, one of memory and one of none: of the frame's number only its address is
//! used. Values that go into an MMIO SPTE are spread over it bit by bit, so they are compared bit
//! by bit.

use kernel::prelude::*;

use super::{
    Comparison,
    Oracle,
    Tally, //
};
use crate::{
    bindings,
    ops::spte as make,
    pure::{
        leaf,
        spte::{
            MMU_PRESENT,
            PAGE_SIZE,
            WRITABLE, //
        },
        Gfn,
        Hpa,
        Level,
        Role,
        Spte, //
    }, //
};

/// A frame at 1 GiB, which is memory where there are 2 GiB of it, and one beyond all memory.
const FRAMES: [u64; 2] = [1 << 18, 1 << 34];
/// Where a memory type is found, there is one for each of the last three bits.
const GFN: u64 = 3 << 18 | 5;
/// The C bit of memory encryption.
const ENCRYPTION: u64 = 1 << 47;

/// What [`compare`] has done.
#[derive(Default)]
struct Count {
    leaves: usize,
    splits: usize,
    others: usize,
}

fn bit(number: u64, n: u32) -> bool {
    number >> n & 1 != 0
}

/// Calls `f` for all values of `bits` bits.
fn for_all(bits: u32, f: impl FnMut(u64) -> Result) -> Result {
    (0..1u64 << bits).try_for_each(f)
}

/// All roles of tables of `level` that leaves differ by.
fn roles(oracle: &Oracle, level: Level, mut f: impl FnMut(Role) -> Result) -> Result {
    for_all(2, |n| {
        let (disabled, nested) = (bit(n, 0), bit(n, 1));

        // Where there are A/D bits, L1 on Intel may have none for L2.
        let is_possible = if oracle.masks.ad_enabled {
            !disabled || oracle.masks.nx == 0
        } else {
            disabled
        };
        if !is_possible {
            return Ok(());
        }
        let flags = u32::from(disabled) << 16 | u32::from(nested) << 17;
        f(Role(flags | leaf::ACC_READ << 8).at_level(level))
    })
}

/// The entries that a leaf may replace: they differ in three bits that matter.
fn old_spte(n: u64) -> Spte {
    let mut bits = 0;

    for (n_bit, mask) in [MMU_PRESENT, WRITABLE, PAGE_SIZE].into_iter().enumerate() {
        if bit(n, n_bit as u32) {
            bits |= mask;
        }
    }
    Spte(bits)
}

/// All leaves of `level`.
fn leaves(oracle: &Oracle, level: Level, tally: &mut Tally, count: &mut Count) -> Result {
    // Huge pages of a logged slot are never mapped writable.
    let logged = u32::from(level == Level::Page4K);

    roles(oracle, level, |role| {
        for_all(4 + 6 + logged + 3 + 1, |n| {
            let access = (n & 0xf) as u32;
            let old = old_spte(n >> 10);
            // No access at all is not asked for.
            if access == 0 {
                return Ok(());
            }
            let input = bindings::kvm_rs_leaf {
                role: role.0,
                access,
                gfn: GFN & level.pages().wrapping_neg(),
                pfn: FRAMES[usize::from(bit(n, 13))],
                old_spte: old.0,
                prefetch: bit(n, 4),
                synchronizing: bit(n, 5),
                host_writable: bit(n, 6),
                cpu_dirty_log: bit(n, 7),
                nx_opt_out: bit(n, 8),
                shadowed: bit(n, 9),
                dirty_log: logged != 0 && bit(n, 14),
            };
            let mut comparison = Comparison {
                oracle,
                input: &input,
                tally,
            };
            let leaf = comparison.leaf()?;

            count.leaves += 1;
            // The rest depends on the leaf, which each of these others leaves as it is.
            if old.0 != 0 || input.synchronizing || input.dirty_log {
                return Ok(());
            }
            comparison.predicates(leaf, level)?;
            for_all(3, |n| {
                let mut cleared = 0;
                for (at, mask) in [WRITABLE, oracle.masks.dirty, oracle.masks.mmu_writable]
                    .into_iter()
                    .enumerate()
                {
                    if bit(n, at as u32) {
                        cleared |= mask;
                    }
                }
                comparison.updates(leaf, cleared)
            })?;
            if input.pfn == FRAMES[0] {
                splits(&mut comparison, level, leaf, count)?;
            }
            Ok(())
        })
    })
}

/// Splits a leaf to each smaller size, for all rights of the table and at both its ends, and
/// recovers each huge page from what comes out.
fn splits(comparison: &mut Comparison<'_>, top: Level, huge: Spte, count: &mut Count) -> Result {
    let oracle = comparison.oracle;
    let masks = &oracle.masks;
    let Some(below) = top.down() else {
        return Ok(());
    };

    for_all(4 + 1, |n| {
        let role = Role((n as u32 & 0xf) << 8).at_level(below);
        let index = if bit(n, 4) { 511 } else { 0 };
        let small = make::make_small(oracle.vm(), huge, role, index, masks);
        let at = index as kernel::ffi::c_int;
        // SAFETY: The oracle is set up, and the leaf is huge.
        let theirs = unsafe { bindings::kvm_rs_oracle_small(huge.0, role.0, at) };
        comparison.check("small", huge.0, small.0, theirs)?;

        let ours = make::make_huge(oracle.vm(), small, top, masks);
        // SAFETY: The oracle is set up, the leaf is present, and the target is huge.
        let theirs = unsafe { bindings::kvm_rs_oracle_huge(small.0, top.raw()) };
        comparison.check("huge", small.0, ours.0, theirs)?;
        count.splits += 1;
        Ok(())
    })
}

/// Tables, and MMIO bit by bit.
fn others(oracle: &Oracle, tally: &mut Tally, count: &mut Count) -> Result {
    // Only shown if something differs.
    let input = bindings::kvm_rs_leaf {
        role: 0,
        access: 0,
        gfn: 0,
        pfn: 0,
        old_spte: 0,
        prefetch: false,
        synchronizing: false,
        host_writable: false,
        cpu_dirty_log: false,
        nx_opt_out: false,
        shadowed: false,
        dirty_log: false,
    };
    let mut comparison = Comparison {
        oracle,
        input: &input,
        tally,
    };

    for disabled in [false, true] {
        let pa = 1 << 30;
        let ours = leaf::table(Hpa(pa), disabled, &oracle.masks);
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_nonleaf(pa, disabled) };
        comparison.check("nonleaf", pa, ours.0, theirs)?;
        comparison.predicates(ours, Level::Page2M)?;
        count.others += 1;
    }
    for generation in (0..20).map(|n| (1u64 << n) >> 1) {
        // SAFETY: The oracle is set up.
        unsafe { bindings::kvm_rs_oracle_generation(generation) };
        for gfn in (0..40).map(|n| (1u64 << n) >> 1) {
            for access in 0..16 {
                let ours = make::make_mmio(oracle.vcpu(), Gfn(gfn), access, &oracle.masks);
                // SAFETY: The oracle is set up.
                let theirs = unsafe { bindings::kvm_rs_oracle_mmio(gfn, access) };
                comparison.check("mmio", gfn, ours.0, theirs)?;
                comparison.predicates(ours, Level::Page4K)?;
                count.others += 1;
            }
        }
    }
    Ok(())
}

/// All of a format, in each of its settings.
fn compare(name: &str, format: bindings::kvm_rs_format) -> Result {
    let encryption = u32::from(format == bindings::kvm_rs_format_KVM_RS_NPT);
    let mut tally = Tally::default();
    let mut count = Count::default();

    for_all(2 + encryption, |n| {
        let oracle = Oracle::begin(bindings::kvm_rs_oracle {
            format,
            me_value: if bit(n, 2) { ENCRYPTION } else { 0 },
            nx_huge_pages: bit(n, 0),
            l1tf: bit(n, 1),
        })?;

        for level in Level::LEAVES {
            leaves(&oracle, level, &mut tally, &mut count)?;
        }
        others(&oracle, &mut tally, &mut count)
    })?;
    pr_info!(
        "{}: all {} leaves, {} splits, {} others, {} comparisons with upstream\n",
        name,
        count.leaves,
        count.splits,
        count.others,
        tally.compared
    );
    Ok(())
}

#[kunit_tests(kvm_rust_mmu_every)]
mod tests {
    use super::*;

    #[test]
    fn every_npt_spte_is_upstreams() -> Result {
        compare("NPT", bindings::kvm_rs_format_KVM_RS_NPT)
    }

    #[test]
    fn every_ept_spte_with_ad_bits_is_upstreams() -> Result {
        compare("EPT with A/D", bindings::kvm_rs_format_KVM_RS_EPT_AD)
    }

    #[test]
    fn every_ept_spte_without_ad_bits_is_upstreams() -> Result {
        compare("EPT without A/D", bindings::kvm_rs_format_KVM_RS_EPT)
    }
}
