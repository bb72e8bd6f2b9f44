// SPDX-License-Identifier: GPL-2.0

//! What is exact where nobody else is there: aging tells what was accessed, and clears that;
//! userspace gets the size of page that it asks for, and no empty table stays; a fault maps a page
//! as large as the host does; and all is mapped that a fault or KVM_PRE_FAULT_MEMORY may map with a
//! page.

use kvm_c::{
    bindings::*,
    host::Host,
    memory_type,
    model::{
        notifier,
        pages,
        shadow,
        slots,
        split::{
            self,
            Request, //
        },
        tables,
        HUGE_PAGES, //
    }, //
};
use machine::{
    chance,
    fail, //
};

use crate::{
    hw::Format,
    parties,
    world::{
        kvm,
        world, //
    }, //
};

/// Whether a leaf that maps a frame from `start` on, before `end`, says that it was accessed.
fn is_young(start: u64, end: u64) -> bool {
    // SAFETY: The format is constant while there is a VM.
    let accessed = unsafe { shadow_accessed_mask };
    let is_aged = |as_id, first: u64, last: u64| {
        let gfn = first.max(start);

        // Aging concerns memslots.
        (gfn..last.min(end)).any(|gfn| !slots::of(kvm(), as_id, gfn).is_null())
    };
    let leaves = tables::leaves(kvm()).into_iter();
    let mut young = leaves.filter(|leaf| leaf.overlaps(start, end) && leaf.spte & accessed != 0);
    let shadow = shadow::leaves(kvm()).into_iter();
    let mut shadow = shadow.filter(|(level, gfn, spte)| {
        *gfn < end && *gfn + pages(*level) > start && spte & accessed != 0
    });

    young.any(|leaf| is_aged(leaf.as_id, leaf.gfn, leaf.gfn + pages(leaf.level)))
        || shadow.any(|(level, gfn, _)| is_aged(0, gfn, gfn + pages(level)))
}

/// Checks both for some of the guest's pages.
pub fn check() {
    for gfn in world().plan.hot.iter().copied().take(2) {
        age(gfn);
        if chance(4) {
            resize(gfn);
        }
        if chance(4) {
            map(gfn, chance(2));
        }
        if parties::GIANTS && chance(4) {
            map_giant(gfn);
        }
    }
}

/// Has a page and its neighbours mapped, after a notifier has unmapped all around.
fn map(gfn: u64, ahead: bool) {
    /// `HostPages::MAX`.
    const MAX: u64 = 128;
    const SOME: u64 = 100;
    let (start, end) = (Host::region(gfn), Host::region(gfn) + HUGE_PAGES);
    let plan = &world().plan;
    let (base, npages) = (plan.base_gfn, plan.npages);

    // These pages are not mapped together with others; and a table of 8 entries is less than what a
    // fault may map.
    if plan.private || plan.read_only || u64::from(kvm().fault_around) > HUGE_PAGES {
        return;
    }
    parties::invalidate(start, end);
    notifier::invalidate_range_end(kvm());
    let Some(as_id) = parties::map_alone(gfn, ahead.then_some(SOME)) else {
        return;
    };
    let leaves = tables::leaves(kvm()).into_iter();
    let mapped: Vec<u64> = leaves
        .filter(|leaf| leaf.as_id == as_id && leaf.level == 1)
        .map(|leaf| leaf.gfn)
        .collect();
    // By a huge page, or there is no memslot.
    if !mapped.contains(&gfn) {
        return;
    }
    let window = if ahead {
        gfn..(gfn + SOME).min(end).min(base + npages)
    } else {
        let pages = 1 << u64::from(kvm().fault_around).clamp(1, MAX).ilog2();
        let first = gfn - gfn % pages;
        // What is mapped is in a slot.
        let slot = slots::frames(slots::of(kvm(), as_id, gfn));

        first.max(slot.start)..(first + pages).min(slot.end)
    };
    // MMIO of the host takes a fault of its own, where that is noted.
    let is_alone = |gfn| memory_type::is_mmio(kvm().host.lookup(gfn).0);
    if plan.format == Format::Npt && window.clone().any(is_alone) {
        return;
    }
    for other in window {
        if !mapped.contains(&other) {
            fail(format!(
                "gfn {gfn:#x} is mapped, by a fault: {}, and {other:#x} not with it",
                !ahead
            ));
        }
    }
}

