// SPDX-License-Identifier: GPL-2.0
/*
 * KVM around two TDP MMUs, in a process: VMs, ioctls, checks. Compiled with the
 * flags of the kernel's own objects, so that structures and inline functions are
 * theirs; so is kernel.c, which has the rest of the kernel.
 *
 * The symbols of the C MMU's objects have got the prefix c_, those of the Rust
 * MMU's r_. The lookup of the host's mapping always finds a huge page, and a TLB
 * flush waits for CPUs in the guest: both are the same for either MMU, and cost
 * next to nothing, so that what is left is the MMU's.
 */
#include <linux/kvm_host.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"

#include "native.h"
#include "rust_vm.h"
#include "vm.h"

/* Both MMUs have these. */
typeof(kvm_mmu_spte_module_init) c_kvm_mmu_spte_module_init, r_kvm_mmu_spte_module_init;
typeof(kvm_mmu_reset_all_pte_masks) c_kvm_mmu_reset_all_pte_masks, r_kvm_mmu_reset_all_pte_masks;
typeof(kvm_mmu_init_tdp_mmu) c_kvm_mmu_init_tdp_mmu, r_kvm_mmu_init_tdp_mmu;
typeof(kvm_tdp_mmu_alloc_root) c_kvm_tdp_mmu_alloc_root, r_kvm_tdp_mmu_alloc_root;
typeof(kvm_tdp_mmu_map) c_kvm_tdp_mmu_map, r_kvm_tdp_mmu_map;
typeof(kvm_tdp_mmu_zap_all) c_kvm_tdp_mmu_zap_all, r_kvm_tdp_mmu_zap_all;
typeof(kvm_tdp_mmu_recover_huge_pages) c_kvm_tdp_mmu_recover_huge_pages,
	r_kvm_tdp_mmu_recover_huge_pages;

typeof(kvm_tdp_mmu_try_split_huge_pages) c_kvm_tdp_mmu_try_split_huge_pages;
typeof(kvm_tdp_mmu_wrprot_slot) c_kvm_tdp_mmu_wrprot_slot;
typeof(kvm_tdp_mmu_clear_dirty_slot) c_kvm_tdp_mmu_clear_dirty_slot;
typeof(kvm_tdp_mmu_write_protect_gfn) c_kvm_tdp_mmu_write_protect_gfn;
typeof(kvm_tdp_mmu_clear_dirty_pt_masked) c_kvm_tdp_mmu_clear_dirty_pt_masked;

/* What the hooks call. */
void r_kvm_rs_create_vm(void);
bool r_kvm_rs_start_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot);
int r_kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   unsigned long *buffer);
int r_kvm_rs_harvest_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			       unsigned long *buffer);
int r_kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			     u64 first_page, unsigned long words, unsigned long *buffer);

int r_kvm_rs_clear_dirty_range(struct kvm *kvm, const struct kvm_memory_slot *slot,
			       u64 first_page, unsigned long words, unsigned long *buffer,
			       bool accounted);
int r_kvm_rs_split_range(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
			 gfn_t end, int target_level);
int r_kvm_rs_recover_range(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t start,
			   gfn_t end);

/* As KVM_CLEAR_DIRTY_LOG is used: 1 GiB at a time. */
#define CHUNK_PAGES		(HUGE_PAGES_PER_GIB * CHILDREN)
#define CHUNK_WORDS		(CHUNK_PAGES / BITS_PER_LONG)

/* What the page tables of an NPT guest with all rights are made of. */
#define LEAF	(PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | \
		 PT_DIRTY_MASK | SPTE_MMU_PRESENT_MASK | DEFAULT_SPTE_HOST_WRITABLE | \
		 DEFAULT_SPTE_MMU_WRITABLE)

/* For the Rust MMU it is a bit larger, see rust_vm.c. */
static u8 rooms[NATIVE_MMUS][sizeof(struct kvm) + SZ_8K] __aligned(64);
struct vm vms[NATIVE_MMUS];
static unsigned long huge_pages;
/* The size of the host's pages. */
static int host_level = PG_LEVEL_2M;
static atomic_long_t flushes;

/* The kernel's globals. */
struct cpuinfo_x86 boot_cpu_data;
struct kvm_host_values kvm_host;
struct kvm_x86_ops kvm_x86_ops;
bool tdp_enabled = true, tdp_mmu_enabled = true, eager_page_split = true;
int nx_huge_pages;

