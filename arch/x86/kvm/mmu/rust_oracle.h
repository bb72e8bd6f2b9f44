/* SPDX-License-Identifier: GPL-2.0 */
/* Upstream's SPTE functions under other names, for kunit.rs to compare with. */
#ifndef __KVM_X86_MMU_RUST_ORACLE_H
#define __KVM_X86_MMU_RUST_ORACLE_H

#include <linux/types.h>

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

/* Arguments of make_spte() that a test varies. */
struct kvm_rs_leaf {
	u32 role;
	u32 access;
	u64 gfn;
	u64 pfn;
	u64 old_spte;
	bool prefetch;
	bool synchronizing;
	bool host_writable;
	bool cpu_dirty_log;
	/* What mmu_try_to_unsync_pages() shall answer: true to protect. */
	bool shadowed;
};

/* Fields of union kvm_mmu_page_role that Rust looks at. */
enum kvm_rs_role_field {
	KVM_RS_ROLE_LEVEL,
	KVM_RS_ROLE_ACCESS,
	KVM_RS_ROLE_INVALID,
	KVM_RS_ROLE_AD_DISABLED,
	KVM_RS_ROLE_GUEST_MODE,
	KVM_RS_ROLE_MIRROR,
	KVM_RS_ROLE_SMM,
};

/* Returns false if there is no memory. Not for use by two threads at once. */
bool kvm_rs_oracle_begin(enum kvm_rs_format format, u64 me_value, bool nx_huge_pages);
void kvm_rs_oracle_end(void);

void kvm_rs_oracle_masks(struct kvm_rs_masks *masks);
u64 kvm_rs_oracle_leaf(const struct kvm_rs_leaf *leaf, bool *wrprot);
u64 kvm_rs_oracle_small(u64 huge_spte, u32 role, int index);
u64 kvm_rs_oracle_huge(u64 small_spte, int level);
u64 kvm_rs_oracle_nonleaf(u64 pa, bool ad_disabled);
u64 kvm_rs_oracle_mmio(u64 gfn, u32 access, u64 generation);
u64 kvm_rs_oracle_track(u64 spte);
bool kvm_rs_oracle_atomic(u64 spte);
u32 kvm_rs_oracle_role(enum kvm_rs_role_field field, u32 value);

#endif /* __KVM_X86_MMU_RUST_ORACLE_H */
