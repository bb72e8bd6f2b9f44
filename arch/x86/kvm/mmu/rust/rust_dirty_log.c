// SPDX-License-Identifier: GPL-2.0
/*
 * How writes to memslots are logged: the module parameter, the choice for each VM, and
 * setting bits of a dirty bitmap that has to be looked up by gfn.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"

#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <asm/kvm_rust_mmu.h>

enum {
	DIRTY_LOG_AUTO,
	DIRTY_LOG_WRITE_PROTECT,
	DIRTY_LOG_DIRTY_BITS,
};

static const char * const dirty_log_names[] = {
	[DIRTY_LOG_AUTO] = "auto",
	[DIRTY_LOG_WRITE_PROTECT] = "write_protect",
	[DIRTY_LOG_DIRTY_BITS] = "dirty_bits",
};

static int dirty_log = DIRTY_LOG_AUTO;

static int dirty_log_set(const char *value, const struct kernel_param *kp)
{
	int mode = sysfs_match_string(dirty_log_names, value);

	if (mode < 0)
		return mode;
	WRITE_ONCE(dirty_log, mode);
	return 0;
}

static int dirty_log_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", dirty_log_names[READ_ONCE(dirty_log)]);
}

static const struct kernel_param_ops dirty_log_ops = {
	.set = dirty_log_set,
	.get = dirty_log_get,
};

module_param_cb(dirty_log, &dirty_log_ops, NULL, 0644);
MODULE_PARM_DESC(dirty_log,
		 "How writes are found without PML: auto (write_protect), write_protect, dirty_bits");

/*
 * Shadow pages must not exist yet; those that are created later are write-protected. With PML
 * the CPU logs writes itself. KVM has no D bits of mirror roots (TDX).
 */
static bool chooses_dirty_bits(struct kvm *kvm)
{
	return READ_ONCE(dirty_log) == DIRTY_LOG_DIRTY_BITS && tdp_mmu_enabled &&
	       kvm_ad_enabled && !kvm->arch.cpu_dirty_log_size && !kvm->dirty_ring_size &&
	       !kvm_has_mirrored_tdp(kvm) && !kvm_memslots_have_rmaps(kvm);
}

/*
 * Called before @new replaces @old; either may be NULL. Chooses how the VM is logged if @new is
 * the first slot that is logged. slots_lock is held.
 */
void kvm_rs_prepare_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *old,
			      const struct kvm_memory_slot *new, enum kvm_mr_change change)
{
	struct kvm_rs_dirty_log *log = &kvm->rs_dirty_log;
	bool was_logged = old && old->flags & KVM_MEM_LOG_DIRTY_PAGES;

	if (was_logged || !new || !(new->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return;

	if (!atomic_read(&kvm->nr_memslots_dirty_logging))
		WRITE_ONCE(log->dirty_bits, chooses_dirty_bits(kvm));

	/* If kvm_mmu_slot_apply_flags() will call kvm_rs_start_dirty_log(), which resets it. */
	if (log->dirty_bits && change == KVM_MR_FLAGS_ONLY && !(new->flags & KVM_MEM_READONLY) &&
	    !kvm_dirty_log_manual_protect_and_init_set(kvm))
		WRITE_ONCE(log->starting, new);
}

/* Called after the number of logged slots may have changed. slots_lock is held. */
void kvm_rs_commit_dirty_log(struct kvm *kvm)
{
	if (!atomic_read(&kvm->nr_memslots_dirty_logging))
		WRITE_ONCE(kvm->rs_dirty_log.dirty_bits, false);
}

/*
 * Sets the bits of pages in the dirty bitmaps of an address space. @written has @words words;
 * its bit 0 stands for @first. mark_page_dirty_in_slot() does not work here, because a
 * notifier may run on a thread that has loaded a vCPU of another VM.
 *
 * The D bits of a slot that is just being enabled are ignored, because they may be old. Writes
 * before the ioctl returns don't have to be in the log.
 */
void kvm_rs_carry_dirty(struct kvm *kvm, int as_id, gfn_t first, const u64 *written, int words)
{
	const struct kvm_memory_slot *slot = NULL;
	unsigned long bit, nbits = words * BITS_PER_LONG;
	u64 carried = 0;
	gfn_t gfn;

	guard(srcu)(&kvm->srcu);

	for_each_set_bit(bit, (const unsigned long *)written, nbits) {
		gfn = first + bit;
		if (!slot || gfn < slot->base_gfn || gfn - slot->base_gfn >= slot->npages)
			slot = __gfn_to_memslot(__kvm_memslots(kvm, as_id), gfn);
		if (!slot || !slot->dirty_bitmap ||
		    slot == READ_ONCE(kvm->rs_dirty_log.starting))
			continue;
		set_bit_le(gfn - slot->base_gfn, slot->dirty_bitmap);
		carried++;
	}
	if (carried)
		atomic64_add(carried, &kvm->rs_stat.mmu_events[KVM_RS_DIRTY_CARRY]);
}