/* The rest of KVM. */

/*
 * A CPU that is in the guest finishes the write that it is at, and has forgotten
 * what it knew of the page tables. With one thread, none is.
 */
static void flush_guests(struct kvm *kvm)
{
	struct vm *vm = &vms[kvm == vms[NATIVE_C].kvm ? NATIVE_C : NATIVE_RUST];

	atomic_long_inc(&flushes);
	/* What was changed before what a guest is seen at; pairs with try_to_write(). */
	smp_mb();
	for (int i = 0; i < NATIVE_VCPUS; i++) {
		struct kvm_vcpu *vcpu = &vm->vcpus[i].vcpu;
		u64 exits = READ_ONCE(vcpu->stat.exits);

		for (;;) {
			/* With what the guest has written: it has released that. */
			int mode = smp_load_acquire(&vcpu->mode);
			/* The same. */
			u64 now = smp_load_acquire(&vcpu->stat.exits);

			if (mode != IN_GUEST_MODE || now != exits)
				break;
			cpu_relax();
		}
	}
}

void kvm_flush_remote_tlbs(struct kvm *kvm)
{
	flush_guests(kvm);
}

void kvm_flush_remote_tlbs_range(struct kvm *kvm, gfn_t gfn, u64 nr_pages)
{
	flush_guests(kvm);
}

void kvm_flush_remote_tlbs_memslot(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	flush_guests(kvm);
}

unsigned long native_flushes(void)
{
	return atomic_long_xchg(&flushes, 0);
}

/* No dirty ring. */
void mark_page_dirty_in_slot(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn)
{
	if (kvm_slot_dirty_track_enabled(slot))
		set_bit_le(gfn - slot->base_gfn, slot->dirty_bitmap);
}

int kvm_mmu_max_mapping_level(struct kvm *kvm, struct kvm_page_fault *fault,
			      const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return host_level;
}

/* As large as the host's page, unless the slot is logged. */
void kvm_mmu_hugepage_adjust(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault)
{
	if (kvm_slot_dirty_track_enabled(fault->slot))
		return;
	fault->req_level = host_level;
	fault->goal_level = host_level;
	fault->pfn = ALIGN_DOWN(fault->pfn, KVM_PAGES_PER_HPAGE(host_level));
}

int mmu_try_to_unsync_pages(struct kvm *kvm, const struct kvm_memory_slot *slot,
			    gfn_t gfn, bool synchronizing, bool prefetch)
{
	return 0;
}

void track_possible_nx_huge_page(struct kvm *kvm, struct kvm_mmu_page *sp,
				 enum kvm_mmu_type type)
{
}

void untrack_possible_nx_huge_page(struct kvm *kvm, struct kvm_mmu_page *sp,
				   enum kvm_mmu_type type)
{
}

/* No memory attributes: nothing is private. */
void *xa_load(struct xarray *attributes, unsigned long gfn)
{
	return NULL;
}

/* No shadow pages, and nobody else. */
bool kvm_page_track_write_tracking_enabled(struct kvm *kvm)
{
	return false;
}

/* Setting up. */
static void map_slot(enum native_mmu mmu)
{
	unsigned long step = KVM_PAGES_PER_HPAGE(host_level);

	for (unsigned long page = 0; page < vms[mmu].slot->npages; page += step) {
		if (native_write(mmu, 0, page) != NATIVE_SLOW_FAULT)
			native_trap("a fault that maps nothing");
	}
}

void native_set_host(enum native_host host)
{
	host_level = host;
}

void native_remap(enum native_mmu mmu)
{
	native_zap_all(mmu);
	native_grace_period();
	map_slot(mmu);
}

/* kvm_mmu_create(): as many as the path to a page has tables. */
static void init_caches(struct vm *vm, struct kvm_vcpu *vcpu)
{
	static void *objects[NATIVE_MMUS * NATIVE_VCPUS][2][PT64_ROOT_MAX_LEVEL];
	static int used;

	vcpu->arch.mmu_shadow_page_cache.init_value = SHADOW_NONPRESENT_VALUE;
	vcpu->arch.mmu_shadow_page_cache.capacity = PT64_ROOT_MAX_LEVEL;
	vcpu->arch.mmu_shadow_page_cache.objects = objects[used][0];
	vcpu->arch.mmu_page_header_cache.capacity = PT64_ROOT_MAX_LEVEL;
	vcpu->arch.mmu_page_header_cache.objects = objects[used][1];
	used++;
	kernel_topup(vcpu);
}

