// SPDX-License-Identifier: GPL-2.0

//! KUnit: our SPTE functions against upstream's, on random input, in all formats.
//!
//! The oracle (`rust_oracle.c`) is upstream's `spte.c` itself, with masks of its own, so that EPT is
//! compared on an AMD machine as well. The input is random, the seed is fixed.

#![expect(unsafe_code)]

use kernel::prelude::*;

use crate::{
    bindings,
    pure::{
        leaf::{self, AdMode, LeafSpec},
        Gfn, Hpa, Index, Level, Masks, Pfn, Role, Spte,
    },
    sys::is_host_mmio,
};

/// How many random inputs each function gets in each format.
const INPUTS: usize = 100_000;

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn flip(&mut self) -> bool {
        self.next() >> 63 != 0
    }

    fn level(&mut self) -> Level {
        match self.below(3) {
            0 => Level::Page4K,
            1 => Level::Page2M,
            _ => Level::Page1G,
        }
    }
}

/// The oracle, set up for one format.
struct Oracle {
    masks: Masks,
    mmio_value: u64,
    nx_huge_pages: bool,
}

impl Oracle {
    fn new(format: bindings::kvm_rs_format, me_value: u64, nx_huge_pages: bool) -> Result<Self> {
        // SAFETY: KUnit runs one case at a time, and there is no other user.
        if !unsafe { bindings::kvm_rs_oracle_begin(format, me_value, nx_huge_pages) } {
            return Err(ENOMEM);
        }
        let mut raw = core::mem::MaybeUninit::uninit();
        // SAFETY: fills the structure.
        unsafe { bindings::kvm_rs_oracle_masks(raw.as_mut_ptr()) };
        // SAFETY: just filled.
        let raw: bindings::kvm_rs_masks = unsafe { raw.assume_init() };

        Ok(Oracle {
            masks: Masks {
                host_writable: raw.host_writable,
                mmu_writable: raw.mmu_writable,
                nx: raw.nx,
                user: raw.user,
                xs: raw.xs,
                xu: raw.xu,
                accessed: raw.accessed,
                dirty: raw.dirty,
                present: raw.present,
                me_value: raw.me_value,
                acc_track: raw.acc_track,
                mmio_mask: raw.mmio_mask,
                mmio_access: raw.mmio_access,
                nonpresent_or_rsvd: raw.nonpresent_or_rsvd,
                base_addr: raw.base_addr,
                ad_enabled: raw.ad_enabled,
                mmio_caching: raw.mmio_caching,
            },
            mmio_value: raw.mmio_value,
            nx_huge_pages,
        })
    }

    /// A role that the format allows.
    fn role(&self, random: &mut Random, level: Level) -> Role {
        // Access, A/D-disabled and guest mode; without A/D bits, they are always disabled.
        let mut word = (random.next() as u32) & (0xf << 8 | 1 << 17);

        if !self.masks.ad_enabled || (self.masks.nx == 0 && random.below(4) == 0) {
            word |= 1 << 16;
        }
        Role(word | 1 << 8).at_level(level)
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: begun in `new`.
        unsafe { bindings::kvm_rs_oracle_end() }
    }
}

/// A leaf made by both, and both answers on write protection.
fn make_both(oracle: &Oracle, random: &mut Random, level: Level) -> [(Spte, bool); 2] {
    let role = oracle.role(random, level);
    let masks = &oracle.masks;
    // The address space of a large machine, aligned as the level demands.
    let pfn = Pfn(random.below(1 << 34) & level.pages().wrapping_neg());
    let request = bindings::kvm_rs_leaf {
        role: role.0,
        access: role.access(),
        gfn: random.below(1 << 34) & level.pages().wrapping_neg(),
        pfn: pfn.0,
        old_spte: if random.flip() {
            Spte::NONPRESENT.0
        } else {
            random.next()
        },
        prefetch: random.flip(),
        synchronizing: random.flip(),
        host_writable: random.flip(),
        cpu_dirty_log: random.flip(),
        shadowed: random.below(4) == 0,
    };
    let mut protected_there = false;
    // SAFETY: the oracle is set up, and the pointers are valid.
    let theirs = unsafe { bindings::kvm_rs_oracle_leaf(&request, &mut protected_there) };

    let spec = LeafSpec {
        level,
        pfn,
        access: request.access,
        host_writable: request.host_writable,
        ad: if role.ad_disabled() {
            AdMode::Disabled
        } else if role.guest_mode() && request.cpu_dirty_log {
            AdMode::WriteProtect
        } else {
            AdMode::Enabled
        },
        prefetch: request.prefetch && !request.synchronizing,
        nx_huge_pages: oracle.nx_huge_pages,
        memory_type: 0,
        encrypted: masks.me_value != 0 && !is_host_mmio(pfn),
    };
    let (protected, may_write) = spec.protected(masks);
    let old = Spte(request.old_spte);
    let was_writable = old.is_leaf(level) && old.is_writable();
    let writable = may_write && (was_writable || !request.shadowed);
    let ours = spec.finish(protected, writable, masks);

    [
        (ours, may_write && !writable),
        (Spte(theirs), protected_there),
    ]
}

