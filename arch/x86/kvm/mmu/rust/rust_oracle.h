/* SPDX-License-Identifier: GPL-2.0 */
/* Upstream's SPTE functions under other names, for kunit.rs to compare with. */
#ifndef __KVM_X86_MMU_RUST_ORACLE_H
#define __KVM_X86_MMU_RUST_ORACLE_H

#include <linux/types.h>

struct kvm;
struct kvm_memory_slot;
struct kvm_mmu_page;
struct kvm_vcpu;

enum kvm_rs_format {
	KVM_RS_NPT,
	KVM_RS_EPT_AD,
	KVM_RS_EPT,
	KVM_RS_NR_FORMATS,
};

/* The oracle's own masks, in the order of struct Masks in pure/masks.rs. */
struct kvm_rs_masks {
	u64 host_writable;
	u64 mmu_writable;
	u64 nx;
	u64 user;
	u64 xs;
	u64 xu;
	u64 accessed;
	u64 dirty;
	u64 present;
	u64 me_value;
	u64 acc_track;
	u64 mmio_mask;
	u64 mmio_access;
	u64 nonpresent_or_rsvd;
	u64 base_addr;
	u64 mmio_value;
	bool ad_enabled;
	bool mmio_caching;
};

/* What a test varies: arguments of make_spte(), and the VM that it looks at. */
struct kvm_rs_leaf {
	u32 role;
	u32 access;
	u64 gfn;
	u64 pfn;
	u64 old_spte;
	bool prefetch;
	bool synchronizing;
	bool host_writable;
	/* The VM's vCPUs have a hardware dirty log. */
	bool cpu_dirty_log;
	/* The VM has opted out of the NX huge page mitigation. */
	bool nx_opt_out;
	/* The frame holds a guest page table that is being shadowed. */
	bool shadowed;
	/* Writes to the memslot are logged. */
	bool dirty_log;
};

/* The format and the settings that all of a test's SPTEs have in common. */
struct kvm_rs_oracle {
	enum kvm_rs_format format;
	u64 me_value;
	bool nx_huge_pages;
	/* The CPU has the L1TF bug. */
	bool l1tf;
};

/* The fake VM, for the Rust functions to be called with as well. */
struct kvm_rs_fake {
	struct kvm *kvm;
	struct kvm_vcpu *vcpu;
	struct kvm_memory_slot *slot;
	struct kvm_mmu_page *sp;
};

/* Bits of kvm_rs_oracle_predicates(); the last three of present SPTEs only. */
enum kvm_rs_predicate {
	KVM_RS_IS_PRESENT,
	KVM_RS_IS_LAST,
	KVM_RS_IS_LARGE,
	KVM_RS_IS_WRITABLE,
	KVM_RS_IS_MMU_WRITABLE,
	KVM_RS_IS_ACCESSED,
	KVM_RS_IS_FROZEN,
	KVM_RS_IS_MMIO,
	KVM_RS_IS_VE_POSSIBLE,
	KVM_RS_IS_AD_ENABLED,
	KVM_RS_IS_AD_WRPROT,
	KVM_RS_IS_ACCESS_TRACKED,
};

/* Fields of union kvm_mmu_page_role that Rust looks at. */
enum kvm_rs_role_field {
	KVM_RS_ROLE_LEVEL,
	KVM_RS_ROLE_DIRECT,
	KVM_RS_ROLE_ACCESS,
	KVM_RS_ROLE_INVALID,
	KVM_RS_ROLE_AD_DISABLED,
	KVM_RS_ROLE_GUEST_MODE,
	KVM_RS_ROLE_PASSTHROUGH,
	KVM_RS_ROLE_MIRROR,
	KVM_RS_ROLE_SMM,
};

/*
 * Until kvm_rs_oracle_end(), nx_huge_pages and the vendor's memory type callback
 * are the test's, so there may be no VM: -EBUSY. Not for two threads at once.
 */
int kvm_rs_oracle_begin(const struct kvm_rs_oracle *oracle, struct kvm_rs_fake *vm);
void kvm_rs_oracle_end(void);

void kvm_rs_oracle_masks(struct kvm_rs_masks *masks);
/* Makes the fake VM what @leaf says, and its dirty log empty. */
void kvm_rs_oracle_prepare(const struct kvm_rs_leaf *leaf);
u64 kvm_rs_oracle_leaf(const struct kvm_rs_leaf *leaf, bool *wrprot);
/* Whether the frame is in the dirty log since kvm_rs_oracle_prepare(). */
bool kvm_rs_oracle_dirty(void);
void kvm_rs_oracle_generation(u64 generation);
u64 kvm_rs_oracle_small(u64 huge_spte, u32 role, int index);
u64 kvm_rs_oracle_huge(u64 small_spte, int level);
u64 kvm_rs_oracle_nonleaf(u64 pa, bool ad_disabled);
u64 kvm_rs_oracle_mmio(u64 gfn, u32 access);
u64 kvm_rs_oracle_track(u64 spte);
u64 kvm_rs_oracle_untrack(u64 spte);
bool kvm_rs_oracle_atomic(u64 spte);
bool kvm_rs_oracle_flush(u64 old_spte, u64 new_spte);
u64 kvm_rs_oracle_pfn(u64 spte);
u32 kvm_rs_oracle_access(u64 spte);
u32 kvm_rs_oracle_predicates(u64 spte, int level);
u32 kvm_rs_oracle_role(enum kvm_rs_role_field field, u32 value);

#endif /* __KVM_X86_MMU_RUST_ORACLE_H */