static void create_vcpu(enum native_mmu mmu, struct kvm_vcpu *vcpu)
{
	struct kvm_mmu *root_mmu = &vcpu->arch.root_mmu;
	struct vm *vm = &vms[mmu];

	vcpu->kvm = vm->kvm;
	vcpu->arch.mmu = root_mmu;
	root_mmu->root_role.cr0_wp = true;
	root_mmu->root_role.efer_nx = true;
	root_mmu->root_role.direct = true;
	root_mmu->root_role.level = PT64_ROOT_4LEVEL;
	root_mmu->root_role.access = ACC_ALL;
	init_caches(vm, vcpu);

	/* The first makes the root, the others use it. */
	if (mmu == NATIVE_C)
		c_kvm_tdp_mmu_alloc_root(vcpu, false);
	else
		r_kvm_tdp_mmu_alloc_root(vcpu, false);
}

static unsigned long cached(bool want_headers)
{
	unsigned long n = 0;

	for (int i = 0; i < NATIVE_MMUS * NATIVE_VCPUS; i++) {
		struct kvm_vcpu *vcpu = &vms[i / NATIVE_VCPUS].vcpus[i % NATIVE_VCPUS].vcpu;

		n += want_headers ? vcpu->arch.mmu_page_header_cache.nobjs :
				    vcpu->arch.mmu_shadow_page_cache.nobjs;
	}
	return n;
}

static void create(enum native_mmu mmu, void *bitmap)
{
	struct vm *vm = &vms[mmu];

	vm->kvm = (struct kvm *)rooms[mmu];
	vm->slot = &vm->slots[0];
	vm->slot->base_gfn = FIRST_GFN;
	vm->slot->npages = huge_pages * CHILDREN;
	vm->slot->dirty_bitmap = bitmap;
	vm->kvm->created_vcpus = NATIVE_VCPUS;
	rwlock_init(&vm->kvm->mmu_lock);

	if (mmu == NATIVE_C) {
		refcount_set(&vm->kvm->users_count, 1);
		c_kvm_mmu_init_tdp_mmu(vm->kvm);
	} else {
		rust_init_vm(vm->kvm);
		r_kvm_rs_create_vm();
		r_kvm_mmu_init_tdp_mmu(vm->kvm);
	}
	for (int i = 0; i < NATIVE_VCPUS; i++)
		create_vcpu(mmu, &vm->vcpus[i].vcpu);
	map_slot(mmu);
}

void native_create(unsigned long pages, const struct native_memory *memory)
{
	if (rust_kvm_bytes > sizeof(rooms[0]))
		native_trap("more room for the Rust MMU's struct kvm");
	huge_pages = pages;
	kernel_init(memory, huge_pages);
	guest_init(memory);

	boot_cpu_data.x86_phys_bits = 46;
	boot_cpu_data.x86_cache_bits = 46;
	c_kvm_mmu_spte_module_init();
	r_kvm_mmu_spte_module_init();
	/* NPT: the masks are what this sets. */
	c_kvm_mmu_reset_all_pte_masks();
	r_kvm_mmu_reset_all_pte_masks();

	create(NATIVE_C, memory->bitmap[NATIVE_C]);
	create(NATIVE_RUST, memory->bitmap[NATIVE_RUST]);
}

/*
 * The format stays NPT's, which has D bits. To the MMUs PML is that W stays and D is cleared,
 * wherever in the entry D is.
 */
void native_set_mode(enum native_mmu mmu, enum native_mode mode)
{
	struct kvm *kvm = vms[mmu].kvm;
	int entries = mode == NATIVE_PML ? 512 : 0;

	if (mmu == NATIVE_C) {
		kvm->arch.cpu_dirty_log_size = entries;
	} else {
		rust_set_cpu_dirty_log_size(kvm, entries);
		rust_set_dirty_bits(kvm, mode == NATIVE_DIRTY_BITS);
	}
}

