// SPDX-License-Identifier: GPL-2.0

//! Splitting huge pages of nested guests eagerly, when their slot is logged.
//!
//! # Forward progress
//!
//! The splitter drops `mmu_lock` to allocate and to yield, and then has to restart with the list.
//! Upstream checks whether to yield before each attempt; if the lock is always contended, it never
//! splits anything. Here the splitter only yields if it has split a page since it took the lock,
//! and after an allocation it splits before it does anything else: its caches are filled for the
//! worst case, and nobody else can use them, as it holds `slots_lock`. So each time it holds the
//! lock it splits a page, or finds that there is none left in the list.
//!
//! It stops if there is no memory, if the VM has used up its budget of shadow pages, or if a fatal
//! signal is pending. Pages that stay huge are write-protected like the others, and split on a
//! write.

use kernel::error::{
    code::{
        EAGAIN,
        EINTR,
        EIO,
        ENOSPC, //
    },
    Error, //
};

use super::link::{
    recycle,
    TOO_LONG, //
};
use crate::{
    pte::Sptep,
    pure::{
        leaf,
        protect::protected,
        Gfn,
        Index,
        Level,
        Masks,
        Protect,
        Spte, //
    },
    rmap::{
        shadow,
        Found,
        RmapWalk,
        ShadowSplitCaches,
        SlotRmaps, //
    },
    sync::{
        Exclusive,
        MmuLock, //
    },
    sys::{
        fatal_signal_pending,
        stats::{
            self,
            Event, //
        },
        trace,
        Memslot,
        SlotRange,
        Sp,
        Vm, //
    }, //
};

/// Splits the huge pages that map frames of `pages`, down to `target`. New leaves have the rights
/// of the huge ones, except that new 4 KiB leaves are protected if `protect` says how.
pub(crate) fn split(
    lock: &mut Exclusive<'_>,
    pages: SlotRange<'_>,
    target: Level,
    protect: Option<Protect>,
    caches: &mut ShadowSplitCaches<'_>,
) {
    let masks = lock.vm().masks();
    let mut level = Level::MAX_LEAF;

    kvm_mmu_warn_on!(caches.vm() != lock.vm());

    // From large to small, so that the result of one split is split again.
    while level > target {
        if split_level(lock, pages, level, protect, caches, masks).is_err() {
            return;
        }
        let Some(below) = level.down() else { return };
        level = below;
    }
}

fn split_level(
    lock: &mut Exclusive<'_>,
    pages: SlotRange<'_>,
    level: Level,
    protect: Option<Protect>,
    caches: &mut ShadowSplitCaches<'_>,
    masks: &Masks,
) -> Result<(), Error> {
    let vm = lock.vm();
    let mut walk = RmapWalk::new(lock, pages, level, level);

    while let Some(mut step) = walk.next(None) {
        // Whether a page was split since the lock was taken.
        let mut moved = false;

        loop {
            if moved {
                step.cond_resched();
            }
            let Some(found) = step.find(can_split) else {
                break;
            };
            let huge = TracedLeaf::new(&found);

            if fatal_signal_pending() {
                return Err(EINTR);
            }
            if !shadow::has_pages_left(found.lock()) {
                stats::count(vm, Event::SplitNoBudget);
                huge.trace(ENOSPC.to_errno());
                return Err(ENOSPC);
            }
            if !caches.is_ready() {
                let result = step.unlocked(|unlocked| caches.top_up(unlocked));

                huge.trace(result.err().unwrap_or(EAGAIN).to_errno());
                if result.is_err() {
                    stats::count(vm, Event::SplitNoMemory);
                }
                result?;
                moved = false;
                continue;
            }
            split_one(found, vm, pages.slot(), protect, caches, masks)?;
            stats::count(vm, Event::EagerSplit);
            huge.trace(0);
            moved = true;
        }
    }
    Ok(())
}

/// Whether a huge leaf can be split.
fn can_split(lock: &Exclusive<'_>, sptep: Sptep<'_>) -> bool {
    let sp = Sp::of_sptep(sptep);
    let spte = sptep.read();

    // With the TDP MMU in use, shadow pages are those of nested guests. Lists hold leaves only.
    // Only pages of the last level are ever out of date.
    if warn_on_once!(!sp.role().guest_mode())
        || warn_on_once!(!spte.is_present() || !spte.is_large())
        || warn_on_once!(sp.is_unsync(lock))
    {
        return false;
    }
    // Don't bother with pages that are about to be zapped.
    !sp.role().invalid()
}

/// A huge leaf, for the tracepoint.
struct TracedLeaf {
    gfn: Gfn,
    spte: Spte,
    level: Option<Level>,
}

impl TracedLeaf {
    fn new(found: &Found<'_, '_>) -> Self {
        let sptep = found.sptep();
        let sp = Sp::of_sptep(sptep);

        TracedLeaf {
            gfn: sp.gfn_at(found.lock(), shadow::index_of(sptep)),
            spte: sptep.read(),
            level: sp.role().level(),
        }
    }

    fn trace(&self, errno: i32) {
        if let Some(level) = self.level {
            trace::split_huge_page(self.gfn, self.spte, level, errno);
        }
    }
}

/// Replaces a huge leaf by a direct page that maps the same frames. Fails, and marks the VM as
/// bugged, only if the slot has no lists for them.
fn split_one(
    mut found: Found<'_, '_>,
    vm: Vm<'_>,
    slot: Memslot<'_>,
    protect: Option<Protect>,
    caches: &mut ShadowSplitCaches<'_>,
    masks: &Masks,
) -> Result<(), Error> {
    let sptep = found.sptep();
    let huge = sptep.read();
    let huge_sp = Sp::of_sptep(sptep);
    let index = shadow::index_of(sptep);
    let lock = found.lock();
    let gfn = huge_sp.gfn_at(lock, index);
    let sp = caches.page_for(lock, sptep, gfn, huge_sp.access_at(lock, index));
    let role = sp.role();

    // The page is direct, so its leaves are those of consecutive frames, and so are their lists.
    let Some((level, lists)) = role
        .level()
        .and_then(|level| Some((level, SlotRmaps::new(slot, level)?)))
    else {
        vm.bugged();
        return Err(EIO);
    };
    let like = match protect {
        Some(how) if level == Level::Page4K => protected(huge, how, masks),
        _ => huge,
    };
    let first = leaf::split_child(like, role, level, Index::FIRST, vm.nx_huge_pages(), masks);
    let stride = leaf::child_stride(level);
    let table = sp.table();
    let mut gfn = sp.gfn();
    let mut offset = 0;
    let mut new = 0;
    let mut longest = 0;
    let mut flush = false;

    for index in Index::all() {
        let child = table.sptep(index);
        let old = child.read();

        if old.is_present() {
            // The page existed, and has this leaf already, perhaps with fewer rights, which a fault
            // can restore. But if it has a table here, that may map less than the huge leaf did.
            flush |= !old.is_leaf(level);
        } else if let Some(list) = lists.of(gfn) {
            shadow::set_leaf(found.lock(), table, index, first.at_offset(offset));
            new += 1;

            let mut rmap = found.rmap(list);
            let count = rmap.add(&mut caches.desc_cache(), child);

            longest = longest.max(count);
            if count > TOO_LONG {
                recycle(&mut rmap, vm, gfn, level);
            }
        }
        gfn = gfn.add(level.pages());
        offset = offset.wrapping_add(stride);
    }

    vm.add_leaves(level, new);
    shadow::note_rmap_count(found.lock(), longest);
    caches.link(found.lock(), sptep, sp, flush);
    Ok(())
}
