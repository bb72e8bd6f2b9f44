// SPDX-License-Identifier: GPL-2.0
/*
 * The oracle: upstream's spte.c, included, not copied, with its globals and
 * functions renamed. It has masks of its own, which a test can set to any
 * vendor's, whatever the machine is.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/* Before all headers, because a field of struct kvm_arch has that name as well. */
#define shadow_mmio_value			oracle_mmio_value

#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "rust_oracle.h"

/* spte.c shall be what it is without the Rust MMU... */
#undef CONFIG_KVM_RUST_MMU
/* ...and leave the real module's parameters and exports alone. */
#undef module_param_named
#define module_param_named(name, value, type, perm)
#undef EXPORT_SYMBOL_FOR_KVM_INTERNAL
#define EXPORT_SYMBOL_FOR_KVM_INTERNAL(symbol)
#undef __ro_after_init
#define __ro_after_init

#define enable_mmio_caching			oracle_enable_mmio_caching
#define kvm_ad_enabled				oracle_ad_enabled
#define nx_huge_pages				oracle_nx_huge_pages
#define shadow_host_writable_mask		oracle_host_writable_mask
#define shadow_mmu_writable_mask		oracle_mmu_writable_mask
#define shadow_nx_mask				oracle_nx_mask
#define shadow_user_mask			oracle_user_mask
#define shadow_xs_mask				oracle_xs_mask
#define shadow_xu_mask				oracle_xu_mask
#define shadow_accessed_mask			oracle_accessed_mask
#define shadow_dirty_mask			oracle_dirty_mask
#define shadow_mmio_mask			oracle_mmio_mask
#define shadow_mmio_access_mask			oracle_mmio_access_mask
#define shadow_present_mask			oracle_present_mask
#define shadow_me_value				oracle_me_value
#define shadow_me_mask				oracle_me_mask
#define shadow_acc_track_mask			oracle_acc_track_mask
#define shadow_nonpresent_or_rsvd_mask		oracle_nonpresent_or_rsvd_mask
#define shadow_nonpresent_or_rsvd_lower_gfn_mask oracle_nonpresent_or_rsvd_lower_gfn_mask

#define kvm_mmu_spte_module_init		oracle_mmu_spte_module_init
#define make_mmio_spte				oracle_make_mmio_spte
#define spte_needs_atomic_update		oracle_spte_needs_atomic_update
#define make_spte				oracle_make_spte
#define make_small_spte				oracle_make_small_spte
#define make_huge_spte				oracle_make_huge_spte
#define make_nonleaf_spte			oracle_make_nonleaf_spte
#define mark_spte_for_access_track		oracle_mark_spte_for_access_track
#define kvm_mmu_set_mmio_spte_mask		oracle_set_mmio_spte_mask
#define kvm_mmu_set_mmio_spte_value		oracle_set_mmio_spte_value
#define kvm_mmu_set_me_spte_mask		oracle_set_me_spte_mask
#define kvm_mmu_set_ept_masks			oracle_set_ept_masks
#define kvm_mmu_reset_all_pte_masks		oracle_reset_all_pte_masks
#define mmu_try_to_unsync_pages			oracle_try_to_unsync_pages

#include "spte.c"

int nx_huge_pages;

/* A VM with one vCPU, as far as spte.c looks at them. */
static struct {
	struct kvm *kvm;
	struct kvm_vcpu *vcpu;
	struct kvm_mmu *mmu;
	struct kvm_memslots *slots;
	struct kvm_memory_slot *slot;
	struct kvm_mmu_page *sp;
	bool shadowed;
} fake;

int mmu_try_to_unsync_pages(struct kvm *kvm, const struct kvm_memory_slot *slot,
			    gfn_t gfn, bool synchronizing, bool prefetch)
{
	return fake.shadowed ? -EPERM : 0;
}

