// SPDX-License-Identifier: GPL-2.0

//! KUnit: our SPTE functions against upstream's, on random input, in all formats.
//!
//! The oracle (`rust_oracle.c`) is upstream's `spte.c` itself, with its own masks, so that EPT is
//! compared on an AMD machine as well. Both sides get the same fake VM. The input is random, the
//! seed is fixed. `kunit/every.rs` has what can be compared in full.

#![expect(unsafe_code)]

mod every;

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::{
    bindings,
    ops::spte::{
        self as make,
        LeafRequest, //
    },
    pte,
    pure::{
        leaf,
        spte,
        Gfn,
        Hpa,
        Level,
        Masks,
        Pfn,
        Role,
        Spte, //
    },
    sync::{
        Exclusive,
        Holder,
        Lock, //
    },
    sys::{
        is_host_mmio,
        Memslot,
        SlotGfn,
        Sp,
        Vcpu,
        Vm, //
    }, //
};

/// In how many settings a format is compared, and how many random inputs there are in each: 20,000
/// in all. What does not depend on frames and values of any kind is compared in full elsewhere.
const ROUNDS: usize = 20;
const INPUTS: usize = 1_000;

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

/// A way that an input can go. Each has to be met, or nothing was compared there.
#[derive(Clone, Copy)]
enum Case {
    WriteProtected,
    DirtyLogged,
    AccessTracked,
    Encrypted,
    ExecuteRegained,
    Volatile,
    Mmio,
    StaleWritable,
}

impl Case {
    const ALL: [(Case, &'static str); 8] = [
        (Case::WriteProtected, "write-protected"),
        (Case::DirtyLogged, "logged as dirty"),
        (Case::AccessTracked, "access-tracked"),
        (Case::Encrypted, "encrypted"),
        (Case::ExecuteRegained, "executable after a split only"),
        (Case::Volatile, "volatile"),
        (Case::Mmio, "MMIO"),
        (
            Case::StaleWritable,
            "in place of one with W that was not present",
        ),
    ];

    /// Whether SPTEs of the format can be so.
    fn is_possible(self, format: bindings::kvm_rs_format) -> bool {
        let npt = format == bindings::kvm_rs_format_KVM_RS_NPT;

        match self {
            Case::AccessTracked => !npt,
            Case::Encrypted => npt,
            _ => true,
        }
    }
}

/// What has been compared in a format.
#[derive(Default)]
struct Tally {
    compared: usize,
    inputs: usize,
    met: [usize; Case::ALL.len()],
}

impl Tally {
    fn meet(&mut self, case: Case, is_met: bool) {
        if let Some(count) = self.met.get_mut(case as usize) {
            *count += usize::from(is_met);
        }
    }
}

/// The oracle and its VM, set up for one format.
struct Oracle {
    setup: bindings::kvm_rs_oracle,
    vm: bindings::kvm_rs_fake,
    masks: Masks,
    mmio_value: u64,
}

impl Oracle {
    fn new(format: bindings::kvm_rs_format, random: &mut Random) -> Result<Self> {
        Oracle::begin(bindings::kvm_rs_oracle {
            format,
            // The C bit of memory encryption, which only AMD has.
            me_value: if format == bindings::kvm_rs_format_KVM_RS_NPT && random.flip() {
                1 << (40 + random.below(11))
            } else {
                0
            },
            nx_huge_pages: random.flip(),
            l1tf: random.flip(),
        })
    }

    /// Sets the oracle up.
    fn begin(setup: bindings::kvm_rs_oracle) -> Result<Self> {
        let mut vm = MaybeUninit::uninit();
        // SAFETY: KUnit runs one case at a time, and there is no other user.
        to_result(unsafe { bindings::kvm_rs_oracle_begin(&setup, vm.as_mut_ptr()) })?;
        // SAFETY: Filled, because there was no error.
        let vm = unsafe { vm.assume_init() };

        let mut raw = MaybeUninit::uninit();
        // SAFETY: Fills the structure.
        unsafe { bindings::kvm_rs_oracle_masks(raw.as_mut_ptr()) };
        // SAFETY: Just filled.
        let raw: bindings::kvm_rs_masks = unsafe { raw.assume_init() };

        Ok(Oracle {
            setup,
            vm,
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
        })
    }

    fn vcpu(&self) -> Vcpu<'_> {
        // SAFETY: The fake vCPU exists as long as the oracle, is this thread's, and has an MMU.
        unsafe { Vcpu::from_raw(self.vm.vcpu) }
    }

