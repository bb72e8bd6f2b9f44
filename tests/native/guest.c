// SPDX-License-Identifier: GPL-2.0
/*
 * A guest that writes, on page tables that are changing; and a migration that
 * copies what the log says. A page of the guest is a count of the writes to it.
 *
 * The "hardware" has no TLB: each write walks the tables from the root. So what a
 * missing flush would do is not seen here, nor what a CPU does that remembers the
 * upper levels. But a flush waits for a write that is under way.
 */
#include <linux/kvm_host.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"

#include "native.h"
#include "vm.h"

static atomic_t *written;
static unsigned int *copied;
static unsigned long *noted;

void guest_init(const struct native_memory *memory)
{
	written = (atomic_t *)memory->written;
	copied = memory->copied;
	noted = memory->noted;
}

/* The leaf that maps the page, and its level; or the entry where the walk ends. */
static u64 *walk(struct vm *vm, unsigned long page, int *level)
{
	gpa_t gpa = (FIRST_GFN + page) << PAGE_SHIFT;
	u64 *table = __va(vm->vcpus[0].vcpu.arch.root_mmu.root.hpa);

	for (*level = PT64_ROOT_4LEVEL; ; --*level) {
		u64 *entry = &table[(gpa >> (12 + 9 * (*level - 1))) % CHILDREN];
		u64 spte = READ_ONCE(*entry);

		if (*level == PG_LEVEL_4K || !(spte & PT_PRESENT_MASK) ||
		    spte & PT_PAGE_SIZE_MASK)
			return entry;
		table = table_below(spte);
	}
}

/*
 * One write, as by a CPU in the guest: false, if it faults. Sets D by a locked
 * operation, for which the entry has to be what it was.
 */
static bool try_to_write(struct vm *vm, struct kvm_vcpu *vcpu, unsigned long page,
			 bool *present)
{
	bool done = false;

	WRITE_ONCE(vcpu->mode, IN_GUEST_MODE);
	/* Pairs with the barrier in flush_guests(). */
	smp_mb();
	for (;;) {
		int level;
		u64 *entry = walk(vm, page, &level);
		u64 spte = READ_ONCE(*entry);

		*present = spte & PT_PRESENT_MASK;
		/* It may have become a table since. */
		if (*present && level > PG_LEVEL_4K && !(spte & PT_PAGE_SIZE_MASK))
			continue;
		if (!*present || !(spte & PT_WRITABLE_MASK))
			break;
		if (!(spte & PT_DIRTY_MASK) &&
		    !try_cmpxchg64(entry, &spte, spte | PT_DIRTY_MASK))
			continue;
		if (level == PG_LEVEL_4K &&
		    (spte & GENMASK_ULL(51, 12)) >> PAGE_SHIFT != FIRST_PFN + page)
			native_trap("a page is mapped to another's frame");
		atomic_inc(&written[page]);
		done = true;
		break;
	}
	/* The write is done; both pair with flush_guests(). */
	smp_store_release(&vcpu->stat.exits, vcpu->stat.exits + 1);
	/* The same. */
	smp_store_release(&vcpu->mode, OUTSIDE_GUEST_MODE);
	return done;
}

enum native_fault native_write(enum native_mmu mmu, int vcpu_id, unsigned long page)
{
	struct vm *vm = &vms[mmu];
	struct kvm_vcpu *vcpu = &vm->vcpus[vcpu_id].vcpu;
	enum native_fault kind = NATIVE_NO_FAULT;
	bool present;

	while (!try_to_write(vm, vcpu, page, &present)) {
		gfn_t gfn = FIRST_GFN + page;
		enum native_fault fault;

		if (mmu == NATIVE_C)
			fault = c_party_fault(vm, vcpu, gfn, present);
		else
			fault = r_party_fault(vm, vcpu, gfn, present);
		kind = max(kind, fault);
	}
	return kind;
}

void native_notify(enum native_mmu mmu, unsigned long page, unsigned long pages)
{
	if (mmu == NATIVE_C)
		c_party_notifier(&vms[mmu], FIRST_GFN + page, FIRST_GFN + page + pages);
	else
		r_party_notifier(&vms[mmu], FIRST_GFN + page, FIRST_GFN + page + pages);
}

void native_notify_miss(enum native_mmu mmu)
{
	native_notify(mmu, 0, 0);
}

void native_copy_all(enum native_mmu mmu)
{
	for (unsigned long page = 0; page < vms[mmu].slot->npages; page++)
		copied[page] = atomic_read(&written[page]);
}

void native_note_log(enum native_mmu mmu)
{
	struct kvm_memory_slot *slot = vms[mmu].slot;

	memcpy(noted, kvm_second_dirty_bitmap(slot), kvm_dirty_bitmap_bytes(slot));
}

void native_copy_noted(enum native_mmu mmu)
{
	for (unsigned long page = 0; page < vms[mmu].slot->npages; page++) {
		if (test_bit(page, noted))
			copied[page] = atomic_read(&written[page]);
	}
}

const char *native_compare(enum native_mmu mmu, unsigned long *where)
{
	for (*where = 0; *where < vms[mmu].slot->npages; ++*where) {
		if (copied[*where] != atomic_read(&written[*where]))
			return "a write is not in the log";
	}
	return NULL;
}