/*
 * The C MMU's share of the ioctls, of which kvm_main.c, x86.c and mmu.c have the
 * rest. For a VM without shadow pages, that is:
 */
static void c_enable(struct vm *vm)
{
	struct kvm *kvm = vm->kvm;

	read_lock(&kvm->mmu_lock);
	c_kvm_tdp_mmu_try_split_huge_pages(kvm, vm->slot, FIRST_GFN,
					   FIRST_GFN + vm->slot->npages, PG_LEVEL_4K, true);
	read_unlock(&kvm->mmu_lock);

	if (kvm->arch.cpu_dirty_log_size) {
		read_lock(&kvm->mmu_lock);
		c_kvm_tdp_mmu_clear_dirty_slot(kvm, vm->slot);
		read_unlock(&kvm->mmu_lock);
	}

	read_lock(&kvm->mmu_lock);
	c_kvm_tdp_mmu_wrprot_slot(kvm, vm->slot,
				  kvm->arch.cpu_dirty_log_size ? PG_LEVEL_2M : PG_LEVEL_4K);
	read_unlock(&kvm->mmu_lock);

	kvm_flush_remote_tlbs_memslot(kvm, vm->slot);
}

/* kvm_arch_mmu_enable_log_dirty_pt_masked(): 64 pages, all in one huge page. */
static void c_log_word(struct vm *vm, unsigned long word, unsigned long mask)
{
	gfn_t base = FIRST_GFN + word * BITS_PER_LONG;
	struct kvm *kvm = vm->kvm;

	if (kvm_dirty_log_manual_protect_and_init_set(kvm)) {
		c_kvm_tdp_mmu_try_split_huge_pages(kvm, vm->slot, base + __ffs(mask),
						   base + __fls(mask) + 1, PG_LEVEL_4K, false);
		c_kvm_tdp_mmu_write_protect_gfn(kvm, vm->slot, base + __ffs(mask),
						PG_LEVEL_2M);
	}
	c_kvm_tdp_mmu_clear_dirty_pt_masked(kvm, vm->slot, base, mask,
					    !kvm->arch.cpu_dirty_log_size);
}

static void c_get(struct vm *vm, unsigned long *buffer)
{
	unsigned long *bitmap = vm->slot->dirty_bitmap;

	write_lock(&vm->kvm->mmu_lock);
	for (unsigned long i = 0; i < vm->slot->npages / BITS_PER_LONG; i++) {
		if (!bitmap[i])
			continue;
		buffer[i] = xchg(&bitmap[i], 0);
		c_log_word(vm, i, buffer[i]);
	}
	write_unlock(&vm->kvm->mmu_lock);
	kvm_flush_remote_tlbs_memslot(vm->kvm, vm->slot);
}

static void c_clear(struct vm *vm, unsigned long first_word, const unsigned long *buffer)
{
	atomic_long_t *bitmap = (atomic_long_t *)vm->slot->dirty_bitmap;

	write_lock(&vm->kvm->mmu_lock);
	for (unsigned long i = 0; i < CHUNK_WORDS; i++) {
		unsigned long mask = buffer[i];

		if (!mask)
			continue;
		mask &= atomic_long_fetch_andnot(mask, &bitmap[first_word + i]);
		if (mask)
			c_log_word(vm, first_word + i, mask);
	}
	write_unlock(&vm->kvm->mmu_lock);
	kvm_flush_remote_tlbs_memslot(vm->kvm, vm->slot);
}

void native_zap_all(enum native_mmu mmu)
{
	struct kvm *kvm = vms[mmu].kvm;

	write_lock(&kvm->mmu_lock);
	if (mmu == NATIVE_C)
		c_kvm_tdp_mmu_zap_all(kvm);
	else
		r_kvm_tdp_mmu_zap_all(kvm);
	write_unlock(&kvm->mmu_lock);
}

static void set_manual_protect(enum native_mmu mmu, u64 caps)
{
	if (mmu == NATIVE_C)
		vms[mmu].kvm->manual_dirty_log_protect = caps;
	else
		rust_set_manual_protect(vms[mmu].kvm, caps);
}

/*
 * A change of a memslot's flags, which KVM makes before it does anything to the page
 * tables: when this returns, everybody who saw the old flags is done.
 */