bool kvm_rs_oracle_begin(enum kvm_rs_format format, u64 me_value, bool nx_hugepages)
{
	fake.kvm = kvzalloc_obj(*fake.kvm, GFP_KERNEL);
	fake.vcpu = kvzalloc_obj(*fake.vcpu, GFP_KERNEL);
	fake.mmu = kvzalloc_obj(*fake.mmu, GFP_KERNEL);
	fake.slots = kvzalloc_obj(*fake.slots, GFP_KERNEL);
	fake.slot = kvzalloc_obj(*fake.slot, GFP_KERNEL);
	fake.sp = kvzalloc_obj(*fake.sp, GFP_KERNEL);
	if (!fake.kvm || !fake.vcpu || !fake.mmu || !fake.slots || !fake.slot || !fake.sp) {
		kvm_rs_oracle_end();
		return false;
	}

	fake.vcpu->kvm = fake.kvm;
	fake.vcpu->arch.mmu = fake.mmu;
	rcu_assign_pointer(fake.kvm->memslots[0], fake.slots);

	allow_mmio_caching = true;
	nx_huge_pages = nx_hugepages;
	kvm_mmu_reset_all_pte_masks();
	if (format != KVM_RS_NPT)
		kvm_mmu_set_ept_masks(format == KVM_RS_EPT_AD);
	kvm_mmu_set_me_spte_mask(me_value, me_value);
	fake.kvm->arch.shadow_mmio_value = shadow_mmio_value;
	return true;
}

void kvm_rs_oracle_end(void)
{
	kvfree(fake.kvm);
	kvfree(fake.vcpu);
	kvfree(fake.mmu);
	kvfree(fake.slots);
	kvfree(fake.slot);
	kvfree(fake.sp);
	memset(&fake, 0, sizeof(fake));
}

void kvm_rs_oracle_masks(struct kvm_rs_masks *masks)
{
	*masks = (struct kvm_rs_masks) {
		.host_writable = shadow_host_writable_mask,
		.mmu_writable = shadow_mmu_writable_mask,
		.nx = shadow_nx_mask,
		.user = shadow_user_mask,
		.xs = shadow_xs_mask,
		.xu = shadow_xu_mask,
		.accessed = shadow_accessed_mask,
		.dirty = shadow_dirty_mask,
		.present = shadow_present_mask,
		.me_value = shadow_me_value,
		.acc_track = shadow_acc_track_mask,
		.mmio_mask = shadow_mmio_mask,
		.mmio_access = shadow_mmio_access_mask,
		.nonpresent_or_rsvd = shadow_nonpresent_or_rsvd_mask,
		.base_addr = SPTE_BASE_ADDR_MASK,
		.mmio_value = shadow_mmio_value,
		.ad_enabled = kvm_ad_enabled,
		.mmio_caching = enable_mmio_caching,
	};
}

u64 kvm_rs_oracle_leaf(const struct kvm_rs_leaf *leaf, bool *wrprot)
{
	u64 spte;

	fake.shadowed = leaf->shadowed;
	fake.kvm->arch.cpu_dirty_log_size = leaf->cpu_dirty_log ? 512 : 0;
	fake.sp->role.word = leaf->role;
	*wrprot = make_spte(fake.vcpu, fake.sp, fake.slot, leaf->access, leaf->gfn,
			    leaf->pfn, leaf->old_spte, leaf->prefetch,
			    leaf->synchronizing, leaf->host_writable, &spte);
	return spte;
}

u64 kvm_rs_oracle_small(u64 huge_spte, u32 role, int index)
{
	return make_small_spte(fake.kvm, huge_spte,
			       (union kvm_mmu_page_role) { .word = role }, index);
}

u64 kvm_rs_oracle_huge(u64 small_spte, int level)
{
	return make_huge_spte(fake.kvm, small_spte, level);
}

u64 kvm_rs_oracle_nonleaf(u64 pa, bool ad_disabled)
{
	return make_nonleaf_spte(__va(pa), ad_disabled);
}

u64 kvm_rs_oracle_mmio(u64 gfn, u32 access, u64 generation)
{
	fake.slots->generation = generation;
	return make_mmio_spte(fake.vcpu, gfn, access);
}

u64 kvm_rs_oracle_track(u64 spte)
{
	return mark_spte_for_access_track(spte);
}

bool kvm_rs_oracle_atomic(u64 spte)
{
	return spte_needs_atomic_update(spte);
}

u32 kvm_rs_oracle_role(enum kvm_rs_role_field field, u32 value)
{
	union kvm_mmu_page_role role = {};

	switch (field) {
	case KVM_RS_ROLE_LEVEL:
		role.level = value;
		break;
	case KVM_RS_ROLE_ACCESS:
		role.access = value;
		break;
	case KVM_RS_ROLE_INVALID:
		role.invalid = value;
		break;
	case KVM_RS_ROLE_AD_DISABLED:
		role.ad_disabled = value;
		break;
	case KVM_RS_ROLE_GUEST_MODE:
		role.guest_mode = value;
		break;
	case KVM_RS_ROLE_MIRROR:
		role.is_mirror = value;
		break;
	case KVM_RS_ROLE_SMM:
		role.smm = value;
		break;
	}
	return role.word;
}
