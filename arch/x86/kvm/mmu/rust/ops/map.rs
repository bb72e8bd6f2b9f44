// SPDX-License-Identifier: GPL-2.0

//! Mapping a page on a fault of the guest; `kvm_tdp_mmu_map()`.
//!
//! Faults run in parallel, with `mmu_lock` held for read. A fault walks down to its goal level,
//! adds missing tables, splits larger pages, and installs the leaf. It never waits: if somebody
//! else changes an entry that it wants to change, or has frozen one on its path, the guest retries,
//! and usually finds that the work is done.

use crate::{
    change::Lost,
    ops::{
        split,
        spte::{
            log_writable,
            make_leaf,
            make_mmio,
            without_access,
            LeafRequest, //
        }, //
    },
    page::OwnedSp,
    pte::View,
    pure::{
        leaf,
        Entry,
        Level,
        Masks,
        Spte, //
    },
    sync::{
        MmuLock,
        PagesLock,
        Shared, //
    },
    sys::{
        stats::Event,
        trace,
        Fault,
        SlotGfn,
        Sp,
        Vcpu,
        Vm, //
    },
    walk::{
        Descent,
        Step, //
    }, //
};

/// How a fault ended; C's `RET_PF_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RetPf {
    /// Nothing was decided; let the guest try again.
    Retry,
    /// The access is to be emulated: it is MMIO, or nothing can map it.
    Emulate,
    /// The page has to stay write-protected; emulate the write, or unprotect the page.
    WriteProtected,
    /// The page is mapped now.
    Fixed,
    /// The page was mapped already.
    Spurious,
}

/// Resolves `fault` in the tree of `root`.
///
/// What the root does not reach cannot be mapped, however often the guest tries: it is emulated, as
/// an access beyond the host's MAXPHYADDR is. Faults of vCPUs end so before they get here (see
/// `kvm_root_reaches()` in `mmu.c`).
pub(crate) fn map(vcpu: Vcpu<'_>, fault: Fault<'_>, lock: &Shared<'_>, root: Sp<'_>) -> RetPf {
    kvm_mmu_warn_on!(root.role().invalid());
    kvm_mmu_warn_on!(vcpu.vm() != lock.vm());

    fault.adjust_for_host(lock, vcpu);
    while let (Some(slot), Some(level)) = (fault.slot(), fault.goal_level()) {
        let gfn = fault.gfn().round_down(level);

        if Vm::other_slots_allow(lock, slot, gfn, level) {
            break;
        }
        fault.lower_goal();
    }
    trace::spte_requested(fault, root.role().access());

    let masks = lock.vm().masks();
    let mut walk = Descent::new(lock, root, Level::Page4K, fault.gfn(), masks);

    // A step is passed on by value, so that the way down needs no copy of it in memory.
    while let Some(step) = walk.next() {
        if fault.nx_huge_page_workaround_enabled() {
            fault.adjust_for_nx(&step.view);
        }

        let entry = step.view.entry(masks);
        if entry == Entry::Frozen {
            // Do not even allocate.
            return RetPf::Retry;
        }
        // A memslot was made after this fault had looked for one, and another CPU has mapped the
        // page. An MMIO SPTE must not replace that leaf: nobody would flush, and with mmu_lock held
        // for read a leaf of 4 KiB is removed only together with its table. Look for the memslot
        // again.
        if matches!(entry, Entry::Leaf(_)) && fault.slot().is_none() {
            return RetPf::Retry;
        }
        if fault.goal_level() == Some(step.view.level()) {
            if is_one_table(&step.view, masks) {
                return install_leaf(vcpu, fault, step, masks);
            }
            fault.lower_goal();
        }

        match entry {
            Entry::Table(_) => {}
            Entry::NonPresent | Entry::Leaf(_) | Entry::Frozen => {
                if add_table(vcpu, fault, step, entry, masks).is_err() {
                    return RetPf::Retry;
                }
            }
        }
    }

    if !root.reach().contains(fault.gfn()) {
        return RetPf::Emulate;
    }
    // The walk ended above the goal: an entry was frozen or zapped just as we wanted to descend.
    RetPf::Retry
}

/// Whether replacing the entry tears down at most one table. A fault doesn't yield, and 512 tables
/// with 512 entries each would take too long. Such a fault maps a page of the next smaller size
/// instead of one of these tables; the last of these faults finds that no table is left.
fn is_one_table(view: &View<'_>, masks: &Masks) -> bool {
    view.level() <= Level::Page2M
        || view
            .child(masks)
            .is_none_or(|table| table.first_child(masks).is_none())
}

