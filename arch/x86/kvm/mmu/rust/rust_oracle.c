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

#include "../../../../../rust/support/tests.c"
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

#include "mmu/spte.c"

/*
 * A VM with one vCPU and a memslot of one frame, as far as spte.c and what it
 * calls look at them.
 */
static struct {
	struct kvm *kvm;
	struct kvm_vcpu *vcpu;
	struct kvm_mmu *mmu;
	struct kvm_memslots *slots;
	struct kvm_memory_slot *slot;
	struct kvm_mmu_page *sp;
	struct kvm_lpage_info lpage_info;
	unsigned short write_track;
	unsigned long dirty;
} fake;

/* What the test replaces for its time. */
static struct {
	int nx_huge_pages;
	u8 (*get_mt_mask)(struct kvm_vcpu *vcpu, gfn_t gfn, bool is_mmio);
} real;

/* Tells by its answer what it was asked. */
static u8 fake_mt_mask(struct kvm_vcpu *vcpu, gfn_t gfn, bool is_mmio)
{
	return (gfn & 7) << VMX_EPT_MT_EPTE_SHIFT | (is_mmio ? VMX_EPT_IPAT_BIT : 0);
}

static void set_mt_mask(u8 (*get_mt_mask)(struct kvm_vcpu *vcpu, gfn_t gfn, bool is_mmio))
{
	kvm_x86_ops.get_mt_mask = get_mt_mask;
	static_call_update(kvm_x86_get_mt_mask,
			   (void *)get_mt_mask ?: (void *)__static_call_return0);
}

static void fake_free(void)
{
	kvfree(fake.kvm);
	kvfree(fake.vcpu);
	kvfree(fake.mmu);
	kvfree(fake.slots);
	kvfree(fake.slot);
	kvfree(fake.sp);
	memset(&fake, 0, sizeof(fake));
}

static bool fake_alloc(void)
{
	fake.kvm = kvzalloc_obj(*fake.kvm, GFP_KERNEL);
	fake.vcpu = kvzalloc_obj(*fake.vcpu, GFP_KERNEL);
	fake.mmu = kvzalloc_obj(*fake.mmu, GFP_KERNEL);
	fake.slots = kvzalloc_obj(*fake.slots, GFP_KERNEL);
	fake.slot = kvzalloc_obj(*fake.slot, GFP_KERNEL);
	fake.sp = kvzalloc_obj(*fake.sp, GFP_KERNEL);
	return fake.kvm && fake.vcpu && fake.mmu && fake.slots && fake.slot && fake.sp;
}

int kvm_rs_oracle_begin(const struct kvm_rs_oracle *oracle, struct kvm_rs_fake *vm)
{
	if (!list_empty(&vm_list))
		return -EBUSY;
	if (!fake_alloc()) {
		fake_free();
		return -ENOMEM;
	}

	fake.vcpu->kvm = fake.kvm;
	fake.vcpu->arch.mmu = fake.mmu;
	rcu_assign_pointer(fake.kvm->memslots[0], fake.slots);
	rcu_assign_pointer(fake.kvm->memslots[1], fake.slots);
	/* Have mmu_try_to_unsync_pages() look at write_track, and no further. */
	fake.kvm->arch.shadow_root_allocated = true;
	fake.slot->npages = 1;
	fake.slot->dirty_bitmap = &fake.dirty;
	fake.slot->arch.gfn_write_track = &fake.write_track;
	fake.slot->arch.lpage_info[0] = &fake.lpage_info;

	allow_mmio_caching = true;
	kvm_mmu_reset_all_pte_masks();
	if (oracle->l1tf) {
		/* As with 46 bits of physical address. */
		shadow_nonpresent_or_rsvd_mask = rsvd_bits(41, 45);
		shadow_nonpresent_or_rsvd_lower_gfn_mask = GENMASK_ULL(40, PAGE_SHIFT);
	}
	if (oracle->format != KVM_RS_NPT)
		kvm_mmu_set_ept_masks(oracle->format == KVM_RS_EPT_AD);
	kvm_mmu_set_me_spte_mask(oracle->me_value, oracle->me_value);
	fake.kvm->arch.shadow_mmio_value = shadow_mmio_value;

	real.nx_huge_pages = nx_huge_pages;
	nx_huge_pages = oracle->nx_huge_pages;
	real.get_mt_mask = kvm_x86_ops.get_mt_mask;
	set_mt_mask(oracle->format == KVM_RS_NPT ? NULL : fake_mt_mask);

	*vm = (struct kvm_rs_fake) {
		.kvm = fake.kvm,
		.vcpu = fake.vcpu,
		.slot = fake.slot,
		.sp = fake.sp,
	};
	return 0;
}

