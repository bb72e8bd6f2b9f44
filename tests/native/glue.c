// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel around two TDP MMUs, in a process. Compiled with the flags of the
 * kernel's own objects, so that structures and inline functions are theirs.
 *
 * The symbols of the C MMU's objects have got the prefix c_, those of the Rust
 * MMU's r_; what they need of the rest of the kernel is here. Locks, RCU and
 * counters do the same locked and unlocked operations as the kernel's. The page
 * allocator and the slab are free lists, and the lookup of the host's mapping
 * always finds a huge page: both are the same for either MMU, and cost next to
 * nothing, so that what is left is the MMU's.
 */
#include <linux/kvm_host.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"

#include "native.h"
#include "rust_vm.h"

/* Both MMUs have these. */
typeof(kvm_mmu_spte_module_init) c_kvm_mmu_spte_module_init, r_kvm_mmu_spte_module_init;
typeof(kvm_mmu_reset_all_pte_masks) c_kvm_mmu_reset_all_pte_masks, r_kvm_mmu_reset_all_pte_masks;
typeof(kvm_mmu_init_tdp_mmu) c_kvm_mmu_init_tdp_mmu, r_kvm_mmu_init_tdp_mmu;
typeof(kvm_tdp_mmu_alloc_root) c_kvm_tdp_mmu_alloc_root, r_kvm_tdp_mmu_alloc_root;
typeof(kvm_tdp_mmu_map) c_kvm_tdp_mmu_map, r_kvm_tdp_mmu_map;
typeof(kvm_tdp_mmu_recover_huge_pages) c_kvm_tdp_mmu_recover_huge_pages,
	r_kvm_tdp_mmu_recover_huge_pages;

typeof(kvm_tdp_mmu_try_split_huge_pages) c_kvm_tdp_mmu_try_split_huge_pages;
typeof(kvm_tdp_mmu_wrprot_slot) c_kvm_tdp_mmu_wrprot_slot;
typeof(kvm_tdp_mmu_clear_dirty_slot) c_kvm_tdp_mmu_clear_dirty_slot;
typeof(kvm_tdp_mmu_write_protect_gfn) c_kvm_tdp_mmu_write_protect_gfn;
typeof(kvm_tdp_mmu_clear_dirty_pt_masked) c_kvm_tdp_mmu_clear_dirty_pt_masked;

/* rust_shim.c: what the hooks call. */
void r_kvm_rs_create_vm(void);
bool r_kvm_rs_start_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot);
int r_kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   unsigned long *buffer);
int r_kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			     u64 first_page, unsigned long words, unsigned long *buffer);

#define HUGE_PAGES_PER_GIB	512ul
#define CHILDREN		512ul
/* Slots begin there in the guest, and their memory there in the host. */
#define FIRST_GFN		BIT(20)
#define FIRST_PFN		BIT(20)
/* The upper tables of both VMs, and the tables that wait in a cache. */
#define SPARE_TABLES		2048ul
/* As KVM_CLEAR_DIRTY_LOG is used: 1 GiB at a time. */
#define CHUNK_PAGES		(HUGE_PAGES_PER_GIB * CHILDREN)
#define CHUNK_WORDS		(CHUNK_PAGES / BITS_PER_LONG)

/* What the page tables of an NPT guest with all rights are made of. */
#define LEAF	(PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | \
		 PT_DIRTY_MASK | SPTE_MMU_PRESENT_MASK | DEFAULT_SPTE_HOST_WRITABLE | \
		 DEFAULT_SPTE_MMU_WRITABLE)

struct vm {
	union {
		struct kvm kvm;
		/* For the Rust MMU it is a bit larger, see rust_vm.c. */
		u8 room[sizeof(struct kvm) + SZ_1K];
	};
	struct kvm_vcpu vcpu;
	struct kvm_memory_slot slot;
	unsigned long upper_tables;
	bool small;
};

static struct vm vms[NATIVE_MMUS];
static unsigned long huge_pages;
static unsigned long flushes;