/// Compares all functions in one format; returns how many comparisons there were.
fn compare(
    format: bindings::kvm_rs_format,
    me_value: u64,
    nx_huge_pages: bool,
    seed: u64,
) -> Result<usize> {
    let oracle = Oracle::new(format, me_value, nx_huge_pages)?;
    let masks = &oracle.masks;
    let random = &mut Random(seed);
    let mut compared = 0;

    let mut check = |what: &str, ours: u64, theirs: u64, input: u64| -> Result {
        compared += 1;
        if ours != theirs {
            pr_err!(
                "{}({:#x}): ours {:#x} upstream {:#x}, format {} me {:#x} nx {}\n",
                what,
                input,
                ours,
                theirs,
                format,
                me_value,
                nx_huge_pages
            );
            return Err(EINVAL);
        }
        Ok(())
    };

    for _ in 0..INPUTS {
        let level = random.level();
        let [(leaf, protected), (their_leaf, their_protected)] = make_both(&oracle, random, level);

        check("make_spte", leaf.0, their_leaf.0, level as u64)?;
        check("wrprot", protected.into(), their_protected.into(), leaf.0)?;
        // SAFETY: the oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_atomic(leaf.0) };
        check(
            "atomic",
            leaf.is_volatile(masks).into(),
            theirs.into(),
            leaf.0,
        )?;
        // SAFETY: the oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_track(leaf.0) };
        check("track", leaf.mark_access_track(masks).0, theirs, leaf.0)?;

        if let Some(below) = level.down() {
            let role = oracle.role(random, below);
            let Some(index) = Index::new(random.below(512) as usize) else {
                return Err(EINVAL);
            };
            let small = leaf::split_child(leaf, role, below, index, nx_huge_pages, masks);
            // SAFETY: the oracle is set up, and the leaf is huge.
            let theirs = unsafe {
                bindings::kvm_rs_oracle_small(leaf.0, role.0, index.get() as kernel::ffi::c_int)
            };
            check("small", small.0, theirs, leaf.0)?;

            let huge = leaf::promoted(small, level, nx_huge_pages, masks);
            // SAFETY: the oracle is set up, the leaf is present, and the level is above 4 KiB.
            let theirs = unsafe { bindings::kvm_rs_oracle_huge(small.0, level.raw()) };
            check("huge", huge.0, theirs, small.0)?;
        }

        let pa = random.below(1 << 34) << 12;
        let disabled = random.flip();
        // SAFETY: the oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_nonleaf(pa, disabled) };
        check(
            "nonleaf",
            leaf::table(Hpa(pa), disabled, masks).0,
            theirs,
            pa,
        )?;

        let (gfn, access, generation) = (
            random.below(1 << 39),
            random.below(16) as u32,
            random.next(),
        );
        // SAFETY: the oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_mmio(gfn, access, generation) };
        let ours = leaf::mmio(Gfn(gfn), access, generation, oracle.mmio_value, masks);
        check("mmio", ours.0, theirs, gfn)?;
    }
    Ok(compared)
}

/// As [`compare`], with the NX huge page mitigation off and on, and with encrypted memory where the
/// vendor has it; says how much was compared.
fn compare_format(name: &str, format: bindings::kvm_rs_format, me_value: u64) -> Result {
    let mut compared = 0;

    for nx_huge_pages in [false, true] {
        compared += compare(format, 0, nx_huge_pages, 0x9e37_79b9_7f4a_7c15)?;
    }
    if me_value != 0 {
        compared += compare(format, me_value, false, 0xd1b5_4a32_d192_ed03)?;
    }
    pr_info!("{}: {} comparisons with upstream\n", name, compared);
    Ok(())
}

#[kunit_tests(kvm_rust_mmu)]
mod tests {
    use super::*;

    #[test]
    fn npt_sptes_are_upstreams() -> Result {
        compare_format("NPT", bindings::kvm_rs_format_KVM_RS_NPT, 1 << 47)
    }

    #[test]
    fn ept_sptes_with_ad_bits_are_upstreams() -> Result {
        compare_format("EPT with A/D", bindings::kvm_rs_format_KVM_RS_EPT_AD, 0)
    }

    #[test]
    fn ept_sptes_without_ad_bits_are_upstreams() -> Result {
        compare_format("EPT without A/D", bindings::kvm_rs_format_KVM_RS_EPT, 0)
    }

    #[test]
    fn role_bits_are_where_the_compiler_puts_them() {
        let word = |field, value| {
            // SAFETY: takes values only.
            Role(unsafe { bindings::kvm_rs_oracle_role(field, value) })
        };

        for raw in 1..=5 {
            let role = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_LEVEL, raw);
            assert_eq!(role.level(), Level::from_raw(raw));
        }
        for access in 0..16 {
            let role = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_ACCESS, access);
            assert_eq!(role.access(), access);
        }
        let invalid = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_INVALID, 1);
        assert!(invalid.invalid() && invalid == Role(0).as_invalid());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_AD_DISABLED, 1).ad_disabled());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_GUEST_MODE, 1).guest_mode());
        let mirror = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_MIRROR, 1);
        assert!(mirror.mirror() && mirror == Role(0).as_mirror());
        assert_eq!(
            word(bindings::kvm_rs_role_field_KVM_RS_ROLE_SMM, 1).as_id(),
            1
        );
        assert_eq!(Role(0).as_id(), 0);
    }
}