static void set_flags(struct vm *vm, u32 flags)
{
	struct kvm_memory_slot *new = &vm->slots[vm->slot == &vm->slots[0]];

	*new = *vm->slot;
	new->flags = flags;
	/* Complete; pairs with the handlers of faults and notifiers. */
	smp_store_release(&vm->slot, new);
	kernel_synchronize();
}

void native_start_log(enum native_mmu mmu, int initially_set)
{
	struct vm *vm = &vms[mmu];

	memset(vm->slot->dirty_bitmap, initially_set ? 0xff : 0, kvm_dirty_bitmap_bytes(vm->slot));
	set_manual_protect(mmu, initially_set ? KVM_DIRTY_LOG_MANUAL_CAPS : 0);
	set_flags(vm, KVM_MEM_LOG_DIRTY_PAGES);
}

void native_stop_log(enum native_mmu mmu)
{
	set_flags(&vms[mmu], 0);
}

void native_enable(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	if (mmu == NATIVE_C)
		c_enable(vm);
	else if (!r_kvm_rs_start_dirty_log(vm->kvm, vm->slot))
		native_trap("kvm_rs_start_dirty_log() declined");
}

void native_disable(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	read_lock(&vm->kvm->mmu_lock);
	if (mmu == NATIVE_C)
		c_kvm_tdp_mmu_recover_huge_pages(vm->kvm, vm->slot);
	else
		r_kvm_tdp_mmu_recover_huge_pages(vm->kvm, vm->slot);
	read_unlock(&vm->kvm->mmu_lock);
}

void native_get(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(vm->slot);

	memset(buffer, 0, kvm_dirty_bitmap_bytes(vm->slot));
	if (mmu == NATIVE_C)
		c_get(vm, buffer);
	else if (r_kvm_rs_get_dirty_log(vm->kvm, vm->slot, buffer))
		native_trap("kvm_rs_get_dirty_log() failed");
}

void native_peek(enum native_mmu mmu)
{
	struct kvm_memory_slot *slot = vms[mmu].slot;

	memcpy(kvm_second_dirty_bitmap(slot), slot->dirty_bitmap, kvm_dirty_bitmap_bytes(slot));
}

void native_get_manual(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	if (mmu == NATIVE_RUST &&
	    r_kvm_rs_harvest_dirty_log(vm->kvm, vm->slot, kvm_second_dirty_bitmap(vm->slot)))
		native_trap("kvm_rs_harvest_dirty_log() failed");
	/* What the ioctl copies to userspace. */
	native_peek(mmu);
}

void native_clear(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(vm->slot);

	for (unsigned long page = 0; page < vm->slot->npages; page += CHUNK_PAGES) {
		unsigned long word = page / BITS_PER_LONG;

		if (mmu == NATIVE_C)
			c_clear(vm, word, buffer + word);
		else if (r_kvm_rs_clear_dirty_log(vm->kvm, vm->slot, page, CHUNK_WORDS,
						  buffer + word))
			native_trap("kvm_rs_clear_dirty_log() failed");
	}
}

void native_split_part(unsigned long first, unsigned long nr)
{
	gfn_t start = FIRST_GFN + first * CHILDREN, end = start + nr * CHILDREN;
	struct vm *vm = &vms[NATIVE_RUST];

	for (; start < end; start += CHUNK_PAGES) {
		if (r_kvm_rs_split_range(vm->kvm, vm->slot, start, start + CHUNK_PAGES,
					 PG_LEVEL_4K))
			native_trap("kvm_rs_split_range() failed");
	}
}

void native_recover_part(unsigned long first, unsigned long nr)
{
	gfn_t start = FIRST_GFN + first * CHILDREN, end = start + nr * CHILDREN;
	struct vm *vm = &vms[NATIVE_RUST];

	for (; start < end; start += CHUNK_PAGES) {
		if (r_kvm_rs_recover_range(vm->kvm, vm->slot, start, start + CHUNK_PAGES))
			native_trap("kvm_rs_recover_range() failed");
	}
}

void native_clear_part(unsigned long first, unsigned long nr)
{
	unsigned long page = first * CHILDREN, end = page + nr * CHILDREN;
	struct vm *vm = &vms[NATIVE_RUST];
	unsigned long *buffer = kvm_second_dirty_bitmap(vm->slot);

	for (; page < end; page += CHUNK_PAGES) {
		if (r_kvm_rs_clear_dirty_range(vm->kvm, vm->slot, page, CHUNK_WORDS,
					       buffer + page / BITS_PER_LONG, !first))
			native_trap("kvm_rs_clear_dirty_range() failed");
	}
}