/* The kernel's globals. */
unsigned long page_offset_base, vmemmap_base, phys_base, zero_page_pfn;
struct mem_section **mem_section;
struct cpuinfo_x86 boot_cpu_data;
struct kvm_host_values kvm_host;
struct kvm_x86_ops kvm_x86_ops;
struct kmem_cache *mmu_page_header_cache;
bool tdp_enabled = true, tdp_mmu_enabled = true, eager_page_split = true;
int nx_huge_pages;

/* Per-CPU data. A base of 0 makes it ordinary data, at its own address. */
static struct task_struct native_task;
DEFINE_PER_CPU_CACHE_HOT(unsigned long, __preempt_count) = PREEMPT_ENABLED;
DEFINE_PER_CPU_CACHE_HOT(struct task_struct *, current_task) = &native_task;

/* One section of struct page is enough to say that all of them are there. */
static struct mem_section sections[SECTIONS_PER_ROOT];
static struct mem_section *section_roots[(1 << (46 - SECTION_SIZE_BITS)) / SECTIONS_PER_ROOT];

/*
 * A free list that hands out what was freed longest ago, so that a "new" page is
 * as cold for the one MMU as it is for the other.
 */
struct pool {
	void **free;
	unsigned long size, head, used;
};

static struct pool tables, headers;

static void *pool_get(struct pool *pool)
{
	void *object = pool->free[pool->head];

	if (pool->used == pool->size)
		native_trap("more tables than expected");
	pool->head = pool->head + 1 == pool->size ? 0 : pool->head + 1;
	pool->used++;
	return object;
}

static void pool_put(struct pool *pool, void *object)
{
	unsigned long tail = pool->head + pool->size - pool->used;

	pool->free[tail >= pool->size ? tail - pool->size : tail] = object;
	pool->used--;
}

static void *pool_init(struct pool *pool, void *list, unsigned long size,
		       void *objects, unsigned long bytes)
{
	pool->free = list;
	pool->size = size;
	for (unsigned long i = 0; i < size; i++)
		pool->free[i] = objects + i * bytes;
	return list + size * sizeof(void *);
}

/* As the kernel's clear_page() on a CPU with fast string operations. */
static void clear(void *at, unsigned long bytes)
{
	asm volatile("rep stosb" : "+D" (at), "+c" (bytes) : "a" (0) : "memory");
}

static void *get_table(gfp_t gfp)
{
	void *table = pool_get(&tables);

	if (gfp & __GFP_ZERO)
		clear(table, PAGE_SIZE);
	return table;
}

unsigned long get_free_pages_noprof(gfp_t gfp, unsigned int order)
{
	return (unsigned long)get_table(gfp);
}

struct page *alloc_pages_node_noprof(int nid, gfp_t gfp, unsigned int order)
{
	return virt_to_page(get_table(gfp));
}

void free_pages(unsigned long addr, unsigned int order)
{
	if (addr)
		pool_put(&tables, (void *)addr);
}

void *kmem_cache_alloc_noprof(struct kmem_cache *cache, gfp_t gfp)
{
	void *header = pool_get(&headers);

	if (gfp & __GFP_ZERO)
		clear(header, sizeof(struct kvm_mmu_page));
	return header;
}

void kmem_cache_free(struct kmem_cache *cache, void *header)
{
	pool_put(&headers, header);
}

/* The vCPU's caches; topped up when a fault begins, zeroed. */
void *kvm_mmu_memory_cache_alloc(struct kvm_mmu_memory_cache *cache)
{
	for (int i = 0; i < NATIVE_MMUS; i++) {
		if (cache == &vms[i].vcpu.arch.mmu_page_header_cache)
			return kmem_cache_alloc_noprof(NULL, __GFP_ZERO);
	}
	return get_table(__GFP_ZERO);
}

/* Locks. Nobody else is there, so the slow paths are never taken. */
void _raw_read_lock(rwlock_t *lock)
{
	preempt_disable();
	arch_read_lock(&lock->raw_lock);
}

