// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_RESET_DIRTY_RINGS in the middle of which a signal comes
 *
 * The guest writes to all pages of a memslot, over and over.  Each time, their entries
 * are read from the vCPU's ring, and reset by calls that signals interrupt.  The next
 * time, each page has to be in the ring again.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include <asm/barrier.h>
#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(4ul * SZ_1G)
#define TEST_PAGES	2048
#define RING_SIZE	4096
#define ROUNDS		200
/* So many resets have to be interrupted. */
#define MIN_INTERRUPTED	10

static DECLARE_BITMAP(logged, TEST_PAGES);
static unsigned int fetched;

static void guest_code(void)
{
	u64 round, page;

	for (round = 1; ; round++) {
		for (page = 0; page < TEST_PAGES; page++)
			WRITE_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE), round);
		GUEST_SYNC(round);
	}
}

static void handle_signal(int signal)
{
}

/* Has a signal come in @usec microseconds; 0: none. */
static void set_timer(u64 usec)
{
	struct itimerval value = { .it_value.tv_usec = usec };

	TEST_ASSERT(!setitimer(ITIMER_REAL, &value, NULL), "setitimer() failed");
}

/* Reads the entries of the ring into logged, and gives them back. */
static unsigned int harvest(struct kvm_vcpu *vcpu)
{
	struct kvm_dirty_gfn *ring = vcpu_map_dirty_ring(vcpu), *entry;
	unsigned int before = fetched;

	for (;; fetched++) {
		entry = &ring[fetched % RING_SIZE];
		/* Pairs with smp_wmb() in kvm_dirty_ring_push(). */
		if (smp_load_acquire(&entry->flags) != KVM_DIRTY_GFN_F_DIRTY)
			return fetched - before;
		TEST_ASSERT(entry->slot == TEST_SLOT && entry->offset < TEST_PAGES,
			    "Page 0x%llx of slot %u is in the ring", entry->offset, entry->slot);
		set_bit(entry->offset, logged);
		/* Pairs with smp_load_acquire() in kvm_dirty_gfn_harvested(). */
		smp_store_release(&entry->flags, KVM_DIRTY_GFN_F_RESET);
	}
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}

int main(void)
{
	struct sigaction action = { .sa_handler = handle_signal };
	unsigned int round, entries, reset, interrupted = 0;
	u64 usec = 0, page, missed = 0;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	double begin;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) ||
		     kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL));
	ksft_print_header();
	ksft_set_plan(2);
	TEST_ASSERT(!sigaction(SIGALRM, &action, NULL), "sigaction() failed");

	vm = __vm_create(VM_SHAPE_DEFAULT, 1, 0);
	vm_enable_dirty_ring(vm, RING_SIZE * sizeof(struct kvm_dirty_gfn));
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, TEST_BASE, TEST_SLOT, TEST_PAGES,
				    KVM_MEM_LOG_DIRTY_PAGES);
	virt_map(vm, TEST_BASE, TEST_BASE, TEST_PAGES);

	for (round = 0; round < ROUNDS; round++) {
		vcpu_run(vcpu);
		TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC, "Unexpected exit: %s",
			    exit_reason_str(vcpu->run->exit_reason));

		bitmap_zero(logged, TEST_PAGES);
		entries = harvest(vcpu);
		for (page = 0; page < TEST_PAGES; page++) {
			if (!test_bit(page, logged) && !missed++)
				ksft_print_msg("page 0x%lx was written, and is not in the ring\n",
					       page);
		}

		/* The first reset says how long one takes. */
		begin = now();
		if (round)
			set_timer(1 + random() % usec);
		reset = kvm_vm_reset_dirty_ring(vm);
		set_timer(0);
		if (!round)
			usec = now() - begin + 1;
		interrupted += reset != entries;
		/* It returns how many entries were reset, also if a signal came. */
		while (reset < entries)
			reset += kvm_vm_reset_dirty_ring(vm);
	}

	ksft_test_result(interrupted >= MIN_INTERRUPTED,
			 "%u of %u resets were interrupted, in %lu us\n", interrupted, ROUNDS,
			 usec);
	ksft_test_result(!missed, "%lu pages that were written are not in the ring\n", missed);
	kvm_vm_free(vm);
	ksft_finished();
}