/// Whether all frames from `start` on, before `end`, are the slot's.
fn holds(slot: *mut kvm_memory_slot, start: u64, end: u64) -> bool {
    let slot = slots::frames(slot);

    start >= slot.start && end <= slot.end
}

/// Has a page of 1 GiB of the host's mapped, after all around has been recovered and unmapped.
fn map_giant(gfn: u64) {
    let start = gfn - gfn % pages(3);
    let end = start + pages(3);

    for region in (start..end).step_by(HUGE_PAGES as usize) {
        for as_id in 0..2 {
            split::split_step(kvm(), as_id, region, Request::Recover);
        }
    }
    parties::invalidate(start, end);
    notifier::invalidate_range_end(kvm());
    // A table that stays may be one of NX huge pages.
    let tables = tables::tables(kvm());
    let Some(as_id) = parties::map_alone(gfn, None) else {
        return;
    };
    let slot = slots::of(kvm(), as_id, gfn);
    let is_in_slot = !slot.is_null() && holds(slot, start, end);
    let host = &mut kvm().host;
    let mut tables = tables
        .into_iter()
        .filter(|table| table.level < 3 && (start..end).contains(&table.gfn));
    let is_expected = is_in_slot
        && host.level(gfn) == 3
        && !host.is_mixed(gfn, 3)
        && !tables.any(|table| table.as_id == as_id);
    let mut leaves = tables::leaves(kvm()).into_iter();

    if is_expected && !leaves.any(|leaf| (leaf.as_id, leaf.level, leaf.gfn) == (as_id, 3, start)) {
        fail(format!(
            "gfn {gfn:#x} is in a page of 1 GiB of the host's, and a fault maps a smaller one"
        ));
    }
}

/// Has the pages around `gfn` recovered, and then split.
fn resize(gfn: u64) {
    let as_id = usize::from(world().plan.smm && chance(2));
    let slot = slots::of(kvm(), as_id, gfn);

    if slot.is_null() {
        return;
    }
    // SAFETY: A slot that is found exists.
    let flags = unsafe { (*slot).flags };
    let (start, end) = (Host::region(gfn), Host::region(gfn) + HUGE_PAGES);
    let is_in_slot = holds(slot, start, end);
    let host = &mut kvm().host;
    let is_huge = host.level(gfn) > 1 && !host.is_mixed(gfn, 2);
    let around = || {
        let leaves = tables::leaves(kvm()).into_iter();
        leaves.filter(|leaf| leaf.as_id == as_id && leaf.overlaps(start, end))
    };

    if flags & KVM_MEM_GUEST_MEMFD == 0 && is_in_slot {
        // A notifier leaves tables that are empty.
        if chance(2) {
            parties::invalidate(start, end);
            notifier::invalidate_range_end(kvm());
        }
        let result = split::split_step(kvm(), as_id, gfn, Request::Recover);

        if result != 0 || is_huge && around().any(|leaf| leaf.level == 1) {
            fail(format!(
                "gfn {start:#x} has small pages, and was recovered: {result}"
            ));
        }
        let mut tables = tables::tables(kvm()).into_iter();
        if tables.any(|t| t.is_empty && (t.as_id, t.level, t.gfn) == (as_id, 1, start)) {
            fail(format!(
                "gfn {start:#x} has an empty table, and was recovered"
            ));
        }
    }
    // Where there are pages of 1 GiB, perhaps to 2 MiB.
    if split::split_step(kvm(), as_id, gfn, Request::Split) == 0
        && around().any(|leaf| leaf.level > if cfg!(feature = "small") { 2 } else { 1 })
    {
        fail(format!("gfn {start:#x} is mapped huge, and was split"));
    }
}

/// Ages what `gfn` is in.
fn age(gfn: u64) {
    let was = is_young(gfn, gfn + 1);

    if notifier::test_young(kvm(), gfn) != was {
        fail(format!("gfn {gfn:#x} is said to be young: {}", !was));
    }
    let region = Host::region(gfn);
    let (start, end) = if gfn % 2 == 0 {
        (gfn, gfn + 1)
    } else {
        (region, region + HUGE_PAGES)
    };
    let was = is_young(start, end);
    if notifier::clear_young(kvm(), start, end) != was {
        fail(format!(
            "gfn {start:#x} to {end:#x} is said to have been young: {}",
            !was
        ));
    }
    if notifier::test_young(kvm(), gfn) {
        fail(format!(
            "gfn {gfn:#x} is said to be young, and was aged just now"
        ));
    }
}