void _raw_read_unlock(rwlock_t *lock)
{
	arch_read_unlock(&lock->raw_lock);
	preempt_enable();
}

void _raw_write_lock(rwlock_t *lock)
{
	preempt_disable();
	arch_write_lock(&lock->raw_lock);
}

void _raw_write_unlock(rwlock_t *lock)
{
	arch_write_unlock(&lock->raw_lock);
	preempt_enable();
}

void _raw_spin_lock(raw_spinlock_t *lock)
{
	preempt_disable();
	arch_spin_lock(&lock->raw_lock);
}

void _raw_spin_unlock(raw_spinlock_t *lock)
{
	arch_spin_unlock(&lock->raw_lock);
	preempt_enable();
}

/* The Rust MMU is told of a new VM. */
void mutex_lock(struct mutex *lock)
{
}

void mutex_unlock(struct mutex *lock)
{
}

/* CONFIG_PREEMPT_DYNAMIC: a function that reads a variable. */
static int preempt_model = 1;

bool preempt_model_full(void)
{
	return READ_ONCE(preempt_model) == 2;
}

bool preempt_model_lazy(void)
{
	return READ_ONCE(preempt_model) == 1;
}

/* Nobody waits for the lock or for the CPU; but both are looked at. */
static int look_who_waits(rwlock_t *lock)
{
	if (rwlock_needbreak(lock) || should_resched(PREEMPT_LOCK_OFFSET))
		native_trap("somebody waits");
	return 0;
}

int __cond_resched_rwlock_read(rwlock_t *lock)
{
	return look_who_waits(lock);
}

int __cond_resched_rwlock_write(rwlock_t *lock)
{
	return look_who_waits(lock);
}

/* The Rust MMU's statistics of how long it holds the lock: a TSC, scaled. */
u64 local_clock(void)
{
	return mul_u64_u32_shr(rdtsc(), 1 << 21, 22);
}

/* RCU. */
static struct rcu_head *retired, **retired_tail = &retired;

void __rcu_read_lock(void)
{
	native_task.rcu_read_lock_nesting++;
	barrier();
}

void __rcu_read_unlock(void)
{
	barrier();
	native_task.rcu_read_lock_nesting--;
}

void call_rcu(struct rcu_head *head, rcu_callback_t func)
{
	head->func = func;
	head->next = NULL;
	*retired_tail = head;
	retired_tail = &head->next;
}

void native_grace_period(void)
{
	while (retired) {
		struct rcu_head *head = retired;

		retired = head->next;
		if (!retired)
			retired_tail = &retired;
		head->func(head);
	}
}

/* The rest of KVM. */
void kvm_flush_remote_tlbs(struct kvm *kvm)
{
	flushes++;
}

void kvm_flush_remote_tlbs_range(struct kvm *kvm, gfn_t gfn, u64 nr_pages)
{
	flushes++;
}

void kvm_flush_remote_tlbs_memslot(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	flushes++;
}

unsigned long native_flushes(void)
{
	unsigned long n = flushes;

	flushes = 0;
	return n;
}

int kvm_mmu_max_mapping_level(struct kvm *kvm, struct kvm_page_fault *fault,
			      const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return PG_LEVEL_2M;
}

