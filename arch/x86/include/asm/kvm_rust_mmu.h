/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What struct kvm and struct kvm_vcpu have for the MMU in Rust, and what the rest of arch/x86/kvm
 * calls of it. The functions that virt/kvm calls are in linux/kvm_host.h.
 */
#ifndef _ASM_X86_KVM_RUST_MMU_H
#define _ASM_X86_KVM_RUST_MMU_H

#include <linux/list.h>
#include <linux/lockdep_types.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>
#include <linux/wait.h>

struct kvm;
struct kvm_vcpu;
struct kvm_enable_cap;
struct kvm_memory_slot;

/* Who holds mmu_lock, or waits for it. */
enum kvm_mmu_holder {
	/*
	 * Under slots_lock. Where they walk the reverse map they are KVM_MMU_RMAP. Of several
	 * threads that clear, one is KVM_MMU_CLEAR.
	 */
	KVM_MMU_ENABLE,
	KVM_MMU_CLEAR,
	KVM_MMU_GET,
	KVM_MMU_DISABLE,
	KVM_MMU_RMAP,
	/* Also guest_memfd and memory attributes. */
	KVM_MMU_NOTIFIER,
	/* Deleting memslots, zapping roots and ranges. */
	KVM_MMU_ZAP,
	KVM_MMU_NX_RECOVERY,
	/* Page faults of vCPUs, with pre-faulting; and looking for a root. */
	KVM_MMU_FAULT,
	/* Nobody of the above. Not measured. */
	KVM_MMU_OTHER,
	KVM_MMU_NR_HOLDERS = KVM_MMU_OTHER,
};

/* What a fault was for. */
enum kvm_mmu_fault_cause {
	/* Nothing was mapped. */
	KVM_MMU_FAULT_MISSING,
	/* The page was mapped, and not writable. */
	KVM_MMU_FAULT_LOGGED,
	/* A huge page was split. */
	KVM_MMU_FAULT_SPLIT,
	/* Another vCPU had done it, or did it meanwhile. */
	KVM_MMU_FAULT_SPURIOUS,
	/* The page was mapped, and not executable. */
	KVM_MMU_FAULT_NX,
	/* Retried because an invalidation was pending; all the retries are one fault. */
	KVM_MMU_FAULT_INVALIDATION,
	/* Emulated, or failed. */
	KVM_MMU_FAULT_OTHER,
	KVM_MMU_NR_CAUSES,
};

/*
 * Bucket n > 0 counts times of 2^(n-1) to 2^n - 1 ns, the last one also all that are longer:
 * from 1 s on.
 */
#define KVM_MMU_HIST_COUNT 32

/* Times in ns. Written by one thread at a time, read without a lock. */
struct kvm_mmu_times {
	u64 ns;
	u64 max_ns;
	u64 hist[KVM_MMU_HIST_COUNT];
};

/*
 * Statistics of a vCPU, beside those of struct kvm_vcpu_stat. One of the last members of struct
 * kvm_vcpu, which come after all of upstream's. Written by the thread that has loaded the vCPU.
 */
struct kvm_rs_vcpu_stat {
	/* Always on. */
	struct kvm_mmu_times mmu_lock_wait;
	u64 mmu_invalidate_retries;
	/* With kvm.mmu_lock_stats=Y only. */
	u64 mmu_wait_for[KVM_MMU_NR_HOLDERS + 1];
	struct kvm_mmu_times mmu_fault[KVM_MMU_NR_CAUSES];
	/* To userspace a statistic of the VM: the sum of its vCPUs. */
	struct kvm_mmu_times mmu_hold;
};

/* What a vCPU's fault is about to account for. */
struct kvm_rs_vcpu_fault {
	/* When mmu_lock was acquired, or 0; and whether this fault did. */
	u64 held_since;
	bool locked;
	/* When the first of the retries for an invalidation began, or 0, and the last one ended. */
	u64 retry_since;
	u64 retry_until;
	u64 retry_gfn;
	bool split;
};

/* Who holds mmu_lock now, with kvm.mmu_lock_stats=Y. */
struct kvm_rs_lock {
	/*
	 * Since when, or 0, with the generation of the key (rust_lock_stats.c). Written by the
	 * holder; there is at most one of each kind at a time. KVM_MMU_FAULT only for write.
	 */
	u64 since[KVM_MMU_NR_HOLDERS];
	/* The holder for write, plus 1, or 0. Written under the lock, like the next two. */
	u8 writer;
	/* The last one, plus 1, and since when it had the lock. */
	u8 last_writer;
	u64 last_since;
};

