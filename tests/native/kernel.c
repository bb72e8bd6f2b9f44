// SPDX-License-Identifier: GPL-2.0
/*
 * The rest of the kernel around two TDP MMUs: memory, per-CPU data, locks, RCU.
 *
 * A thread of the process is a CPU, and has per-CPU data of its own, to which its
 * GS base points. Each reads and writes the per-CPU variables by the instructions
 * of the kernel's own objects. There is no scheduler: a thread is never switched to
 * another task, and what would want that is never set.
 *
 * Locks are the kernel's, with the slow paths of vmlinux's own objects. Their read
 * sides, and those of RCU, do the operations of the kernel's.
 */
#include <linux/kvm_host.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"

#include "native.h"
#include "vm.h"

/* The kernel's globals. */
unsigned long page_offset_base, vmemmap_base, phys_base, zero_page_pfn;
struct mem_section **mem_section;
struct kmem_cache *mmu_page_header_cache;

/* One section of struct page is enough to say that all of them are there. */
static struct mem_section sections[SECTIONS_PER_ROOT];
static struct mem_section *section_roots[(1 << (46 - SECTION_SIZE_BITS)) / SECTIONS_PER_ROOT];

/*
 * Per-CPU data. The link puts all of it between these two, and that of CPU 0 stays
 * there: a GS base of 0 makes it ordinary data, at its own address.
 */
extern char __per_cpu_start[], __per_cpu_end[];

static struct task_struct tasks[NATIVE_CPUS];
DEFINE_PER_CPU_CACHE_HOT(unsigned long, __preempt_count) = PREEMPT_ENABLED;
DEFINE_PER_CPU_CACHE_HOT(struct task_struct *, current_task) = &tasks[0];
DEFINE_PER_CPU_CACHE_HOT(unsigned long, this_cpu_off);
DEFINE_PER_CPU_CACHE_HOT(int, cpu_number);
unsigned long __per_cpu_offset[NR_CPUS];

/* TSC ticks that this CPU has spent waiting for a reader-writer lock. */
static DEFINE_PER_CPU(u64, waited);
static DEFINE_PER_CPU(long, pagetable_pages);

/* More than one CPU. Without, the pools need no lock. */
static bool threads;
static bool poison;

/*
 * What each CPU has retired, in two lists: of one the grace period has begun, and
 * ends when each of the others has gone through a quiescent state since.
 */
static struct native_cpu {
	bool online;
	unsigned long quiescent;
	struct rcu_head *queued, **queued_tail;
	struct rcu_head *waiting;
	unsigned long seen[NATIVE_CPUS];
} ____cacheline_aligned cpus[NATIVE_CPUS];

unsigned long native_percpu_bytes(void)
{
	return __per_cpu_end - __per_cpu_start;
}

unsigned long native_cpu_create(int cpu, void *area)
{
	unsigned long offset = (unsigned long)area - (unsigned long)__per_cpu_start;

	memcpy(area, __per_cpu_start, native_percpu_bytes());
	__per_cpu_offset[cpu] = offset;
	per_cpu(this_cpu_off, cpu) = offset;
	per_cpu(cpu_number, cpu) = cpu;
	per_cpu(current_task, cpu) = &tasks[cpu];
	per_cpu(pagetable_pages, cpu) = 0;
	per_cpu(waited, cpu) = 0;
	cpus[cpu].online = true;
	threads = true;
	return offset;
}

void native_cpu_offline(void)
{
	/* As in a quiescent state: what its readers have read comes first. */
	smp_store_release(&cpus[smp_processor_id()].online, false);
}

void native_cpu_remove(int cpu)
{
	this_cpu_add(pagetable_pages, per_cpu(pagetable_pages, cpu));
	threads = false;
}

int native_preemptible(void)
{
	return !preempt_count();
}

u64 native_waited(void)
{
	u64 ticks = this_cpu_read(waited);

	this_cpu_write(waited, 0);
	return ticks;
}

/*
 * A free list that hands out what was freed longest ago, so that a "new" page is
 * as cold for the one MMU as it is for the other. A CPU takes a batch at a time, as
 * from the kernel's slabs and per-CPU lists: what CPUs allocate at the same time does
 * not lie in turn in memory, where the prefetcher of the one would take the lines
 * that the other is writing to.
 */