void kvm_rs_oracle_end(void)
{
	nx_huge_pages = real.nx_huge_pages;
	set_mt_mask(real.get_mt_mask);
	fake_free();
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

void kvm_rs_oracle_prepare(const struct kvm_rs_leaf *leaf)
{
	fake.kvm->arch.cpu_dirty_log_size = leaf->cpu_dirty_log ? 512 : 0;
	fake.kvm->arch.disable_nx_huge_pages = leaf->nx_opt_out;
	fake.sp->role.word = leaf->role;
	fake.slot->base_gfn = leaf->gfn;
	fake.slot->flags = leaf->dirty_log ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	fake.write_track = leaf->shadowed;
	fake.dirty = 0;
}

u64 kvm_rs_oracle_leaf(const struct kvm_rs_leaf *leaf, bool *wrprot)
{
	u64 spte;

	*wrprot = make_spte(fake.vcpu, fake.sp, fake.slot, leaf->access, leaf->gfn,
			    leaf->pfn, leaf->old_spte, leaf->prefetch,
			    leaf->synchronizing, leaf->host_writable, &spte);
	return spte;
}

bool kvm_rs_oracle_dirty(void)
{
	return fake.dirty;
}

void kvm_rs_oracle_generation(u64 generation)
{
	fake.slots->generation = generation;
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

u64 kvm_rs_oracle_mmio(u64 gfn, u32 access)
{
	return make_mmio_spte(fake.vcpu, gfn, access);
}

u64 kvm_rs_oracle_track(u64 spte)
{
	return mark_spte_for_access_track(spte);
}

u64 kvm_rs_oracle_untrack(u64 spte)
{
	return restore_acc_track_spte(spte);
}

bool kvm_rs_oracle_atomic(u64 spte)
{
	return spte_needs_atomic_update(spte);
}

bool kvm_rs_oracle_flush(u64 old_spte, u64 new_spte)
{
	return leaf_spte_change_needs_tlb_flush(old_spte, new_spte);
}

u64 kvm_rs_oracle_pfn(u64 spte)
{
	return spte_to_pfn(spte);
}

/*
 * The ACC_* bits that spte_permission_fault() finds in @spte. It looks them up in
 * a bitmap, so ask it once for each bit, with the bitmap of the sets that have it.
 */
u32 kvm_rs_oracle_access(u64 spte)
{
	static const u16 sets[] = { 0xaaaa, 0xcccc, 0xf0f0, 0xff00 };
	u32 access = 0;
	int bit;

	for (bit = 0; bit < ARRAY_SIZE(sets); bit++) {
		struct kvm_page_fault fault = { .error_code = bit << 1 };

		fake.mmu->fmt.permissions[bit] = sets[bit];
		if (spte_permission_fault(fake.mmu, spte, &fault))
			access |= 1U << bit;
	}
	return access;
}

u32 kvm_rs_oracle_predicates(u64 spte, int level)
{
	u32 is = 0;

	is |= is_shadow_present_pte(spte) ? BIT(KVM_RS_IS_PRESENT) : 0;
	is |= is_last_spte(spte, level) ? BIT(KVM_RS_IS_LAST) : 0;
	is |= is_large_pte(spte) ? BIT(KVM_RS_IS_LARGE) : 0;
	is |= is_writable_pte(spte) ? BIT(KVM_RS_IS_WRITABLE) : 0;
	is |= is_mmu_writable_spte(spte) ? BIT(KVM_RS_IS_MMU_WRITABLE) : 0;
	is |= is_accessed_spte(spte) ? BIT(KVM_RS_IS_ACCESSED) : 0;
	is |= is_frozen_spte(spte) ? BIT(KVM_RS_IS_FROZEN) : 0;
	is |= is_mmio_spte(fake.kvm, spte) ? BIT(KVM_RS_IS_MMIO) : 0;
	is |= is_ept_ve_possible(spte) ? BIT(KVM_RS_IS_VE_POSSIBLE) : 0;
	if (!is_shadow_present_pte(spte))
		return is;

	is |= spte_ad_enabled(spte) ? BIT(KVM_RS_IS_AD_ENABLED) : 0;
	is |= spte_ad_need_write_protect(spte) ? BIT(KVM_RS_IS_AD_WRPROT) : 0;
	is |= is_access_track_spte(spte) ? BIT(KVM_RS_IS_ACCESS_TRACKED) : 0;
	return is;
}

u32 kvm_rs_oracle_role(enum kvm_rs_role_field field, u32 value)
{
	union kvm_mmu_page_role role = {};

	switch (field) {
	case KVM_RS_ROLE_LEVEL:
		role.level = value;
		break;
	case KVM_RS_ROLE_DIRECT:
		role.direct = value;
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
	case KVM_RS_ROLE_PASSTHROUGH:
		role.passthrough = value;
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
