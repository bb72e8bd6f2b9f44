// SPDX-License-Identifier: GPL-2.0
/*
 * Frees page tables after their grace period, in a kworker. RCU calls back in a softirq, which may
 * well interrupt a vCPU, calls ten times in a row, and does it again at once, up to ten times, if
 * nobody wants the CPU but the vCPU. To uncharge and free a table takes some 450 to 600
 * instructions, so that a vCPU could be 160 us late. Callbacks therefore only put tables on a list.
 * A kworker can be preempted, and need not run on the CPU of a vCPU.
 *
 * No reclaim waits for these tables, so the workqueue has no rescuer; if there is no memory for
 * another kworker, they wait for one that exists.
 *
 * How much may wait: RCU hurries when 10,000 callbacks wait on a CPU (rcutree.qhimark). Here each
 * stands for up to KVM_RS_FREE_PAGES tables, so that would be 625 MiB; and it does not see what is
 * on the lists. A VMM may have the huge pages of a VM split and recovered in a loop, in a fraction
 * of the time that C takes, and gigabytes would wait. Therefore each VM counts its tables that wait
 * (mmu_unused_tables), and an ioctl that is about to allocate more of them to split huge pages
 * (fill() in cache.rs) first waits for RCU's callbacks and for the kworkers if there are more than
 * KVM_RS_MOST_UNUSED. It does not hold mmu_lock then. It may hold slots_lock or kvm->srcu, which
 * neither callbacks nor kworkers need. So tables and those that wait are together no more than all
 * tables that the memslots can have, KVM_RS_MOST_UNUSED, and what those who split have in their
 * caches. The tables of a fault, which does not wait, are not limited, nor are they in C.
 *
 * Each VM has its own limit, so that none begins to wait because of another. Who waits does so for
 * the tables of all VMs, without a way to end that early: kworkers that get no CPU hold it up, and
 * so do millions of tables of a VM that was recovered at once, for a second or two. A CLEAR keeps
 * its range claimed meanwhile. What waits is charged to the memory cgroup of the VMM until it is
 * free. 128 MiB are little beside the guest memory that so many tables map, 64 GiB. At a
 * microsecond for each table that is split and recovered, a thread takes 33 ms to unlink so many,
 * in which a grace period usually ends. So only those wait who are far ahead of RCU or of the
 * kworkers; or once, who disables logging and enables it again at once.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"
#include "rust_header.h"

#include <linux/folio_batch.h>
#include <linux/llist.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

/*
 * Shadow pages that a CPU's callbacks have got. As many kworkers as CPUs may be needed to free what
 * so many threads unlink. Who adds to an empty list queues the work.
 */
struct unused_pages {
	struct llist_head list;
	struct work_struct free;
};

static DEFINE_PER_CPU(struct unused_pages, unused_pages);

/* After the grace period RCU needs its head no more. */
static struct llist_node *node_of(struct kvm_mmu_page *sp)
{
	static_assert(sizeof(sp->rcu_head) >= sizeof(struct llist_node));
	return (struct llist_node *)&sp->rcu_head;
}

static struct kvm_mmu_page *page_of(struct llist_node *node)
{
	return container_of((struct rcu_head *)node, struct kvm_mmu_page, rcu_head);
}

/*
 * Frees headers and tables of up to KVM_RS_FREE_PAGES shadow pages. To uncharge tables together
 * costs less than one by one; where there is nothing to uncharge, it costs more. Those of a VM are
 * charged alike. If there are several VMs, the other way is slower, and also right.
 */
static void free_pages_now(struct kvm_mmu_page **pages, int nr)
{
	/* It has 256 bytes, and most of them will not be used. */
	struct folio_batch tables __uninitialized;
	int objects = 0;
	int i;

	if (PageMemcgKmem(virt_to_page(pages[0]->spt))) {
		folio_batch_init(&tables);
		for (i = 0; i < nr; i++)
			folio_batch_add(&tables, virt_to_folio(pages[i]->spt));
		folios_put(&tables);
	} else {
		for (i = 0; i < nr; i++)
			free_page((unsigned long)pages[i]->spt);
	}

	kvm_rs_count_freed(pages, nr);
	for (i = 0; i < nr; i++) {
		if (!kvm_rs_free_neighbour(pages[i]))
			pages[objects++] = pages[i];
	}
	if (objects)
		kmem_cache_free_bulk(mmu_page_header_cache, objects, (void **)pages);
}

static_assert(KVM_RS_FREE_PAGES <= FOLIO_BATCH_SIZE);

static void free_unused_pages(struct work_struct *work)
{
	struct unused_pages *unused = container_of(work, struct unused_pages, free);
	struct llist_node *node = llist_del_all(&unused->list);
	struct kvm_mmu_page *pages[KVM_RS_FREE_PAGES];
	int nr;

	while (node) {
		for (nr = 0; node && nr < KVM_RS_FREE_PAGES; node = node->next)
			pages[nr++] = page_of(node);
		free_pages_now(pages, nr);
		cond_resched();
	}
}

/* Called for each VM, before it has a page table. The caller serializes. */
void kvm_rs_init_free(void)
{
	static bool done;
	int cpu;

	if (done)
		return;

	for_each_possible_cpu(cpu)
		INIT_WORK(per_cpu_ptr(&unused_pages.free, cpu), free_unused_pages);
	done = true;
}

/*
 * Takes over shadow pages, one at least, that nobody can reach any more. For RCU callbacks, which
 * must not sleep.
 *
 * The workqueue needs no rescuer (WQ_MEM_RECLAIM), because reclaim never waits for these pages: it
 * takes guest memory away by MMU notifiers, which zap leaves and keep page tables, and KVM has no
 * shrinker for them. Only the destruction of a VM and who splits its huge pages wait, in process
 * context and without a lock that reclaim takes. Without memory for another kworker, one that
 * exists runs this a bit later.
 */
void kvm_rs_free_pages(struct kvm_mmu_page **pages, int nr)
{
	struct unused_pages *unused = raw_cpu_ptr(&unused_pages);
	int i;

	for (i = 1; i < nr; i++)
		node_of(pages[i - 1])->next = node_of(pages[i]);
	if (llist_add_batch(node_of(pages[0]), node_of(pages[nr - 1]), &unused->list))
		queue_work(system_dfl_wq, &unused->free);
}

/*
 * Waits until all pages are free that kvm_rs_free_pages() has got. The caller has waited for RCU's
 * callbacks: one that has added to a list may not have queued the work yet. With PREEMPT_RT a later
 * callback may have begun a list that those have added to, and be preempted before it queues the
 * work. So don't rely on it.
 */
void kvm_rs_wait_for_free(void)
{
	struct unused_pages *unused;
	int cpu;

	for_each_possible_cpu(cpu) {
		unused = per_cpu_ptr(&unused_pages, cpu);
		if (!llist_empty(&unused->list))
			queue_work(system_dfl_wq, &unused->free);
		flush_work(&unused->free);
	}
}