/* Looking at the tables, without any code of the MMUs. */
/* The entry of a level for a page; NULL if a level above ends the path to it. */
static u64 *entry_at(struct vm *vm, unsigned long page, int level)
{
	gpa_t gpa = (FIRST_GFN + page) << PAGE_SHIFT;
	u64 *table = __va(vm->vcpus[0].vcpu.arch.root_mmu.root.hpa);

	for (int at = PT64_ROOT_4LEVEL; ; at--) {
		u64 *entry = &table[(gpa >> (12 + 9 * (at - 1))) % CHILDREN];

		if (at == level)
			return entry;
		if (!(*entry & PT_PRESENT_MASK) || *entry & PT_PAGE_SIZE_MASK)
			return NULL;
		table = table_below(*entry);
	}
}

/* The entry that maps a huge page, or points to the table that does. */
static u64 *middle_entry(struct vm *vm, unsigned long i)
{
	return entry_at(vm, i * CHILDREN, PG_LEVEL_2M);
}

static u64 pfn_bits(unsigned long i)
{
	return (FIRST_PFN + i * CHILDREN) << PAGE_SHIFT;
}

static u64 bits_of(int state)
{
	return (state & NATIVE_W ? PT_WRITABLE_MASK : 0) |
	       (state & NATIVE_D ? PT_DIRTY_MASK : 0);
}

void native_write_all(enum native_mmu mmu, int state)
{
	const u64 all = bits_of(NATIVE_W | NATIVE_D), bits = bits_of(state);
	struct vm *vm = &vms[mmu];

	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *entry = middle_entry(vm, i);

		if (!entry) {
			entry = entry_at(vm, i * CHILDREN, PG_LEVEL_1G);
			*entry = (*entry & ~all) | bits;
		} else if (*entry & PT_PAGE_SIZE_MASK) {
			*entry = (*entry & ~all) | bits;
		} else {
			u64 *table = table_below(*entry);

			*entry |= PT_ACCESSED_MASK;
			for (unsigned long child = 0; child < CHILDREN; child++)
				table[child] = (table[child] & ~all) | bits;
		}
	}
}

void native_log_all(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	memset(vm->slot->dirty_bitmap, 0xff, 2 * kvm_dirty_bitmap_bytes(vm->slot));
}

void native_log_none(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	memset(vm->slot->dirty_bitmap, 0, 2 * kvm_dirty_bitmap_bytes(vm->slot));
}

void native_floor_stores(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = kernel_get_table(0);

		for (unsigned long child = 0; child < CHILDREN; child++)
			WRITE_ONCE(table[child], (LEAF | pfn_bits(i)) + (child << PAGE_SHIFT));
		kernel_put_table(table);
	}
}

void native_floor_plain(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = kernel_get_table(0);

		for (unsigned long child = 0; child < CHILDREN; child++)
			WRITE_ONCE(table[child], READ_ONCE(table[child]) & ~PT_WRITABLE_MASK);
		kernel_put_table(table);
	}
}

void native_floor_locked(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = kernel_get_table(0);

		for (unsigned long child = 0; child < CHILDREN; child++)
			atomic64_and(~PT_WRITABLE_MASK, (atomic64_t *)&table[child]);
		kernel_put_table(table);
	}
}

/* On the tables of a VM, as the MMU finds them. */
void native_floor_linked(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = table_below(*middle_entry(&vms[NATIVE_RUST], i));

		for (unsigned long child = 0; child < CHILDREN; child++)
			WRITE_ONCE(table[child], READ_ONCE(table[child]));
	}
}