    fn vm(&self) -> Vm<'_> {
        // SAFETY: The fake VM exists as long as the oracle.
        unsafe { Vm::from_raw(self.vm.kvm) }
    }

    fn slot(&self) -> Memslot<'_> {
        // SAFETY: The fake memslot exists as long as the oracle.
        unsafe { Memslot::from_raw(self.vm.slot) }
    }

    fn sp(&self) -> Option<Sp<'_>> {
        // SAFETY: The fake page exists as long as the oracle. It has no table, and nothing that is
        // called here looks for one.
        NonNull::new(self.vm.sp).map(|sp| unsafe { Sp::from_raw(sp) })
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

    /// A leaf to ask both sides for.
    fn input(&self, random: &mut Random) -> (Level, bindings::kvm_rs_leaf) {
        let level = random.level();
        let aligned = level.pages().wrapping_neg();
        // Memory of any machine or, most likely, none of this one's.
        let frames = if random.flip() { 1 << 17 } else { 1 << 34 };

        (
            level,
            bindings::kvm_rs_leaf {
                role: self.role(random, level).0,
                // No access at all is not asked for.
                access: 1 + random.below(15) as u32,
                gfn: random.below(1 << 34) & aligned,
                pfn: random.below(frames) & aligned,
                old_spte: if random.flip() {
                    Spte::NONPRESENT.0
                } else {
                    random.next()
                },
                prefetch: random.flip(),
                synchronizing: random.flip(),
                host_writable: random.below(4) != 0,
                cpu_dirty_log: random.flip(),
                nx_opt_out: random.below(4) == 0,
                shadowed: random.below(4) == 0,
                // Huge pages of a logged slot are never mapped writable.
                dirty_log: level == Level::Page4K && random.flip(),
            },
        )
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: Begun in `new`.
        unsafe { bindings::kvm_rs_oracle_end() }
    }
}

/// One input, and the results of both sides for it.
struct Comparison<'a> {
    oracle: &'a Oracle,
    input: &'a bindings::kvm_rs_leaf,
    tally: &'a mut Tally,
}