void kvm_mmu_hugepage_adjust(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault)
{
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

/* No shadow pages, and nobody else. */
bool kvm_page_track_write_tracking_enabled(struct kvm *kvm)
{
	return false;
}

static long pagetable_pages;

void lruvec_stat_mod_folio(struct folio *folio, enum node_stat_item item, int val)
{
	pagetable_pages += val;
}

/* Setting up. */
void native_measure(unsigned long pages, struct native_memory *memory)
{
	unsigned long n = NATIVE_MMUS * pages + SPARE_TABLES;

	memory->tables_bytes = n * PAGE_SIZE;
	memory->headers_bytes = n * (ALIGN(sizeof(struct kvm_mmu_page), 64) +
				     2 * sizeof(void *));
	memory->struct_pages_bytes = (FIRST_PFN + pages * CHILDREN) * sizeof(struct page);
	memory->bitmap_bytes = 2 * pages * CHILDREN / BITS_PER_BYTE;
}

static void init_memory(const struct native_memory *memory)
{
	unsigned long n = memory->tables_bytes / PAGE_SIZE;
	void *list;

	page_offset_base = (unsigned long)memory->tables;
	vmemmap_base = (unsigned long)memory->struct_pages;
	list = memory->headers + n * ALIGN(sizeof(struct kvm_mmu_page), 64);
	list = pool_init(&headers, list, n, memory->headers,
			 ALIGN(sizeof(struct kvm_mmu_page), 64));
	/* Address 0 means no table. */
	pool_init(&tables, list, n - 1, memory->tables + PAGE_SIZE, PAGE_SIZE);

	for (int i = 0; i < ARRAY_SIZE(sections); i++)
		sections[i].section_mem_map = SECTION_MARKED_PRESENT | SECTION_HAS_MEM_MAP |
					      SECTION_IS_ONLINE | SECTION_IS_EARLY;
	for (int i = 0; i < ARRAY_SIZE(section_roots); i++)
		section_roots[i] = sections;
	mem_section = section_roots;

	/* Node 0; written, so that the host gives each its own memory. */
	for (unsigned long i = 0; i < huge_pages; i++)
		WRITE_ONCE(pfn_to_page(FIRST_PFN + i * CHILDREN)->flags.f, 0);
}

static void map_slot(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	for (unsigned long i = 0; i < huge_pages; i++) {
		struct kvm_page_fault fault = {
			.addr = (FIRST_GFN + i * CHILDREN) << PAGE_SHIFT,
			.error_code = PFERR_WRITE_MASK,
			.write = true,
			.is_tdp = true,
			.max_level = PG_LEVEL_2M,
			.req_level = PG_LEVEL_2M,
			.goal_level = PG_LEVEL_2M,
			.gfn = FIRST_GFN + i * CHILDREN,
			.slot = &vm->slot,
			.pfn = FIRST_PFN + i * CHILDREN,
			.map_writable = true,
		};
		int ret;

		read_lock(&vm->kvm.mmu_lock);
		if (mmu == NATIVE_C)
			ret = c_kvm_tdp_mmu_map(&vm->vcpu, &fault);
		else
			ret = r_kvm_tdp_mmu_map(&vm->vcpu, &fault);
		read_unlock(&vm->kvm.mmu_lock);
		if (ret != RET_PF_FIXED)
			native_trap("a fault that maps nothing");
	}
}

static void create(enum native_mmu mmu, void *bitmap)
{
	struct vm *vm = &vms[mmu];
	struct kvm_mmu *root_mmu = &vm->vcpu.arch.root_mmu;
	unsigned long before = tables.used;

	vm->slot.base_gfn = FIRST_GFN;
	vm->slot.npages = huge_pages * CHILDREN;
	vm->slot.dirty_bitmap = bitmap;

	refcount_set(&vm->kvm.users_count, 1);
	vm->kvm.created_vcpus = 1;
	rwlock_init(&vm->kvm.mmu_lock);
	vm->vcpu.kvm = &vm->kvm;
	vm->vcpu.arch.mmu = root_mmu;
	root_mmu->root_role.cr0_wp = true;
	root_mmu->root_role.efer_nx = true;
	root_mmu->root_role.direct = true;
	root_mmu->root_role.level = PT64_ROOT_4LEVEL;
	root_mmu->root_role.access = ACC_ALL;

	if (mmu == NATIVE_C) {
		c_kvm_mmu_init_tdp_mmu(&vm->kvm);
		c_kvm_tdp_mmu_alloc_root(&vm->vcpu, false);
	} else {
		rust_init_vm(&vm->kvm);
		r_kvm_rs_create_vm();
		r_kvm_mmu_init_tdp_mmu(&vm->kvm);
		r_kvm_tdp_mmu_alloc_root(&vm->vcpu, false);
	}
	map_slot(mmu);
	vm->upper_tables = tables.used - before;
}

void native_create(unsigned long pages, const struct native_memory *memory)
{
	if (rust_kvm_bytes > sizeof(vms[0].room))
		native_trap("more room for the Rust MMU's struct kvm");
	huge_pages = pages;
	init_memory(memory);

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
 * The format stays NPT's. To the MMUs PML is that W stays and D is cleared, wherever
 * in the entry D is.
 */
void native_set_mode(enum native_mmu mmu, enum native_mode mode)
{
	struct kvm *kvm = &vms[mmu].kvm;
	int entries = mode == NATIVE_PML ? 512 : 0;

	if (mmu == NATIVE_C)
		kvm->arch.cpu_dirty_log_size = entries;
	else
		rust_set_cpu_dirty_log_size(kvm, entries);
}

/*
 * The C MMU's share of the ioctls, of which kvm_main.c, x86.c and mmu.c have the
 * rest. For a VM without shadow pages, that is:
 */
static void c_enable(struct vm *vm)
{
	struct kvm *kvm = &vm->kvm;

	read_lock(&kvm->mmu_lock);
	c_kvm_tdp_mmu_try_split_huge_pages(kvm, &vm->slot, FIRST_GFN,
					   FIRST_GFN + vm->slot.npages, PG_LEVEL_4K, true);
	read_unlock(&kvm->mmu_lock);

	if (kvm->arch.cpu_dirty_log_size) {
		read_lock(&kvm->mmu_lock);
		c_kvm_tdp_mmu_clear_dirty_slot(kvm, &vm->slot);
		read_unlock(&kvm->mmu_lock);
	}

	read_lock(&kvm->mmu_lock);
	c_kvm_tdp_mmu_wrprot_slot(kvm, &vm->slot,
				  kvm->arch.cpu_dirty_log_size ? PG_LEVEL_2M : PG_LEVEL_4K);
	read_unlock(&kvm->mmu_lock);

	kvm_flush_remote_tlbs_memslot(kvm, &vm->slot);
}

/* kvm_arch_mmu_enable_log_dirty_pt_masked(): 64 pages, all in one huge page. */
static void c_log_word(struct vm *vm, unsigned long word, unsigned long mask)
{
	gfn_t base = FIRST_GFN + word * BITS_PER_LONG;
	struct kvm *kvm = &vm->kvm;

	if (kvm_dirty_log_manual_protect_and_init_set(kvm)) {
		c_kvm_tdp_mmu_try_split_huge_pages(kvm, &vm->slot, base + __ffs(mask),
						   base + __fls(mask) + 1, PG_LEVEL_4K, false);
		c_kvm_tdp_mmu_write_protect_gfn(kvm, &vm->slot, base + __ffs(mask),
						PG_LEVEL_2M);
	}
	c_kvm_tdp_mmu_clear_dirty_pt_masked(kvm, &vm->slot, base, mask,
					    !kvm->arch.cpu_dirty_log_size);
}

static void c_get(struct vm *vm, unsigned long *buffer)
{
	unsigned long *bitmap = vm->slot.dirty_bitmap;

	write_lock(&vm->kvm.mmu_lock);
	for (unsigned long i = 0; i < vm->slot.npages / BITS_PER_LONG; i++) {
		if (!bitmap[i])
			continue;
		buffer[i] = xchg(&bitmap[i], 0);
		c_log_word(vm, i, buffer[i]);
	}
	write_unlock(&vm->kvm.mmu_lock);
	kvm_flush_remote_tlbs_memslot(&vm->kvm, &vm->slot);
}

static void c_clear(struct vm *vm, unsigned long first_word, const unsigned long *buffer)
{
	atomic_long_t *bitmap = (atomic_long_t *)vm->slot.dirty_bitmap;

	write_lock(&vm->kvm.mmu_lock);
	for (unsigned long i = 0; i < CHUNK_WORDS; i++) {
		unsigned long mask = buffer[i];

		if (!mask)
			continue;
		mask &= atomic_long_fetch_andnot(mask, &bitmap[first_word + i]);
		if (mask)
			c_log_word(vm, first_word + i, mask);
	}
	write_unlock(&vm->kvm.mmu_lock);
	kvm_flush_remote_tlbs_memslot(&vm->kvm, &vm->slot);
}

static void set_manual_protect(enum native_mmu mmu, u64 caps)
{
	if (mmu == NATIVE_C)
		vms[mmu].kvm.manual_dirty_log_protect = caps;
	else
		rust_set_manual_protect(&vms[mmu].kvm, caps);
}

void native_enable(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	vm->slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	set_manual_protect(mmu, 0);
	vm->small = true;
	if (mmu == NATIVE_C)
		c_enable(vm);
	else if (!r_kvm_rs_start_dirty_log(&vm->kvm, &vm->slot))
		native_trap("kvm_rs_start_dirty_log() declined");
}

void native_disable(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	vm->slot.flags = 0;
	vm->small = false;
	read_lock(&vm->kvm.mmu_lock);
	if (mmu == NATIVE_C)
		c_kvm_tdp_mmu_recover_huge_pages(&vm->kvm, &vm->slot);
	else
		r_kvm_tdp_mmu_recover_huge_pages(&vm->kvm, &vm->slot);
	read_unlock(&vm->kvm.mmu_lock);
}

void native_get(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(&vm->slot);

	memset(buffer, 0, kvm_dirty_bitmap_bytes(&vm->slot));
	if (mmu == NATIVE_C)
		c_get(vm, buffer);
	else if (r_kvm_rs_get_dirty_log(&vm->kvm, &vm->slot, buffer))
		native_trap("kvm_rs_get_dirty_log() failed");
}

void native_clear(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(&vm->slot);

	vm->slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	set_manual_protect(mmu, KVM_DIRTY_LOG_MANUAL_CAPS);
	vm->small = true;
	for (unsigned long page = 0; page < vm->slot.npages; page += CHUNK_PAGES) {
		unsigned long word = page / BITS_PER_LONG;

		if (mmu == NATIVE_C)
			c_clear(vm, word, buffer + word);
		else if (r_kvm_rs_clear_dirty_log(&vm->kvm, &vm->slot, page, CHUNK_WORDS,
						  buffer + word))
			native_trap("kvm_rs_clear_dirty_log() failed");
	}
}

/* Looking at the tables, without any code of the MMUs. */
static u64 *table_below(u64 spte)
{
	return __va(spte & GENMASK_ULL(51, 12));
}

/* The entry that maps a huge page, or points to the table that does. */
static u64 *middle_entry(struct vm *vm, unsigned long i)
{
	gpa_t gpa = (FIRST_GFN + i * CHILDREN) << PAGE_SHIFT;
	u64 *table = __va(vm->vcpu.arch.root_mmu.root.hpa);

	table = table_below(table[(gpa >> 39) % CHILDREN]);
	table = table_below(table[(gpa >> 30) % CHILDREN]);
	return &table[(gpa >> 21) % CHILDREN];
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

		if (vm->small) {
			u64 *table = table_below(*entry);

			for (unsigned long child = 0; child < CHILDREN; child++)
				table[child] = (table[child] & ~all) | bits;
		} else {
			*entry = (*entry & ~all) | bits;
		}
	}
}

void native_log_all(enum native_mmu mmu)
{
	struct vm *vm = &vms[mmu];

	memset(vm->slot.dirty_bitmap, 0xff, 2 * kvm_dirty_bitmap_bytes(&vm->slot));
}

void native_floor_stores(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = pool_get(&tables);

		for (unsigned long child = 0; child < CHILDREN; child++)
			WRITE_ONCE(table[child], (LEAF | pfn_bits(i)) + (child << PAGE_SHIFT));
		pool_put(&tables, table);
	}
}