/* The entry for a table, and what the MMU keeps of it. */
static const char *check_header(u64 *entry, unsigned long i, int state)
{
	u64 *table = table_below(*entry);
	struct kvm_mmu_page *sp = (void *)virt_to_page(table)->private;
	const u64 summary = PT_ACCESSED_MASK | DEFAULT_SPTE_HOST_WRITABLE;
	u64 bits = *entry & ~GENMASK_ULL(51, 12);

	/* All rights, for the leaves below restrict them. */
	if ((bits & ~summary) != (SPTE_MMU_PRESENT_MASK | PT_PRESENT_MASK | PT_WRITABLE_MASK |
				  PT_USER_MASK))
		return "an entry does not point to a table";
	/* Of an open table only A counts. */
	if (state & NATIVE_CLOSED)
		bits ^= DEFAULT_SPTE_HOST_WRITABLE;
	else if (!(state & NATIVE_DRAINING))
		bits = (bits & PT_ACCESSED_MASK) ^ PT_ACCESSED_MASK;
	if (bits & summary)
		return "a summary is wrong";
	if (sp->spt != table || sp->ptep != entry || sp->role.level != PG_LEVEL_4K ||
	    sp->gfn != FIRST_GFN + i * CHILDREN || !sp->tdp_mmu_page)
		return "the header of a table is wrong";
	return NULL;
}

/* Its first entry is @leaf, and each is larger by @step than the one before. */
static const char *check_table(u64 *entry, unsigned long i, u64 leaf, unsigned long step,
			       int state)
{
	u64 *table = table_below(*entry);
	const char *wrong;

	if (!(*entry & PT_PRESENT_MASK) || *entry & PT_PAGE_SIZE_MASK)
		return "an entry does not point to a table";
	wrong = check_header(entry, i, state);

	for (unsigned long child = 0; child < CHILDREN && !wrong; child++) {
		if (table[child] != leaf + child * step)
			wrong = "a 4 KiB SPTE is wrong";
	}
	return wrong;
}

static unsigned long count_tables(u64 *table, int level)
{
	unsigned long n = 1;

	for (unsigned long i = 0; i < CHILDREN && level > PG_LEVEL_4K; i++) {
		if (!(table[i] & PT_PRESENT_MASK) || table[i] & PT_PAGE_SIZE_MASK)
			continue;
		n += level == PG_LEVEL_2M ? 1 : count_tables(table_below(table[i]), level - 1);
	}
	return n;
}

/* Of both VMs, as they have their tables from the same pool. */
static const char *check_tables(void)
{
	unsigned long expected = 0;

	for (int i = 0; i < NATIVE_MMUS; i++)
		expected += count_tables(__va(vms[i].vcpus[0].vcpu.arch.root_mmu.root.hpa),
					 PT64_ROOT_4LEVEL);
	if (kernel_tables_used() != expected + cached(false) ||
	    kernel_headers_used() != expected + cached(true))
		return "tables have leaked";
	/* Roots do not count. */
	if (kernel_pagetable_pages() != expected - NATIVE_MMUS)
		return "the count of page-table pages is wrong";
	return NULL;
}

static const char *check_rest(struct vm *vm)
{
	if (atomic_read(&vm->kvm->mmu_lock.raw_lock.cnts))
		return "mmu_lock is still held";
	return kernel_check() ?: kernel_has_retired() ? NULL : check_tables();
}

static const char *check_pages(struct vm *vm, unsigned long small, unsigned long huge,
			       unsigned long giant)
{
	if (atomic64_read(&vm->kvm->stat.pages[0]) != small)
		return "the count of 4 KiB pages is wrong";
	if (atomic64_read(&vm->kvm->stat.pages[1]) != huge)
		return "the count of 2 MiB pages is wrong";
	if (atomic64_read(&vm->kvm->stat.pages[2]) != giant)
		return "the count of 1 GiB pages is wrong";
	return NULL;
}

/* The @i-th 2 MiB, if all of the VM is in @state. */
static const char *check_huge_page(struct vm *vm, unsigned long i, int state)
{
	u64 leaf = ((LEAF & ~bits_of(NATIVE_W | NATIVE_D)) | bits_of(state)) + pfn_bits(i);
	u64 *root = __va(vm->vcpus[0].vcpu.arch.root_mmu.root.hpa);
	u64 *entry;

	if (state & NATIVE_BARE) {
		for (unsigned long child = 0; child < CHILDREN; child++) {
			if (root[child] & PT_PRESENT_MASK)
				return "a table is left";
		}
		return NULL;
	}
	if (state & NATIVE_GIANT) {
		if (i % HUGE_PAGES_PER_GIB)
			return NULL;
		entry = entry_at(vm, i * CHILDREN, PG_LEVEL_1G);
		return entry && *entry == (leaf | PT_PAGE_SIZE_MASK) ? NULL :
			"a 1 GiB SPTE is wrong";
	}
	entry = middle_entry(vm, i);
	if (!entry)
		return "a table is missing";
	if (state & NATIVE_EMPTY)
		return check_table(entry, i, SHADOW_NONPRESENT_VALUE, 0, state);
	if (state & NATIVE_SMALL)
		return check_table(entry, i, leaf, PAGE_SIZE, state);
	return *entry == (leaf | PT_PAGE_SIZE_MASK) ? NULL : "a 2 MiB SPTE is wrong";
}