impl Comparison<'_> {
    /// Compares two results of the function `what` for the SPTE or number `of`.
    fn check(&mut self, what: &str, of: u64, ours: u64, theirs: u64) -> Result {
        self.tally.compared += 1;
        if ours == theirs {
            return Ok(());
        }

        let setup = &self.oracle.setup;
        let input = self.input;
        pr_err!(
            "{}({:#x}): ours {:#x}, upstream's {:#x}\n",
            what,
            of,
            ours,
            theirs
        );
        pr_err!(
            "format {} me_value {:#x} nx_huge_pages {} l1tf {}\n",
            setup.format,
            setup.me_value,
            setup.nx_huge_pages,
            setup.l1tf
        );
        pr_err!(
            "role {:#x} access {:#x} gfn {:#x} pfn {:#x} old {:#x} prefetch {} sync {}\n",
            input.role,
            input.access,
            input.gfn,
            input.pfn,
            input.old_spte,
            input.prefetch,
            input.synchronizing
        );
        pr_err!(
            "host_writable {} cpu_dirty_log {} nx_opt_out {} shadowed {} dirty_log {}\n",
            input.host_writable,
            input.cpu_dirty_log,
            input.nx_opt_out,
            input.shadowed,
            input.dirty_log
        );
        Err(EINVAL)
    }

    /// The leaf, whether it had to be write-protected, and the dirty log.
    fn leaf(&mut self) -> Result<Spte> {
        let (oracle, input) = (self.oracle, self.input);
        let mut their_protected = false;
        // Upstream takes any value with W for a leaf that was writable, also one that is not
        // present, such as an MMIO SPTE out of date, and then makes a leaf writable whose frame is
        // shadowed. So it is asked what it makes in place of an empty SPTE: the same, but that it
        // looks.
        let old = Spte(input.old_spte);
        let stale = !old.is_present() && old.is_writable();
        let asked = bindings::kvm_rs_leaf {
            old_spte: if stale {
                Spte::NONPRESENT.0
            } else {
                input.old_spte
            },
            ..*input
        };
        // SAFETY: The oracle is set up.
        unsafe { bindings::kvm_rs_oracle_prepare(input) };
        // SAFETY: The oracle is set up, and the pointers are valid.
        let theirs = unsafe { bindings::kvm_rs_oracle_leaf(&asked, &mut their_protected) };
        // SAFETY: The oracle is set up.
        let their_dirty = unsafe { bindings::kvm_rs_oracle_dirty() };

        // SAFETY: The oracle is set up.
        unsafe { bindings::kvm_rs_oracle_prepare(input) };
        let request = LeafRequest {
            page: SlotGfn::new(oracle.slot(), Gfn(input.gfn)).ok_or(EINVAL)?,
            access: input.access,
            pfn: Pfn(input.pfn),
            old: Spte(input.old_spte),
            prefetch: input.prefetch,
            synchronizing: input.synchronizing,
            host_writable: input.host_writable,
        };
        let sp = oracle.sp().ok_or(EINVAL)?;
        let lock = Lock::new(oracle.vm(), Holder::Caller);
        let make_leaf = |lock: &Exclusive<'_>| {
            make::make_leaf(lock, oracle.vcpu(), sp, &request, &oracle.masks)
        };
        // SAFETY: Nobody else can reach the fake VM.
        let (ours, protected) = unsafe { Exclusive::with_unreachable(lock, make_leaf) };
        // Upstream does this inside, before the leaf is installed; here it may have to come after.
        make::log_writable(oracle.vm(), request.page, ours);
        // SAFETY: The oracle is set up.
        let dirty = unsafe { bindings::kvm_rs_oracle_dirty() };

        self.check("make_spte", input.pfn, ours.0, theirs)?;
        self.check("wrprot", ours.0, protected.into(), their_protected.into())?;
        self.check("dirty", ours.0, dirty.into(), their_dirty.into())?;

        let encrypted = oracle.setup.me_value != 0 && !is_host_mmio(request.pfn);
        self.tally.meet(Case::WriteProtected, protected);
        self.tally.meet(Case::StaleWritable, stale && protected);
        self.tally.meet(Case::DirtyLogged, dirty);
        self.tally.meet(Case::Encrypted, encrypted);
        Ok(ours)
    }

    /// What may happen to a leaf, here to `leaf` and to one like it with `cleared` bits cleared.
    fn updates(&mut self, leaf: Spte, cleared: u64) -> Result {
        let masks = &self.oracle.masks;
        let variant = leaf.without(cleared & (spte::WRITABLE | masks.dirty));
        let volatile = variant.is_volatile(masks);
        let tracked = pte::mark_access_track(variant, masks);

        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_atomic(variant.0) };
        self.check("atomic", variant.0, volatile.into(), theirs.into())?;
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_track(variant.0) };
        self.check("track", variant.0, tracked.0, theirs)?;
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_untrack(tracked.0) };
        let ours = tracked.restore_access_track(masks);
        self.check("untrack", tracked.0, ours.0, theirs)?;

        let new = leaf.without(cleared & masks.mmu_writable);
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_flush(leaf.0, new.0) };
        let ours = leaf.change_needs_flush(new, masks);
        self.check("flush", new.0, ours.into(), theirs.into())?;

        self.tally.meet(Case::Volatile, volatile);
        self.tally
            .meet(Case::AccessTracked, tracked.is_access_tracked(masks));
        Ok(())
    }

    /// Splits a huge leaf down to 4 KiB, and recovers from each of the leaves each of the levels
    /// above it.
    fn split(&mut self, random: &mut Random, top: Level, leaf: Spte) -> Result {
        let oracle = self.oracle;
        let masks = &oracle.masks;
        let (mut level, mut huge) = (top, leaf);

        while let Some(below) = level.down() {
            let role = oracle.role(random, below);
            let index = random.below(512);
            let small = make::make_small(oracle.vm(), huge, role, index as usize, masks);
            // SAFETY: The oracle is set up, and the leaf is huge.
            let theirs = unsafe {
                bindings::kvm_rs_oracle_small(huge.0, role.0, index as kernel::ffi::c_int)
            };
            self.check("small", huge.0, small.0, theirs)?;
            self.predicates(small, below)?;

            let regained = leaf::granted_access(small, masks) & !leaf::granted_access(huge, masks);
            self.tally
                .meet(Case::ExecuteRegained, regained & leaf::ACC_EXEC != 0);

            let mut above = below;
            while let Some(target) = above.up().filter(|target| *target <= top) {
                let ours = make::make_huge(oracle.vm(), small, target, masks);
                // SAFETY: The oracle is set up, the leaf is present, and the target is huge.
                let theirs = unsafe { bindings::kvm_rs_oracle_huge(small.0, target.raw()) };
                self.check("huge", small.0, ours.0, theirs)?;
                above = target;
            }
            (level, huge) = (below, small);
        }
        Ok(())
    }

    /// What is no leaf: tables and MMIO.
    fn others(&mut self, random: &mut Random) -> Result {
        let oracle = self.oracle;
        let masks = &oracle.masks;
        // The oracle takes a pointer, so it has to be an address that could be this machine's.
        let pa = random.below(1 << 18) << 12;
        let disabled = random.flip();
        let ours = leaf::table(Hpa(pa), disabled, masks);
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_nonleaf(pa, disabled) };
        self.check("nonleaf", pa, ours.0, theirs)?;
        self.predicates(ours, Level::Page2M)?;

        let (gfn, access) = (random.below(1 << 39), random.below(16) as u32);
        // SAFETY: The oracle is set up.
        unsafe { bindings::kvm_rs_oracle_generation(random.next()) };
        let ours = make::make_mmio(oracle.vcpu(), Gfn(gfn), access, masks);
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_mmio(gfn, access) };
        self.check("mmio", gfn, ours.0, theirs)?;
        self.predicates(ours, Level::Page4K)?;
        self.tally
            .meet(Case::Mmio, ours.is_mmio(oracle.mmio_value, masks));
        Ok(())
    }

    /// All that can be asked of any value at all.
    fn predicates(&mut self, value: Spte, level: Level) -> Result {
        let oracle = self.oracle;
        let masks = &oracle.masks;
        let present = value.is_present();
        // In the order of enum kvm_rs_predicate.
        let ours = [
            present,
            value.is_leaf(level),
            value.is_large(),
            value.is_writable(),
            value.is_mmu_writable(masks),
            value.is_accessed(masks),
            value.is_frozen(),
            value.is_mmio(oracle.mmio_value, masks),
            value.is_ve_possible(masks),
            present && value.ad_enabled(),
            present && value.ad_need_write_protect(),
            present && value.is_access_tracked(masks),
        ]
        .iter()
        .rfold(0, |all, is| all << 1 | u64::from(*is));
        // SAFETY: The oracle is set up.
        let theirs = unsafe { bindings::kvm_rs_oracle_predicates(value.0, level.raw()) };
        self.check("predicates", value.0, ours, theirs.into())?;

        // SAFETY: Takes a value only.
        let theirs = unsafe { bindings::kvm_rs_oracle_pfn(value.0) };
        self.check("pfn", value.0, value.pfn(masks).0, theirs)?;
        if present {
            let ours = leaf::granted_access(value, masks);
            // SAFETY: The oracle is set up.
            let theirs = unsafe { bindings::kvm_rs_oracle_access(value.0) };
            self.check("access", value.0, ours.into(), theirs.into())?;
        }
        Ok(())
    }
}

