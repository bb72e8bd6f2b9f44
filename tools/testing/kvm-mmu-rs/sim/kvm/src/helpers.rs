// SPDX-License-Identifier: GPL-2.0

//! `rust_helpers.c` and `rust/support/helpers.c`, on the simulated machine. What touches state that
//! others can see is one step; tracepoints and statistics are none.
#![allow(non_snake_case, unused_variables)]

use core::{
    ffi::c_void,
    ptr, //
};

use machine::{
    chance,
    fail,
    lock::may_sleep,
    mem,
    note,
    point,
    rcu,
    sched::{
        self,
        facts,
        point_on, //
    }, //
};

use kernel::{
    bindings::{
        page,
        rwlock_t, //
    },
    ffi::c_ulong, //
};

use crate::{
    holds,
    memory_type,
    model::slots::{
        self,
        srcu_read_lock,
        srcu_read_unlock, //
    },
    told,
    types::*, //
};

/// What a table is full of that nobody has initialised.
const GARBAGE: u8 = 0xa5;
/// Stands for all pointers of the list of roots.
const ROOTS: usize = 1;

macro_rules! field {
    ($ptr:expr, $($field:tt)+) => {{
        #[allow(unused_unsafe, reason = "may stand within another")]
        // SAFETY: The MMU passes what exists; one OS thread.
        let field = unsafe { &mut (*$ptr).$($field)+ };
        field
    }};
}

fn wants_cpu(kvm: *mut kvm) -> bool {
    let odds = field!(kvm, odds).resched;
    let facts = facts();

    facts.need_resched |= chance(odds);
    facts.need_resched
}

/// `rust_shim.c`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, which nobody else uses yet.
pub unsafe fn kvm_rs_init_vm(kvm: *mut kvm) {
    *field!(kvm, arch.tdp_mmu_roots) = ptr::null_mut();
}

/// `rust_shim.c`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `slot` to one of its memslots, which `slots_lock` or
/// `kvm->srcu` keeps.
pub unsafe fn kvm_rs_other_slots_allow(
    kvm: *mut kvm,
    slot: *const kvm_memory_slot,
    gfn: gfn_t,
    level: i32,
) -> bool {
    // SAFETY: The caller passes a memslot that exists.
    let as_id = unsafe { (*slot).as_id };

    !crate::model::track::disallows_huge(kvm, as_id ^ 1, gfn, level as u32)
}

/// `rust_dirty_log.c`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and `written` must be valid for reads of `words` words,
/// which nobody changes meanwhile.
pub unsafe fn kvm_rs_carry_dirty(
    kvm: *mut kvm,
    as_id: i32,
    first: gfn_t,
    written: *const u64,
    words: i32,
) {
    let switching = &raw const *field!(kvm, rs_dirty_log.switching);

    point_on(switching as usize, false);
    if *field!(kvm, rs_dirty_log.switching) {
        return;
    }
    let srcu = srcu_read_lock(kvm);

    for bit in 0..words as u64 * 64 {
        // SAFETY: The caller passes that many words.
        if unsafe { *written.add(bit as usize / 64) } >> (bit % 64) & 1 == 0 {
            continue;
        }
        let gfn = first + bit;
        let slot = slots::of(kvm, as_id as usize, gfn);
        if slot.is_null() || field!(slot, dirty_bitmap).is_null() {
            continue;
        }
        let starting = &raw const *field!(kvm, rs_dirty_log.starting);
        point_on(starting as usize, false);
        if slot == *field!(kvm, rs_dirty_log.starting) {
            continue;
        }
        let n = gfn - *field!(slot, base_gfn);
        // SAFETY: Within the bitmap, which exists: `kvm->srcu` is held.
        let word = unsafe {
            field!(slot, dirty_bitmap)
                .cast::<u64>()
                .add(n as usize / 64)
        };
        let (old, _) = mem::update("carries D", word, |old| Some(old | 1 << (n % 64)));
        if old >> (n % 64) & 1 == 0 && !field!(kvm, slots_lock).is_held() {
            field!(kvm, mmu_lock).assert_write_held();
        }
    }
    srcu_read_unlock(kvm, srcu);
}