/*
 * Statistics of a VM, beside those of struct kvm_vm_stat. They are one of the last members of
 * struct kvm, which come after all of upstream's: modules of a distribution that use that
 * structure, and know nothing of these, still find all else in its place.
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
			atomic64_t mmu_dirty_clean_tables;
			atomic64_t mmu_dirty_pages;
			atomic64_t mmu_dirty_carried;
		};
		atomic64_t mmu_events[11];
	};
	/*
	 * Not only a statistic: tables that were unlinked and are not freed yet. Whoever allocates
	 * more for splits waits if it is too large (limit_unused() in page.rs).
	 */
	atomic64_t mmu_unused_tables;
	u64 mmu_max_hold_ns;
	/*
	 * With kvm.mmu_lock_stats=Y only: how long writers waited, and how long mmu_lock was held,
	 * by enum kvm_mmu_holder. What faults held is summed up when it is read.
	 */
	struct kvm_mmu_times mmu_write_wait;
	struct kvm_mmu_times mmu_hold[KVM_MMU_NR_HOLDERS];
};

/* How writes to the memslots of a VM are logged. Written under slots_lock. */
struct kvm_rs_dirty_log {
	/* The slot that is being enabled, whose D bits may be old. Never dereferenced. */
	const struct kvm_memory_slot *starting;
	/* From faults to D bits: D bits of all slots may be old. */
	bool switching;
	/* By D bits (ops/dirty_log/dirty_bits.rs), until no slot is logged any more. */
	bool dirty_bits;
	/* What userspace wants: KVM_X86_DIRTY_LOG_*. Written without a lock. */
	u8 mode;
	/* KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, in bytes; 0: kvm.eager_page_split counts. */
	u64 eager_split_chunk;
	/*
	 * The ranges of memslots' logs that are being cleared without slots_lock. They are added
	 * with slots_lock held. With a TDP MMU only.
	 */
	spinlock_t clears_lock;
	struct list_head clears;
	wait_queue_head_t clears_wait;
	/* One of them is accounted in the statistics of mmu_lock, which have room for one. */
	bool clear_accounted;
	/* To lockdep each of them is a reader, and whoever waits for them is a writer. */
	struct lockdep_map clears_map;
};

#define KVM_RS_NO_EAGER_SPLIT	U64_MAX
/* As many tables as the cache for splitting holds (cache.rs). */
#define KVM_RS_MAX_SPLIT_CHUNK	(64ULL << 21)

/*
 * In disallow_lpage, beside KVM_LPAGE_MIXED_FLAG and a count that stays far below: userspace
 * wants no page of this size (KVM_SPLIT_FLAG_KEEP). As the rest of the word it changes with
 * mmu_lock held for write only, and is gone with the memslot.
 */
#define KVM_RS_LPAGE_KEPT	BIT(30)

/*
 * Set for a page of 2 MiB: userspace wants no page of 1 GiB around it. It does not forbid the page
 * itself, so kvm_mmu_max_mapping_level() ignores it.
 */
#define KVM_RS_LPAGE_KEPT_2M	BIT(29)

/* As VM_STATS_DESC(). To userspace these statistics follow those of struct kvm_vm_stat. */
#define RS_VM_STATS_DESC(stat, type, unit, base, exp, sz, bsz)		\
	RS_STATS_DESC(vm, #stat, stat, type, unit, base, exp, sz, bsz)

#define RS_STATS_DESC(scope, stat, member, type, unit, base, exp, sz, bsz) \
{									\
	STATS_DESC_COMMON(type, unit, base, exp, sz, bsz),		\
	.offset = sizeof(struct kvm_##scope##_stat) +			\
		  offsetof(struct kvm_rs_##scope##_stat, member),	\
	.name = stat,							\
}

#define RS_STATS_NS(scope, stat, member, type)				\
	RS_STATS_DESC(scope, stat, member, type, KVM_STATS_UNIT_SECONDS,	\
		      KVM_STATS_BASE_POW10, -9, 1, 0)

/* The three statistics that a struct kvm_mmu_times is. */
#define RS_TIMES_NS(scope, stat, member)				\
	RS_STATS_NS(scope, stat "_ns", member.ns, KVM_STATS_TYPE_CUMULATIVE)
#define RS_TIMES_MAX(scope, stat, member)				\
	RS_STATS_NS(scope, stat "_max_ns", member.max_ns, KVM_STATS_TYPE_PEAK)
#define RS_TIMES_HIST(scope, stat, member)				\
	RS_STATS_DESC(scope, stat "_hist", member.hist, KVM_STATS_TYPE_LOG_HIST, \
		      KVM_STATS_UNIT_SECONDS, KVM_STATS_BASE_POW10, -9,	\
		      KVM_MMU_HIST_COUNT, 0)

/* rust_lock_report.c */
void kvm_rs_create_debugfs(struct kvm *kvm);

/* rust_dirty_log.c */
int kvm_rs_dirty_log_modes(struct kvm *kvm);
int kvm_rs_set_dirty_log_mode(struct kvm *kvm, const struct kvm_enable_cap *cap);

/* rust_split.c */
int kvm_rs_split_huge_pages(struct kvm *kvm, void __user *argp);
int kvm_rs_split_extension(struct kvm *kvm, u32 cap);
int kvm_rs_set_eager_split_chunk(struct kvm *kvm, const struct kvm_enable_cap *cap);

#endif /* _ASM_X86_KVM_RUST_MMU_H */