/// Compares all functions in one format, in random settings, and says how much that was.
fn compare(name: &str, format: bindings::kvm_rs_format, seed: u64) -> Result {
    let random = &mut Random(seed);
    let mut tally = Tally::default();

    for _ in 0..ROUNDS {
        let oracle = Oracle::new(format, random)?;

        for _ in 0..INPUTS {
            let (level, input) = oracle.input(random);
            let mut comparison = Comparison {
                oracle: &oracle,
                input: &input,
                tally: &mut tally,
            };
            let leaf = comparison.leaf()?;

            comparison.predicates(leaf, level)?;
            comparison.updates(leaf, random.next())?;
            comparison.split(random, level, leaf)?;
            comparison.others(random)?;
            let any = [Spte(0), Spte::NONPRESENT, Spte::FROZEN, Spte(random.next())];
            for value in any {
                comparison.predicates(value, level)?;
            }
            tally.inputs += 1;
        }
    }

    for ((case, what), met) in Case::ALL.iter().zip(tally.met) {
        // One in a thousand inputs, at the very least.
        if case.is_possible(format) && met < tally.inputs / 1000 {
            pr_err!("{}: only {} SPTEs were {}\n", name, met, what);
            return Err(EINVAL);
        }
    }
    pr_info!(
        "{}: {} random inputs, {} comparisons with upstream\n",
        name,
        tally.inputs,
        tally.compared
    );
    Ok(())
}

#[kunit_tests(kvm_rust_mmu)]
mod tests {
    use super::*;

    #[test]
    fn npt_sptes_are_upstreams() -> Result {
        compare(
            "NPT",
            bindings::kvm_rs_format_KVM_RS_NPT,
            0x9e37_79b9_7f4a_7c15,
        )
    }