#define BATCH	32
struct pool {
	void **free;
	/* Those in a batch are used, for these. */
	unsigned long size, head, used;
	arch_spinlock_t lock;
	struct batch {
		void *objects[BATCH];
		unsigned int next, end;
	} ____cacheline_aligned batches[NATIVE_CPUS];
};

static struct pool tables, headers;

/* Those of the tables' pages that have headers in them, linked by their lru. */
static LIST_HEAD(header_pages);

static void pool_lock(struct pool *pool)
{
	if (!threads)
		return;
	preempt_disable();
	arch_spin_lock(&pool->lock);
}

static void pool_unlock(struct pool *pool)
{
	if (!threads)
		return;
	arch_spin_unlock(&pool->lock);
	preempt_enable();
}

static void pool_fill(struct pool *pool, struct batch *batch)
{
	pool_lock(pool);
	batch->next = 0;
	batch->end = min(BATCH, pool->size - pool->used);
	if (!batch->end)
		native_trap("more tables than expected");
	for (unsigned int i = 0; i < batch->end; i++) {
		batch->objects[i] = pool->free[pool->head];
		pool->head = pool->head + 1 == pool->size ? 0 : pool->head + 1;
	}
	pool->used += batch->end;
	pool_unlock(pool);
}

static void *pool_get(struct pool *pool)
{
	struct batch *batch = &pool->batches[smp_processor_id()];

	if (batch->next == batch->end)
		pool_fill(pool, batch);
	return batch->objects[batch->next++];
}

static void pool_put(struct pool *pool, void *object)
{
	unsigned long tail;

	pool_lock(pool);
	tail = pool->head + pool->size - pool->used;
	pool->free[tail >= pool->size ? tail - pool->size : tail] = object;
	pool->used--;
	pool_unlock(pool);
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

static unsigned long pool_used(const struct pool *pool)
{
	unsigned long used = pool->used;

	for (int i = 0; i < NATIVE_CPUS; i++)
		used -= pool->batches[i].end - pool->batches[i].next;
	return used;
}

unsigned long kernel_tables_used(void)
{
	return pool_used(&tables) - list_count_nodes(&header_pages);
}

/* Each of those in a page holds a reference on it. */
unsigned long kernel_headers_used(void)
{
	unsigned long used = pool_used(&headers);
	struct page *page;

	list_for_each_entry(page, &header_pages, lru)
		used += page_ref_count(page);
	return used;
}

/*
 * A free table is full of this, when asked for. To a reader that is still in it, it looks like a
 * page that a fast page fault may make writable; and a write to a free table is noticed when the
 * table is handed out again.
 */
#define POISON	(SPTE_MMU_PRESENT_MASK | PT_PRESENT_MASK | PT_USER_MASK | PT_ACCESSED_MASK | \
		 DEFAULT_SPTE_HOST_WRITABLE | DEFAULT_SPTE_MMU_WRITABLE)

static void poison_table(u64 *table)
{
	memset64(table, POISON, CHILDREN);
}

void native_poison(void)
{
	poison = true;
	for (unsigned long i = 0; i < tables.size - tables.used; i++)
		poison_table(tables.free[(tables.head + i) % tables.size]);
	for (int i = 0; i < NATIVE_CPUS; i++) {
		struct batch *batch = &tables.batches[i];

		for (unsigned int at = batch->next; at < batch->end; at++)
			poison_table(batch->objects[at]);
	}
}

/* As the kernel's clear_page() on a CPU with fast string operations. */
static void clear(void *at, unsigned long bytes)
{
	asm volatile("rep stosb" : "+D" (at), "+c" (bytes) : "a" (0) : "memory");
}

void *kernel_get_table(gfp_t gfp)
{
	u64 *table = pool_get(&tables);

	if (poison) {
		for (unsigned long i = 0; i < CHILDREN; i++) {
			if (table[i] != POISON)
				native_trap("somebody has written to a free table");
		}
	}
	if (gfp & __GFP_ZERO)
		clear(table, PAGE_SIZE);
	return table;
}

void kernel_put_table(void *table)
{
	if (poison)
		poison_table(table);
	pool_put(&tables, table);
}

unsigned long get_free_pages_noprof(gfp_t gfp, unsigned int order)
{
	return (unsigned long)kernel_get_table(gfp);
}