void native_floor_plain(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = pool_get(&tables);

		for (unsigned long child = 0; child < CHILDREN; child++)
			WRITE_ONCE(table[child], READ_ONCE(table[child]) & ~PT_WRITABLE_MASK);
		pool_put(&tables, table);
	}
}

void native_floor_locked(void)
{
	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *table = pool_get(&tables);

		for (unsigned long child = 0; child < CHILDREN; child++)
			atomic64_and(~PT_WRITABLE_MASK, (atomic64_t *)&table[child]);
		pool_put(&tables, table);
	}
}

static const char *check_table(u64 *entry, unsigned long i, u64 leaf)
{
	struct kvm_mmu_page *sp;
	u64 *table;

	/* All rights, for the leaves below restrict them. */
	if ((*entry & ~GENMASK_ULL(51, 12)) != (SPTE_MMU_PRESENT_MASK | PT_PRESENT_MASK |
						PT_WRITABLE_MASK | PT_USER_MASK |
						PT_ACCESSED_MASK))
		return "an entry does not point to a table";

	table = table_below(*entry);
	for (unsigned long child = 0; child < CHILDREN; child++) {
		if (table[child] != leaf + (child << PAGE_SHIFT))
			return "a 4 KiB SPTE is wrong";
	}

	sp = (void *)virt_to_page(table)->private;
	if (sp->spt != table || sp->ptep != entry || sp->role.level != PG_LEVEL_4K ||
	    sp->gfn != FIRST_GFN + i * CHILDREN || !sp->tdp_mmu_page)
		return "the header of a table is wrong";
	return NULL;
}