/// Puts a table where there is none, or where a page is mapped larger than the fault wants.
fn add_table(
    vcpu: Vcpu<'_>,
    fault: Fault<'_>,
    mut step: Step<'_, Shared<'_>>,
    entry: Entry,
    masks: &Masks,
) -> Result<(), Lost> {
    let vm = step.lock.vm();
    let level = step.view.level();
    let role = step.view.sp().role();
    let mut page = OwnedSp::from_vcpu(vcpu);

    if role.mirror() {
        page.add_external_table(vcpu);
    }
    page.set_nx_huge_page_disallowed(fault.huge_page_disallowed());

    let linked = if let Entry::Leaf(_) = entry {
        if role.mirror() {
            // TDX has no huge pages to split.
            vm.bugged();
        }
        vcpu.note_fault_split();
        split::split(page.into_blank(), &mut step, Event::FaultSplit, masks).ok()
    } else {
        page.link(&mut step, masks).ok()
    };
    // A page that came back was freed.
    let sp = linked.ok_or(Lost)?;

    if fault.huge_page_disallowed() && fault.req_level() >= Some(level) {
        sp.track_nx_huge_page(&PagesLock::new(vm));
    }
    Ok(())
}

/// Installs the leaf that the fault asks for.
fn install_leaf(
    vcpu: Vcpu<'_>,
    fault: Fault<'_>,
    mut step: Step<'_, Shared<'_>>,
    masks: &Masks,
) -> RetPf {
    let vm = step.lock.vm();
    let sp = step.view.sp();
    let access = sp.role().access();
    let old = step.view.entry(masks);
    let old_spte = step.view.spte();

    if warn_on_once!(sp.role().level() != fault.goal_level()) {
        return RetPf::Retry;
    }

    if let Entry::Leaf(pfn) = old {
        if fault.prefetch() || !is_denied(vcpu, fault, old_spte, masks) {
            warn_on_once!(pfn != fault.pfn());
            return RetPf::Spurious;
        }
    }

    let page = match fault.slot() {
        None => None,
        Some(slot) => {
            let page = SlotGfn::new(slot, step.view.gfn());
            if page.is_none() {
                vm.bugged();
                return RetPf::Retry;
            }
            page
        }
    };
    let (new, write_protected) = match page {
        None => (make_mmio(vcpu, step.view.gfn(), access, masks), false),
        Some(page) => {
            let request = LeafRequest {
                page,
                access,
                pfn: fault.pfn(),
                old: old_spte,
                prefetch: fault.prefetch(),
                synchronizing: false,
                host_writable: fault.map_writable(),
            };
            let (leaf, write_protected) = make_leaf(step.lock, vcpu, sp, &request, masks);

            if fault.prefetch() {
                let leaf = without_access(vm, page.slot(), sp.role(), leaf, masks);
                (leaf, write_protected)
            } else {
                (leaf, write_protected)
            }
        }
    };

    // D may be all that tells of a write.
    let new = match old {
        Entry::Leaf(_) if vm.logs_by_dirty_bits() => new.with_from(old_spte, masks.dirty),
        _ => new,
    };

    let mut outcome = RetPf::Fixed;
    if new == old_spte {
        outcome = RetPf::Spurious;
    } else if step.set(new, masks).is_err() {
        return RetPf::Retry;
    } else {
        let flush = match old {
            // A huge page replaced a table: CPUs may have cached its entries.
            Entry::Table(_) => true,
            // Upstream warns if it has to. But a fault for reading may have been told that the
            // host's page is read-only, and be overtaken by one for writing, and by aging.
            Entry::Leaf(_) => old_spte.change_needs_flush(new, masks),
            Entry::NonPresent | Entry::Frozen => false,
        };
        if flush {
            vm.flush_tlbs_range(step.view.range());
        }
    }

    if let (Some(page), false) = (page, fault.prefetch()) {
        log_writable(vm, page, new);
    }

    if write_protected && fault.write() {
        // Returning to the guest would only repeat the fault.
        outcome = RetPf::WriteProtected;
    }

    if new.is_mmio(vm.mmio_value(), masks) {
        vcpu.count_mmio_spte();
        trace::mark_mmio_spte(step.view.sptep(), step.view.gfn(), new);
        outcome = RetPf::Emulate;
    } else {
        trace::set_spte(step.view.level(), step.view.gfn(), step.view.sptep());
    }
    outcome
}

/// Whether `spte` does not allow the access that faulted; `spte_permission_fault()`.
fn is_denied(vcpu: Vcpu<'_>, fault: Fault<'_>, spte: Spte, masks: &Masks) -> bool {
    let denied = vcpu.denied_access(fault.error_code());

    (denied >> leaf::granted_access(spte, masks)) & 1 != 0
}