struct page *alloc_pages_node_noprof(int nid, gfp_t gfp, unsigned int order)
{
	return virt_to_page(kernel_get_table(gfp));
}

/* A table is asked for from a node, a page of headers is not. */
struct page *alloc_pages_noprof(gfp_t gfp, unsigned int order)
{
	struct page *page = virt_to_page(kernel_get_table(gfp));

	set_page_count(page, 1);
	pool_lock(&headers);
	list_add(&page->lru, &header_pages);
	pool_unlock(&headers);
	return page;
}

void __free_pages(struct page *page, unsigned int order)
{
	if (!page_ref_dec_and_test(page))
		return;
	pool_lock(&headers);
	list_del(&page->lru);
	pool_unlock(&headers);
	kernel_put_table(page_address(page));
}

void free_pages(unsigned long addr, unsigned int order)
{
	if (addr)
		kernel_put_table((void *)addr);
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

void kmem_cache_free_bulk(struct kmem_cache *cache, size_t nr, void **these)
{
	while (nr--)
		pool_put(&headers, these[nr]);
}

/* Before a fault takes mmu_lock: all that it may need. */
void kernel_topup(struct kvm_vcpu *vcpu)
{
	struct kvm_mmu_memory_cache *table = &vcpu->arch.mmu_shadow_page_cache;
	struct kvm_mmu_memory_cache *header = &vcpu->arch.mmu_page_header_cache;

	while (table->nobjs < table->capacity) {
		void *page = kernel_get_table(0);

		memset64(page, table->init_value, CHILDREN);
		table->objects[table->nobjs++] = page;
	}
	while (header->nobjs < header->capacity)
		header->objects[header->nobjs++] = kmem_cache_alloc_noprof(NULL, __GFP_ZERO);
}

void *kvm_mmu_memory_cache_alloc(struct kvm_mmu_memory_cache *cache)
{
	if (!cache->nobjs)
		native_trap("a vCPU's cache is empty");
	return cache->objects[--cache->nobjs];
}

void lruvec_stat_mod_folio(struct folio *folio, enum node_stat_item item, int val)
{
	this_cpu_add(pagetable_pages, val);
}

long kernel_pagetable_pages(void)
{
	return this_cpu_read(pagetable_pages);
}

/*
 * Locks. The link has the calls of the slow paths end here (ld's --wrap), so that
 * waiting is measured where there is some, and costs nothing where there is not.
 */
void __real_queued_read_lock_slowpath(struct qrwlock *lock);
void __real_queued_write_lock_slowpath(struct qrwlock *lock);
void __wrap_queued_read_lock_slowpath(struct qrwlock *lock);
void __wrap_queued_write_lock_slowpath(struct qrwlock *lock);

void __wrap_queued_read_lock_slowpath(struct qrwlock *lock)
{
	u64 start = rdtsc();

	__real_queued_read_lock_slowpath(lock);
	this_cpu_add(waited, rdtsc() - start);
}

void __wrap_queued_write_lock_slowpath(struct qrwlock *lock)
{
	u64 start = rdtsc();

	__real_queued_write_lock_slowpath(lock);
	this_cpu_add(waited, rdtsc() - start);
}

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

/* A new VM is announced to the Rust MMU, by the only thread that there is then. */
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

/* There is nobody to switch to, but somebody may wait for the lock. */
int __cond_resched_rwlock_read(rwlock_t *lock)
{
	if (!rwlock_needbreak(lock) && !should_resched(PREEMPT_LOCK_OFFSET))
		return 0;
	read_unlock(lock);
	cpu_relax();
	read_lock(lock);
	return 1;
}

int __cond_resched_rwlock_write(rwlock_t *lock)
{
	if (!rwlock_needbreak(lock) && !should_resched(PREEMPT_LOCK_OFFSET))
		return 0;
	write_unlock(lock);
	cpu_relax();
	write_lock(lock);
	return 1;
}

/* The Rust MMU's statistics of how long it holds the lock: a TSC, scaled. */
u64 local_clock(void)
{
	return mul_u64_u32_shr(rdtsc(), 1 << 21, 22);
}

/*
 * RCU. Readers count as those of CONFIG_PREEMPT_RCU do. A CPU is in a quiescent
 * state when its thread says so, which is between any two operations.
 */
void __rcu_read_lock(void)
{
	current->rcu_read_lock_nesting++;
	barrier();
}

void __rcu_read_unlock(void)
{
	barrier();
	current->rcu_read_lock_nesting--;
}

void call_rcu(struct rcu_head *head, rcu_callback_t func)
{
	struct native_cpu *cpu = &cpus[smp_processor_id()];

	head->func = func;
	head->next = NULL;
	*cpu->queued_tail = head;
	cpu->queued_tail = &head->next;
}

static void take_snapshot(unsigned long *seen)
{
	/* After all that the caller has unlinked. */
	smp_mb();
	for (int i = 0; i < NATIVE_CPUS; i++)
		seen[i] = READ_ONCE(cpus[i].quiescent);
}

static bool has_passed(const unsigned long *seen)
{
	for (int i = 0; i < NATIVE_CPUS; i++) {
		/* Its readers come before: pairs with native_cpu_offline(). */
		if (i == smp_processor_id() || !smp_load_acquire(&cpus[i].online))
			continue;
		/* Here as well; pairs with native_quiescent(). */
		if (smp_load_acquire(&cpus[i].quiescent) == seen[i])
			return false;
	}
	return true;
}

static void call_back(struct rcu_head *head)
{
	while (head) {
		struct rcu_head *next = head->next;

		head->func(head);
		head = next;
	}
}

static struct rcu_head *take_queued(struct native_cpu *cpu)
{
	struct rcu_head *head = cpu->queued;

	cpu->queued = NULL;
	cpu->queued_tail = &cpu->queued;
	return head;
}

void native_quiescent(void)
{
	struct native_cpu *cpu = &cpus[smp_processor_id()];

	if (current->rcu_read_lock_nesting)
		native_trap("an RCU read-side critical section is still open");

	/* After what this CPU has read. */
	smp_mb();
	WRITE_ONCE(cpu->quiescent, cpu->quiescent + 1);
	/* And before what it reads next. */
	smp_mb();

	if (cpu->waiting && has_passed(cpu->seen)) {
		call_back(cpu->waiting);
		cpu->waiting = NULL;
	}
	if (!cpu->waiting && cpu->queued) {
		cpu->waiting = take_queued(cpu);
		take_snapshot(cpu->seen);
	}
}

void kernel_synchronize(void)
{
	unsigned long seen[NATIVE_CPUS];

	take_snapshot(seen);
	while (!has_passed(seen))
		native_idle();
}

void native_grace_period(void)
{
	kernel_synchronize();
	for (int i = 0; i < NATIVE_CPUS; i++) {
		if (i != smp_processor_id() && cpus[i].online)
			native_trap("a grace period for all, with other threads around");
		call_back(cpus[i].waiting);
		cpus[i].waiting = NULL;
		call_back(take_queued(&cpus[i]));
	}
}

bool kernel_has_retired(void)
{
	/* They may, at any moment. */
	if (threads)
		return true;
	for (int i = 0; i < NATIVE_CPUS; i++) {
		if (cpus[i].queued || cpus[i].waiting)
			return true;
	}
	return false;
}

const char *kernel_check(void)
{
	if (preempt_count())
		return "preemption is still off";
	if (current->rcu_read_lock_nesting)
		return "an RCU read-side critical section is still open";
	return NULL;
}

void native_measure(unsigned long pages, struct native_memory *memory)
{
	/* Tables, and pages of headers. */
	unsigned long n = NATIVE_MMUS * pages + pages / 8 + NATIVE_SPARE_TABLES;

	memory->tables_bytes = n * PAGE_SIZE;
	memory->headers_bytes = n * (ALIGN(sizeof(struct kvm_mmu_page), 64) +
				     2 * sizeof(void *));
	memory->struct_pages_bytes = (FIRST_PFN + pages * CHILDREN) * sizeof(struct page);
	memory->bitmap_bytes = 2 * pages * CHILDREN / BITS_PER_BYTE;
	memory->written_bytes = pages * CHILDREN * sizeof(*memory->written);
}

void kernel_init(const struct native_memory *memory, unsigned long huge_pages)
{
	unsigned long n = memory->tables_bytes / PAGE_SIZE;
	void *list;

	cpus[0].online = true;
	for (int i = 0; i < NATIVE_CPUS; i++)
		cpus[i].queued_tail = &cpus[i].queued;

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