const char *native_check(enum native_mmu mmu, int state, unsigned long *where)
{
	bool none = state & (NATIVE_EMPTY | NATIVE_BARE), small = state & NATIVE_SMALL;
	bool giant = state & NATIVE_GIANT;
	struct vm *vm = &vms[mmu];
	const char *wrong = NULL;

	for (unsigned long i = 0; i < huge_pages && !wrong; i++) {
		*where = i;
		wrong = check_huge_page(vm, i, state);
	}
	if (wrong)
		return wrong;

	*where = 0;
	return check_pages(vm, small ? huge_pages * CHILDREN : 0,
			   none || small || giant ? 0 : huge_pages,
			   giant ? huge_pages / HUGE_PAGES_PER_GIB : 0) ?: check_rest(vm);
}

/* While the slot is logged, only pages that are in the log are writable. */
static const char *check_leaf(struct vm *vm, u64 leaf, unsigned long page, unsigned long pages)
{
	const u64 free = PT_WRITABLE_MASK | PT_DIRTY_MASK | PT_PAGE_SIZE_MASK;

	if ((leaf & ~free) != (LEAF & ~free) + ((FIRST_PFN + page) << PAGE_SHIFT))
		return "an SPTE is wrong";
	if (!kvm_slot_dirty_track_enabled(vm->slot) || !(leaf & PT_WRITABLE_MASK))
		return NULL;
	for (unsigned long end = page + pages; page < end; page++) {
		if (!test_bit(page, vm->slot->dirty_bitmap))
			return "a page is writable and not in the log";
	}
	return NULL;
}

const char *native_check_any(enum native_mmu mmu, unsigned long *where)
{
	struct vm *vm = &vms[mmu];
	unsigned long small = 0, huge = 0;
	const char *wrong = NULL;

	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *entry = middle_entry(vm, i);
		u64 *table = table_below(*entry);

		*where = i;
		if (!(*entry & PT_PRESENT_MASK))
			continue;
		if (*entry & PT_PAGE_SIZE_MASK) {
			huge++;
			wrong = check_leaf(vm, *entry, i * CHILDREN, CHILDREN);
		} else {
			wrong = check_header(entry, i, 0);
			for (unsigned long child = 0; child < CHILDREN && !wrong; child++) {
				if (!(table[child] & PT_PRESENT_MASK))
					continue;
				small++;
				wrong = check_leaf(vm, table[child], i * CHILDREN + child, 1);
			}
		}
		if (wrong)
			return wrong;
	}

	*where = 0;
	return check_pages(vm, small, huge, 0) ?: check_rest(vm);
}

const char *native_check_log(enum native_mmu mmu, int got)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(vm->slot);

	for (unsigned long i = 0; i < vm->slot->npages / BITS_PER_LONG; i++) {
		if (vm->slot->dirty_bitmap[i])
			return "the dirty bitmap is not empty";
		if (got && buffer[i] != ~0ul)
			return "a dirty page is not in the log";
	}
	return NULL;
}

const char *native_check_manual(enum native_mmu mmu, int got)
{
	const struct kvm_memory_slot *slot = vms[mmu].slot;
	const unsigned long *buffer = kvm_second_dirty_bitmap(vms[mmu].slot);

	for (unsigned long i = 0; i < slot->npages / BITS_PER_LONG; i++) {
		if (buffer[i] != (got ? ~0ul : 0))
			return got ? "a dirty page was not found" : "a clean page was found";
		if (slot->dirty_bitmap[i] != buffer[i])
			return "the ioctl has not got what is in the dirty bitmap";
	}
	return NULL;
}