    #[test]
    fn ept_sptes_with_ad_bits_are_upstreams() -> Result {
        compare(
            "EPT with A/D",
            bindings::kvm_rs_format_KVM_RS_EPT_AD,
            0xd1b5_4a32_d192_ed03,
        )
    }

    #[test]
    fn ept_sptes_without_ad_bits_are_upstreams() -> Result {
        compare(
            "EPT without A/D",
            bindings::kvm_rs_format_KVM_RS_EPT,
            0x2545_f491_4f6c_dd1d,
        )
    }

    /// The frame is shadowed, so it is write-protected, also if MMIO was cached there before.
    #[test]
    fn a_stale_mmio_spte_was_not_writable() -> Result {
        let random = &mut Random(0x9e6c_63d0_876a_68ee);

        for format in [
            bindings::kvm_rs_format_KVM_RS_NPT,
            bindings::kvm_rs_format_KVM_RS_EPT_AD,
            bindings::kvm_rs_format_KVM_RS_EPT,
        ] {
            let oracle = Oracle::new(format, random)?;
            let (gfn, all) = (
                Gfn(0x12345),
                leaf::ACC_READ | leaf::ACC_WRITE | leaf::ACC_EXEC,
            );
            let old = make::make_mmio(oracle.vcpu(), gfn, all, &oracle.masks);
            let input = bindings::kvm_rs_leaf {
                role: Role(all << 8 | 1 << 8).at_level(Level::Page4K).0,
                access: all,
                gfn: gfn.0,
                pfn: 0x6789a,
                old_spte: old.0,
                prefetch: false,
                synchronizing: false,
                host_writable: true,
                cpu_dirty_log: false,
                nx_opt_out: false,
                shadowed: true,
                dirty_log: false,
            };
            // This moves the memslot to where `gfn` is.
            // SAFETY: The oracle is set up.
            unsafe { bindings::kvm_rs_oracle_prepare(&input) };
            let request = LeafRequest {
                page: SlotGfn::new(oracle.slot(), gfn).ok_or(EINVAL)?,
                access: all,
                pfn: Pfn(input.pfn),
                old,
                prefetch: false,
                synchronizing: false,
                host_writable: true,
            };

            assert!(old.is_mmio(oracle.mmio_value, &oracle.masks));
            assert!(!old.is_present() && old.is_writable());
            let sp = oracle.sp().ok_or(EINVAL)?;
            let lock = Lock::new(oracle.vm(), Holder::Caller);
            let make_leaf = |lock: &Exclusive<'_>| {
                make::make_leaf(lock, oracle.vcpu(), sp, &request, &oracle.masks)
            };
            // SAFETY: Nobody else can reach the fake VM.
            let (leaf, protected) = unsafe { Exclusive::with_unreachable(lock, make_leaf) };
            assert!(protected && !leaf.is_writable() && !leaf.is_mmu_writable(&oracle.masks));
        }
        Ok(())
    }

    #[test]
    fn role_bits_are_where_the_compiler_puts_them() {
        let word = |field, value| {
            // SAFETY: Takes values only.
            Role(unsafe { bindings::kvm_rs_oracle_role(field, value) })
        };

        for raw in 1..=5 {
            let role = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_LEVEL, raw);
            assert_eq!(role.level(), Level::from_raw(raw));
            for below in 1..raw {
                let child = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_LEVEL, below);
                assert_eq!(
                    Level::from_raw(below).map(|l| role.at_level(l)),
                    Some(child)
                );
            }
        }
        for access in 0..16 {
            let role = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_ACCESS, access);
            assert_eq!(role.access(), access);
        }
        let invalid = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_INVALID, 1);
        assert!(invalid.invalid() && invalid == Role(0).as_invalid());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_AD_DISABLED, 1).ad_disabled());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_GUEST_MODE, 1).guest_mode());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_DIRECT, 1).direct());
        assert!(word(bindings::kvm_rs_role_field_KVM_RS_ROLE_PASSTHROUGH, 1).passthrough());
        assert!(!Role(0).direct() && !Role(0).passthrough());
        let mirror = word(bindings::kvm_rs_role_field_KVM_RS_ROLE_MIRROR, 1);
        assert!(mirror.mirror() && mirror == Role(0).as_mirror());
        assert_eq!(
            word(bindings::kvm_rs_role_field_KVM_RS_ROLE_SMM, 1).as_id(),
            1
        );
        assert_eq!(Role(0).as_id(), 0);
    }
}
