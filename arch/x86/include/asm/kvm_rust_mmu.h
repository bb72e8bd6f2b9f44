/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What virt/kvm knows of the MMU in Rust; exports.rs has the comments on the functions.
 */
#ifndef _ASM_X86_KVM_RUST_MMU_H
#define _ASM_X86_KVM_RUST_MMU_H

#include <linux/types.h>

struct kvm;
struct kvm_memory_slot;

/*
 * Statistics of a VM, beside those of struct kvm_vm_stat. They are the last member of struct
 * kvm: modules of a distribution that use that structure, and know nothing of these, still
 * find all else in its place.
 */
struct kvm_rs_vm_stat {
	/* Atomic, as holders of mmu_lock for read count side by side. */
	union {
		struct {
			atomic64_t mmu_eager_splits;
			atomic64_t mmu_fault_splits;
			atomic64_t mmu_promotions;
			atomic64_t mmu_split_no_memory;
			atomic64_t mmu_split_no_budget;
			atomic64_t mmu_split_lost_race;
			atomic64_t mmu_yields;
			atomic64_t mmu_dirty_tables;
			atomic64_t mmu_dirty_pages;
			atomic64_t mmu_dirty_carried;
		};
		atomic64_t mmu_events[10];
	};
	u64 mmu_max_hold_ns;
};

/* How writes to the memslots of a VM are logged. Written under slots_lock. */
struct kvm_rs_dirty_log {
	/* The slot that is being enabled, whose D bits may be old. Never dereferenced. */
	const struct kvm_memory_slot *starting;
	/* By D bits (ops/dirty_log/dirty_bits.rs), until no slot is logged any more. */
	bool dirty_bits;
};

/* As VM_STATS_DESC(). To userspace these statistics follow those of struct kvm_vm_stat. */
#define RS_VM_STATS_DESC(stat, type, unit, base, exp, sz, bsz)		\
{									\
	STATS_DESC_COMMON(type, unit, base, exp, sz, bsz),		\
	.offset = sizeof(struct kvm_vm_stat) +				\
		  offsetof(struct kvm_rs_vm_stat, stat),		\
	.name = #stat,							\
}

int kvm_rs_harvest_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			     unsigned long *buffer);
int kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			 unsigned long *buffer);
int kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   u64 first_page, unsigned long words, unsigned long *buffer);

#endif /* _ASM_X86_KVM_RUST_MMU_H */