/// `rust_dirty_log.c`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run, and this thread must hold `slots_lock`.
pub unsafe fn kvm_rs_dirty_log_started(kvm: *mut kvm) {
    let starting = &raw const *field!(kvm, rs_dirty_log.starting);

    point_on(starting as usize, true);
    *field!(kvm, rs_dirty_log.starting) = ptr::null_mut();
}

/// The VM that an `mmu_lock` is part of.
fn vm_of(lock: *mut rwlock_t) -> *mut kvm {
    // SAFETY: There is no other rwlock.
    unsafe { lock.byte_sub(core::mem::offset_of!(kvm, mmu_lock)).cast() }
}

macro_rules! rwlock {
    ($lock:expr) => {{
        // SAFETY: The MMU passes what exists; one OS thread.
        let lock = unsafe { &*$lock };
        lock
    }};
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must hold it.
pub unsafe fn rust_support_need_break(lock: *mut rwlock_t) -> bool {
    told::visited();
    // Both are looked at in one step.
    rwlock!(lock).needs_break() || wants_cpu(vm_of(lock))
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must hold it for read.
/// What it guards may be freed meanwhile.
pub unsafe fn rust_support_cond_resched_read(lock: *mut rwlock_t) {
    let kvm = vm_of(lock);
    let lock = rwlock!(lock);

    lock.assert_read_held();
    may_give_way();
    if wants_cpu(kvm) || lock.is_contended() {
        holds::dropped();
        lock.read_unlock();
        schedule();
        lock.read_lock();
    }
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must hold it for
/// write. What it guards may be freed meanwhile.
pub unsafe fn rust_support_cond_resched_write(lock: *mut rwlock_t) {
    let kvm = vm_of(lock);
    let lock = rwlock!(lock);

    lock.assert_write_held();
    may_give_way();
    if wants_cpu(kvm) || lock.is_contended() {
        holds::dropped();
        lock.write_unlock();
        schedule();
        lock.write_lock();
    }
}

/// `__might_resched(PREEMPT_LOCK_OFFSET)`: only this lock is held, and no RCU.
fn may_give_way() {
    if facts().spinning != 1 || facts().rcu != 0 {
        fail("cond_resched_rwlock_*(): another lock, or RCU, is held".into());
    }
}

/// The scheduler has what it wants.
pub fn schedule() {
    facts().need_resched = false;
    point();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must not hold it.
pub unsafe fn rust_support_read_lock(lock: *mut rwlock_t) {
    rwlock!(lock).read_lock();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must hold it for read,
/// and not use what it guards any more.
pub unsafe fn rust_support_read_unlock(lock: *mut rwlock_t) {
    holds::dropped();
    rwlock!(lock).read_unlock();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must not hold it.
pub unsafe fn rust_support_write_lock(lock: *mut rwlock_t) {
    rwlock!(lock).write_lock();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run, and this thread must hold it for
/// write, and not use what it guards any more.
pub unsafe fn rust_support_write_unlock(lock: *mut rwlock_t) {
    holds::dropped();
    rwlock!(lock).write_unlock();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run.
pub unsafe fn rust_support_assert_read_held(lock: *mut rwlock_t) {
    rwlock!(lock).assert_read_held();
}

/// # Safety
///
/// `lock` must point to the `mmu_lock` of the VM of the run.
pub unsafe fn rust_support_assert_write_held(lock: *mut rwlock_t) {
    rwlock!(lock).assert_write_held();
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn rust_support_fatal_signal_pending() -> bool {
    point();
    if facts().killable {
        let odds = crate::model::vm().map_or(0, |kvm| field!(kvm, odds).signal);
        facts().killed |= chance(odds);
    }
    // Who is killed does not allocate any more.
    facts().no_memory |= facts().killed;
    facts().killed
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_roots_empty(kvm: *mut kvm) -> bool {
    field!(kvm, arch.tdp_mmu_roots).is_null()
}

/// The pointers of an RCU list: one that was removed still points on.
///
/// # Safety
///
/// `kvm` must point to the VM of the run. `prev` must be null, or point to the header of a root
/// that is or was in its list, and that a reference or this thread's RCU critical section keeps.
pub unsafe fn kvm_rs_roots_next(kvm: *mut kvm, prev: *mut kvm_mmu_page) -> *mut kvm_mmu_page {
    point_on(ROOTS, false);
    if prev.is_null() {
        return *field!(kvm, arch.tdp_mmu_roots);
    }
    mem::check(prev as usize, "the list of roots");
    *field!(prev, next)
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and `root` to the header of a root that is in no list.
/// This thread must hold `tdp_mmu_pages_lock`.
pub unsafe fn kvm_rs_roots_add(kvm: *mut kvm, root: *mut kvm_mmu_page) {
    field!(kvm, arch.tdp_mmu_pages_lock).assert_held("list of roots");
    *field!(root, next) = *field!(kvm, arch.tdp_mmu_roots);
    point_on(ROOTS, true);
    note("adds root", [field!(root, spt).addr() as u64, 0, 0]);
    *field!(kvm, arch.tdp_mmu_roots) = root;
}

/// # Safety
///
/// `root` must point to the header of a root that is in the list, and this thread must hold
/// `tdp_mmu_pages_lock`.
pub unsafe fn kvm_rs_roots_del(root: *mut kvm_mmu_page) {
    point_on(ROOTS, true);
    note("removes root", [field!(root, spt).addr() as u64, 0, 0]);
    crate::model::memory::remove_root(root);
}

/// `kvm_tdp_mmu_get_root()`: `refcount_inc_not_zero()`.
///
/// # Safety
///
/// `root` must point to the header of a root that `mmu_lock` or this thread's RCU critical section
/// keeps.
pub unsafe fn kvm_rs_root_tryget(root: *mut kvm_mmu_page) -> bool {
    point_on(
        (&raw const *field!(root, tdp_mmu_root_count)) as usize,
        true,
    );
    mem::check(root as usize, "get root");
    let count = field!(root, tdp_mmu_root_count);
    if *count == 0 {
        return false;
    }
    *count += 1;
    note(
        "gets root",
        [field!(root, spt).addr() as u64, u64::from(*count), 0],
    );
    true
}

/// # Safety
///
/// `root` must point to the header of a root to which the caller has a reference. It is given up.
pub unsafe fn kvm_rs_root_put(root: *mut kvm_mmu_page) -> bool {
    point_on(
        (&raw const *field!(root, tdp_mmu_root_count)) as usize,
        true,
    );
    mem::check(root as usize, "put root");
    let count = field!(root, tdp_mmu_root_count);
    if *count == 0 {
        fail("refcount of a root underflows".into());
    }
    *count -= 1;
    note(
        "puts root",
        [field!(root, spt).addr() as u64, u64::from(*count), 0],
    );
    *count == 0
}

/// # Safety
///
/// `root` must point to the header of a root that nobody else can find yet.
pub unsafe fn kvm_rs_root_set_count(root: *mut kvm_mmu_page, count: i32) {
    *field!(root, tdp_mmu_root_count) = count as u32;
}

/// # Safety
///
/// `root` must point to the header of a root that `mmu_lock` or this thread's RCU critical section
/// keeps.
pub unsafe fn kvm_rs_root_is_live(root: *mut kvm_mmu_page) -> bool {
    point_on(
        (&raw const *field!(root, tdp_mmu_root_count)) as usize,
        false,
    );
    mem::check(root as usize, "root count");
    *field!(root, tdp_mmu_root_count) != 0
}

/// # Safety
///
/// None: an address that is no table's fails the run. Unsafe because C's function is.
pub unsafe fn kvm_rs_va(hpa: hpa_t) -> *mut u64 {
    mem::va(hpa)
}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_pa(spt: *mut u64) -> hpa_t {
    mem::pa(spt)
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_pfn_to_nid(pfn: kvm_pfn_t) -> i32 {
    0
}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_prefetch_entries(spt: *mut u64) {}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_prefetch_table(spt: *mut u64) {}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_prefetch_sp(sp: *mut kvm_mmu_page) {}

/// # Safety
///
/// None: an address of no table, or of one that was freed, fails the run. Unsafe because C's
/// function is.
pub unsafe fn kvm_rs_hpa_to_sp(hpa: hpa_t) -> *mut kvm_mmu_page {
    let table = mem::va(hpa);

    mem::check(table as usize, "page of a table");
    mem::private(table as usize) as *mut kvm_mmu_page
}

/// # Safety
///
/// None: an address of no table, or of one that was freed, fails the run. Unsafe because C's
/// function is.
pub unsafe fn kvm_rs_root_to_sp(hpa: hpa_t) -> *mut kvm_mmu_page {
    // SAFETY: As for this function.
    unsafe { kvm_rs_hpa_to_sp(hpa) }
}

/// # Safety
///
/// `sp` must point to the header of a page that has a table, and that nobody else can reach yet.
pub unsafe fn kvm_rs_bind_sp(sp: *mut kvm_mmu_page) {
    mem::set_private(*field!(sp, spt), sp as usize);
}

/// Whether an allocation fails now.
fn fails() -> bool {
    let fails = is_refused();

    facts().no_memory |= fails;
    fails
}

/// The same, where the caller can do without.
fn is_refused() -> bool {
    let odds = crate::model::vm().map_or(0, |kvm| field!(kvm, odds).no_memory);

    may_sleep("an allocation");
    point();
    chance(odds)
}

/// # Safety
///
/// None: the argument is a plain value. Unsafe because C's function is.
pub unsafe fn kvm_rs_alloc_header(_may_fail: bool) -> *mut kvm_mmu_page {
    if fails() {
        return ptr::null_mut();
    }
    mem::alloc_header().cast()
}

/// `rust_helpers.h`.
pub const KVM_RS_HEADERS: u32 = 22;

/// `rust_helpers.h`. Here each header has its own place, and the word is not used.
pub const KVM_RS_NEIGHBOURS: u32 = 2;

/// `rust_helpers.h`.
pub const KVM_RS_OWNER: u32 = 3;

/// # Safety
///
/// `headers` must have room for `nr` of them.
pub unsafe fn kvm_rs_alloc_headers(headers: *mut *mut kvm_mmu_page, nr: i32) -> bool {
    if nr as u32 > KVM_RS_HEADERS {
        fail(format!("wants {nr} headers in a page"));
    }
    if is_refused() {
        return false;
    }
    for n in 0..nr as usize {
        // SAFETY: There is room for as many.
        unsafe { headers.add(n).write(mem::alloc_header().cast()) };
    }
    true
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_alloc_table(nid: i32, _may_fail: bool) -> *mut u64 {
    if fails() {
        return ptr::null_mut();
    }
    let kvm = crate::model::vm().expect("there is a VM");
    let facts = facts();

    // What others unlink after a look at the counter is for the next look.
    if facts.allowance == 0
        && *field!(kvm, rs_stat.mmu_unused_tables) > i64::from(KVM_RS_MOST_UNUSED)
    {
        fail("allocates a table for a split, and too many wait to be freed".into());
    }
    facts.allowance = facts.allowance.saturating_sub(1);
    mem::alloc_table(GARBAGE)
}

/// # Safety
///
/// `sp` must come from [`kvm_rs_alloc_header`], [`kvm_rs_alloc_headers`] or a memory cache, and
/// nobody may use it any more.
pub unsafe fn kvm_rs_free_header(sp: *mut kvm_mmu_page) {
    mem::free_header(sp.cast());
}

/// # Safety
///
/// `spt` must be null, or come from [`kvm_rs_alloc_table`] or a memory cache, and nobody, the CPUs
/// included, may use it any more.
pub unsafe fn kvm_rs_free_table(spt: *mut c_void) {
    if !spt.is_null() {
        let facts = facts();

        // Who loses a race may free the one that it had. To free a cache takes long.
        if facts.spinning != 0 && !rcu::in_callback() {
            facts.freed += 1;
            if facts.freed > 1 {
                fail("frees one table after another, and holds mmu_lock".into());
            }
        }
        mem::free_table(spt.cast());
    }
}

/// `rust_free.c`.
pub const KVM_RS_FREE_PAGES: u32 = 16;

/// `rust_free.c`, where a kworker does it. Nobody can tell the difference who obeys RCU.
///
/// # Safety
///
/// `pages` must have `nr` elements, each of which points to the header of a page that nobody uses.
pub unsafe fn kvm_rs_free_pages(pages: *mut *mut kvm_mmu_page, nr: i32) {
    for n in 0..nr as usize {
        // SAFETY: There are as many elements.
        let sp = unsafe { *pages.add(n) };
        let owner = field!(sp, unsync_child_bitmap)[KVM_RS_OWNER as usize] as *mut kvm;

        if Some(owner) != crate::model::vm() {
            fail("a page is freed that was not noted to be the VM's".into());
        }
        let unused = field!(owner, rs_stat.mmu_unused_tables);
        *unused -= 1;
        // Who holds `mmu_lock` adds what it has unlinked when it drops that. In the kernel it is a
        // reader of RCU until then, as it is not preempted; here it may leave RCU earlier.
        if *unused < 0 && sched::parties_where(|facts| facts.spinning != 0).is_empty() {
            fail("more tables are freed than have waited for that".into());
        }
        mem::free_table(*field!(sp, spt));
        mem::free_header(sp.cast());
    }
}

/// `rust_free.c`. There is nothing to wait for.
///
/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_wait_for_free() {
    may_sleep("kvm_rs_wait_for_free()");
    facts().allowance = SPLIT_CACHE;
}

/// `rust_helpers.h`, where it is more. Here few tables wait.
pub const KVM_RS_MOST_UNUSED: u32 = 2;

/// The most tables that are allocated for splits at a time.
const SPLIT_CACHE: u32 = 64;

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_add_unused_tables(kvm: *mut kvm, nr: u32) {
    *field!(kvm, rs_stat.mmu_unused_tables) += i64::from(nr);
}

/// No step of its own: whoever looks allocates next, or has nobody beside it.
///
/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_unused_tables(kvm: *mut kvm) -> i64 {
    let unused = *field!(kvm, rs_stat.mmu_unused_tables);

    facts().allowance = if unused > i64::from(KVM_RS_MOST_UNUSED) {
        0
    } else {
        SPLIT_CACHE
    };
    unused
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_account_table(kvm: *mut kvm, spt: *mut u64, nr: i32) {
    *field!(kvm, stat.tables) += i64::from(nr);
    *field!(kvm, stat.linked) += nr.max(0) as u64;
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
#[cfg(feature = "prove")]
pub unsafe fn kvm_rs_has_tables(kvm: *mut kvm) -> bool {
    *field!(kvm, stat.tables) != 0
}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_page_to_pfn(page: *mut page) -> kvm_pfn_t {
    page as u64
}

/// Pages that are used are marked dirty, which `mmu_lock` has to be held for.
///
/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_release_pages(pages: *mut *mut page, used: i32, nr: i32) {
    let kvm = crate::model::vm().expect("there is a VM");

    if used != 0 {
        field!(kvm, mmu_lock).assert_held();
    }
    field!(kvm, host).put_pages(nr as u64);
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_base_addr_mask() -> u64 {
    0x000f_ffff_ffff_f000
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_has_shadow_pages(kvm: *mut kvm) -> bool {
    !field!(kvm, active_mmu_pages).is_empty()
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_tracks_writes(kvm: *mut kvm) -> bool {
    *field!(kvm, arch.have_rmaps) || *field!(kvm, tracks_writes)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_memslots_have_rmaps(kvm: *mut kvm) -> bool {
    point();
    *field!(kvm, arch.have_rmaps)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_dirty_log_initially_set(kvm: *mut kvm) -> bool {
    *field!(kvm, initially_all_set)
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_eager_page_split() -> bool {
    point();
    // SAFETY: One OS thread.
    unsafe { crate::bindings::eager_page_split }
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_eager_split_chunk(kvm: *mut kvm) -> u64 {
    point();
    *field!(kvm, rs_dirty_log.eager_split_chunk)
}

/// No memslot has nothing but guest_memfd.
///
/// # Safety
///
/// `kvm` must point to the VM of the run. This thread must hold `mmu_lock`.
pub unsafe fn kvm_rs_is_guest_memfd(
    kvm: *mut kvm,
    slot: *const kvm_memory_slot,
    gfn: gfn_t,
) -> bool {
    field!(kvm, mmu_lock).assert_held();
    crate::model::gmem::is_private(kvm, gfn)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_is_invalidating(kvm: *mut kvm, start: gfn_t, end: gfn_t) -> bool {
    let range = *field!(kvm, mmu_invalidate_range);

    *field!(kvm, mmu_invalidate_in_progress) != 0 && start < range.1 && end > range.0
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_assert_srcu_held(kvm: *mut kvm) {
    if !crate::model::slots::srcu_is_held(kvm) {
        fail("kvm->srcu is not held".into());
    }
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and `level` must be 1, 2 or 3.
pub unsafe fn kvm_rs_update_page_stats(kvm: *mut kvm, level: i32, count: i32) {
    field!(kvm, stat.pages)[level as usize - 1] += i64::from(count);
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_nx_huge_pages(kvm: *mut kvm) -> bool {
    point();
    *field!(kvm, nx_huge_pages)
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_has_mirrored_tdp(kvm: *mut kvm) -> bool {
    false
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_is_addr_direct(kvm: *mut kvm, gpa: gpa_t) -> bool {
    true
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_max_gfn() -> gfn_t {
    crate::model::vm().map_or(crate::model::MAX_GFN, |kvm| *field!(kvm, max_gfn))
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_vm_bugged(kvm: *mut kvm) {
    *field!(kvm, vm_bugged) = true;
    fail("KVM_BUG_ON()".into());
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_set_external_spte(
    kvm: *mut kvm,
    gfn: gfn_t,
    old_spte: u64,
    new_spte: u64,
    level: i32,
) -> i32 {
    fail("no VM has mirror roots".into())
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_free_external_spt(kvm: *mut kvm, sp: *mut kvm_mmu_page) {
    fail("no VM has mirror roots".into())
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_has_private_mem(kvm: *mut kvm) -> bool {
    *field!(kvm, has_private_mem)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_invalidate_seq(kvm: *mut kvm) -> c_ulong {
    let seq = &raw const *field!(kvm, mmu_invalidate_seq);

    point_on(seq as usize, false);
    *field!(kvm, mmu_invalidate_seq) as c_ulong
}

/// `mmu_invalidate_retry()`.
///
/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_invalidate_retry(kvm: *mut kvm, seq: c_ulong) -> bool {
    let now = &raw const *field!(kvm, mmu_invalidate_seq);

    point_on(now as usize, false);
    *field!(kvm, mmu_invalidate_in_progress) != 0 || *field!(kvm, mmu_invalidate_seq) != seq as u64
}

/// No memslot is KVM's own.
///
/// # Safety
///
/// `slot` must point to a memslot that `slots_lock` or `kvm->srcu` keeps.
pub unsafe fn kvm_rs_slot_is_plain(slot: *const kvm_memory_slot) -> bool {
    // SAFETY: The slot exists.
    unsafe { (*slot).flags & KVM_MEM_GUEST_MEMFD == 0 }
}

/// # Safety
///
/// `slot` must point to a memslot that `slots_lock` or `kvm->srcu` keeps.
pub unsafe fn kvm_rs_slot_dirty_track_enabled(slot: *const kvm_memory_slot) -> bool {
    // SAFETY: The slot exists.
    unsafe { (*slot).flags & KVM_MEM_LOG_DIRTY_PAGES != 0 }
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_logs_by_dirty_bits(kvm: *mut kvm) -> bool {
    let log = &raw const *field!(kvm, rs_dirty_log.dirty_bits);

    point_on(log as usize, false);
    *field!(kvm, rs_dirty_log.dirty_bits)
}
/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_is_switching_dirty_log(kvm: *mut kvm) -> bool {
    let switching = &raw const *field!(kvm, rs_dirty_log.switching);

    point_on(switching as usize, false);
    *field!(kvm, rs_dirty_log.switching)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_count_events(kvm: *mut kvm, event: kvm_rs_event, n: u64) {
    told::counted(event);
    field!(kvm, rs_stat.mmu_events)[event as usize] += n;
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_clock() -> u64 {
    sched::now()
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_read_lock(kvm: *mut kvm, holder: u32) {
    slots::check_holder(kvm, holder);
    field!(kvm, mmu_lock).read_lock();
    holds::begin(holder, false);
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_read_unlock(kvm: *mut kvm, holder: u32) {
    holds::end(holder, false);
    field!(kvm, mmu_lock).read_unlock();
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_write_lock(kvm: *mut kvm, holder: u32) {
    field!(kvm, mmu_lock).write_lock();
    holds::begin(holder, true);
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_write_unlock(kvm: *mut kvm) {
    holds::end_write();
    field!(kvm, mmu_lock).write_unlock();
}

/// # Safety
///
/// `vcpu` must point to a vCPU of the run.
pub unsafe fn kvm_rs_vcpu_read_lock(vcpu: *mut kvm_vcpu) {
    let kvm = *field!(vcpu, kvm);

    field!(kvm, mmu_lock).read_lock();
    holds::begin(kvm_mmu_holder_KVM_MMU_FAULT, false);
}

/// # Safety
///
/// `vcpu` must point to a vCPU of the run.
pub unsafe fn kvm_rs_vcpu_read_unlock(vcpu: *mut kvm_vcpu) {
    let kvm = *field!(vcpu, kvm);

    holds::end(kvm_mmu_holder_KVM_MMU_FAULT, false);
    field!(kvm, mmu_lock).read_unlock();
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and this thread must hold its `mmu_lock` for read.
pub unsafe fn kvm_rs_pause_read(kvm: *mut kvm, holder: u32) -> u32 {
    field!(kvm, mmu_lock).assert_read_held();
    holds::pause(Some(holder), false)
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and this thread must hold its `mmu_lock` for write.
pub unsafe fn kvm_rs_pause_write(kvm: *mut kvm) -> u32 {
    field!(kvm, mmu_lock).assert_write_held();
    holds::pause(None, true)
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and this thread must hold its `mmu_lock`.
pub unsafe fn kvm_rs_resume_hold(kvm: *mut kvm, paused: u32) {
    field!(kvm, mmu_lock).assert_held();
    holds::resume(paused);
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_note_fault_split(vcpu: *mut kvm_vcpu) {}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_has_mt_mask() -> bool {
    memory_type::is_ept()
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_mt_mask(vcpu: *mut kvm_vcpu, gfn: gfn_t, is_mmio: bool) -> u64 {
    memory_type::of(is_mmio)
}

/// # Safety
///
/// `vcpu` must point to a vCPU of the VM of the run.
pub unsafe fn kvm_rs_memslots_generation(vcpu: *mut kvm_vcpu) -> u64 {
    *field!(*field!(vcpu, kvm), generation)
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_needs_host_mmio_tracking(vcpu: *mut kvm_vcpu) -> bool {
    !memory_type::is_ept()
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_is_rsvd_spte(vcpu: *mut kvm_vcpu, spte: u64, level: i32) -> bool {
    false
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_rsvd_bits(vcpu: *mut kvm_vcpu, spte: u64, level: i32) -> u64 {
    0
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_is_host_mmio_pfn(pfn: kvm_pfn_t) -> bool {
    memory_type::is_mmio(pfn)
}

/// # Safety
///
/// `vcpu` must point to a vCPU of the run.
pub unsafe fn kvm_rs_track_host_mmio(vcpu: *mut kvm_vcpu) {
    *field!(*field!(vcpu, kvm), has_host_mmio) = true;
}

/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn rust_support_assert_preemption_disabled() {
    if facts().spinning == 0 {
        fail("preemption is enabled".into());
    }
}

/// # Safety
///
/// This thread must call [`rust_support_preempt_enable`] before it sleeps.
pub unsafe fn rust_support_preempt_disable() {
    facts().spinning += 1;
}

/// # Safety
///
/// This thread must have called [`rust_support_preempt_disable`], once for each call of this.
pub unsafe fn rust_support_preempt_enable() {
    facts().spinning -= 1;
}

/// # Safety
///
/// `desc` must come from a cache of descriptors, and be in no list any more.
pub unsafe fn kvm_rs_free_desc(desc: *mut c_void) {
    mem::free_header(desc.cast());
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_assert_slots_locked(kvm: *mut kvm) {
    field!(kvm, slots_lock).assert_held("slots_lock");
    if crate::model::slots::is_clearing(kvm) {
        fail("the whole log is needed, and somebody clears a range of it".into());
    }
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_assert_clearing(kvm: *mut kvm) {
    if !field!(kvm, rs_dirty_log.clears)
        .iter()
        .any(|range| range.who == sched::me())
    {
        fail("this thread has not claimed a range to clear".into());
    }
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_vm_data_corruption(kvm: *mut kvm) {
    fail("KVM_BUG_ON_DATA_CORRUPTION()".into());
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and `sp` to the header of one of its pages. This thread
/// must hold `slots_lock`, or be a reader of `kvm->srcu`, as long as it uses the slot.
pub unsafe fn kvm_rs_slot_of_sp(
    kvm: *mut kvm,
    sp: *mut kvm_mmu_page,
    gfn: gfn_t,
) -> *mut kvm_memory_slot {
    let role = *field!(sp, role.word).to_owned();

    crate::model::slots::of(kvm, usize::from(role >> 24 != 0), gfn)
}

/// # Safety
///
/// `kvm` must point to the VM of the run.
pub unsafe fn kvm_rs_shadow_pages_left(kvm: *mut kvm) -> bool {
    let left = !chance(field!(kvm, odds).no_memory * 4);

    facts().no_budget |= !left;
    left
}

/// # Safety
///
/// `kvm` must point to the VM of the run, and `huge_sptep` to an SPTE in a page of the shadow MMU.
/// This thread must hold `mmu_lock` for write, and the VM's caches for splitting must be filled.
pub unsafe fn kvm_rs_get_split_sp(
    kvm: *mut kvm,
    huge_sptep: *mut u64,
    gfn: gfn_t,
    access: u32,
) -> *mut kvm_mmu_page {
    crate::model::shadow::get_split_page(kvm, huge_sptep, gfn, access)
}

/// # Safety
///
/// `kvm` must point to the VM of the run, `sptep` to an SPTE in a page of the shadow MMU, and `sp`
/// to the header of a page of the level below. This thread must hold `mmu_lock` for write, and the
/// VM's cache of descriptors must be filled.
pub unsafe fn kvm_rs_link_sp(kvm: *mut kvm, sptep: *mut u64, sp: *mut kvm_mmu_page, flush: bool) {
    crate::model::shadow::link_split_page(kvm, sptep, sp, flush);
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_get_page(sp: *mut kvm_mmu_page) {}

/// # Safety
///
/// `sp` must point to the header of a page that exists.
pub unsafe fn kvm_rs_trace_prepare_zap_page(sp: *mut kvm_mmu_page) {
    told::torn_down(sp);
}

/// In some runs: entries are changed one by one then, which is other code.
///
/// # Safety
///
/// None: it has no arguments. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_spte_changed_enabled() -> bool {
    crate::model::vm().is_some_and(|kvm| *field!(kvm, traced))
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_spte_changed(as_id: i32, gfn: gfn_t, level: i32, old: u64, new: u64) {
    told::spte_changed(as_id, gfn, level, old, new);
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_split(gfn: gfn_t, spte: u64, level: i32, err: i32) {
    told::replaced("a split", gfn, level, err);
    if err == 0 {
        told::split(gfn, spte, level);
    }
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_promote(gfn: gfn_t, spte: u64, level: i32, err: i32) {
    told::replaced("a recovery", gfn, level, err);
}

/// # Safety
///
/// None: the arguments are plain values. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_harvest(as_id: i32, first: gfn_t, end: gfn_t, tables: u64, pages: u64) {
    told::harvested(as_id, first, end, tables, pages);
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_mark_mmio(sptep: *mut u64, gfn: gfn_t, spte: u64) {}

/// # Safety
///
/// None: the pointer is not followed. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_set_spte(level: i32, gfn: gfn_t, sptep: *mut u64) {
    told::set_spte(sptep);
}

/// # Safety
///
/// None: the arguments are not looked at. Unsafe because C's function is.
pub unsafe fn kvm_rs_trace_spte_requested(fault: *mut kvm_page_fault, access: u8) {}