const char *native_check(enum native_mmu mmu, int state, unsigned long *where)
{
	u64 leaf = (LEAF & ~bits_of(NATIVE_W | NATIVE_D)) | bits_of(state);
	bool small = state & NATIVE_SMALL;
	unsigned long expected = 0;
	struct vm *vm = &vms[mmu];

	for (unsigned long i = 0; i < huge_pages; i++) {
		u64 *entry = middle_entry(vm, i);
		const char *wrong = NULL;

		*where = i;
		if (small)
			wrong = check_table(entry, i, leaf | pfn_bits(i));
		else if (*entry != (leaf | PT_PAGE_SIZE_MASK | pfn_bits(i)))
			wrong = "a 2 MiB SPTE is wrong";
		if (wrong)
			return wrong;
	}

	*where = 0;
	if (atomic64_read(&vm->kvm.stat.pages[0]) != (small ? huge_pages * CHILDREN : 0))
		return "the count of 4 KiB pages is wrong";
	if (atomic64_read(&vm->kvm.stat.pages[1]) != (small ? 0 : huge_pages))
		return "the count of 2 MiB pages is wrong";
	if (atomic64_read(&vm->kvm.stat.pages[2]))
		return "the count of 1 GiB pages is wrong";
	if (atomic_read(&vm->kvm.mmu_lock.raw_lock.cnts))
		return "mmu_lock is still held";
	if (preempt_count())
		return "preemption is still off";
	if (native_task.rcu_read_lock_nesting)
		return "an RCU read-side critical section is still open";
	if (retired)
		return NULL;

	for (int i = 0; i < NATIVE_MMUS; i++)
		expected += vms[i].upper_tables + (vms[i].small ? huge_pages : 0);
	if (tables.used != expected || headers.used != expected)
		return "tables have leaked";
	if (pagetable_pages != expected - NATIVE_MMUS)
		return "the count of page-table pages is wrong";
	return NULL;
}

const char *native_check_log(enum native_mmu mmu, int got)
{
	struct vm *vm = &vms[mmu];
	unsigned long *buffer = kvm_second_dirty_bitmap(&vm->slot);

	for (unsigned long i = 0; i < vm->slot.npages / BITS_PER_LONG; i++) {
		if (vm->slot.dirty_bitmap[i])
			return "the dirty bitmap is not empty";
		if (got && buffer[i] != ~0ul)
			return "a dirty page is not in the log";
	}
	return NULL;
}
