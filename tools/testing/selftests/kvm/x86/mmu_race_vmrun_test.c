// SPDX-License-Identifier: GPL-2.0
/*
 * The first VMRUN of a VM, in the middle of a long KVM_CLEAR_DIRTY_LOG
 *
 * While a VM has no shadow pages, its dirty log can be cleared without a look at them.
 * They may come into being while that is done: what L2 has mapped by then has to be
 * protected as well, in the part of the memslot that is still to be cleared.
 *
 * That can happen once in the life of a VM.  So this test makes many, one after the
 * other, each with a memslot of huge pages, all of them mapped and all bits set.  It
 * clears all bits at once.  At a random time after that has begun L1 runs L2, which
 * writes to some pages all over the memslot, over and over.  When the bits are clear
 * these pages are copied; L2 writes some more, and stops.  A page whose bit is not set
 * again has to be what its copy is.
 *
 * How late L1 does that follows from whether L2 began before the bits were clear, so
 * that it does each second time.  The test takes as long as it takes for some to do so.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>
#include <linux/time64.h>

#include "kvm_util.h"
#include "nested_l1.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(1ul * SZ_1G)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)

/* L2 writes to one page in so many. */
#define STRIDE		(16 * SZ_2M / PAGE_SIZE + 1)
#define NR_WRITTEN	((TEST_PAGES + STRIDE - 1) / STRIDE)

/* So many VMs have to have run L2 before the bits were clear. */
#define MIN_HITS	3

/* What the host and the guest tell each other. */
struct shared {
	u64 rounds;
	u64 stop;
} __aligned(PAGE_SIZE);

static struct shared shared;
/* When L1 runs L2. */
static struct timespec start;
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem;
static unsigned long *bits;
static u64 copy[NR_WRITTEN];

static void l2_guest_code(void)
{
	u64 round, page;

	for (round = 1; !READ_ONCE(shared.stop); round++) {
		for (page = 0; page < TEST_PAGES; page += STRIDE)
			WRITE_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE), round);
		WRITE_ONCE(shared.rounds, round);
	}
	GUEST_DONE();
}

static void l1_guest_code(void *data)
{
	GUEST_SYNC(0);
	run_l2(data, l2_guest_code);
}

static void sleep_until(const struct timespec *time)
{
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, time, NULL))
		;
}

static void *run_vcpu(void *unused)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC, "L1 isn't ready");
	sleep_until(&start);
	vcpu_run(vcpu);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit: %s", exit_reason_str(vcpu->run->exit_reason));
	}
	return NULL;
}

static void create_vm(void)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };
	u64 page;
	int ret;

	/* More than enough for L1's page tables, one for each page that L2 writes to. */
	vm = __vm_create_with_one_vcpu(&vcpu, 256, l1_guest_code);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	vm_enable_tdp(vm);
	vcpu_args_set(vcpu, 1, vcpu_alloc_nested(vm));
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	tdp_identity_map_default_memslots(vm);
	for (page = 0; page < TEST_PAGES; page += STRIDE)
		tdp_map(vm, TEST_BASE + page * PAGE_SIZE, TEST_BASE + page * PAGE_SIZE, PAGE_SIZE);

	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, TEST_SIZE, mem);
	do
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	while (range.size && (!ret || errno == EINTR || errno == EAGAIN));
	TEST_ASSERT(!range.size, "KVM_PRE_FAULT_MEMORY left 0x%llx bytes", range.size);
	vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_BASE, TEST_SIZE,
				  mem);
}

static u64 *written(u64 i)
{
	return (u64 *)(mem + i * STRIDE * PAGE_SIZE);
}

/*
 * A VM in which L1 runs L2 @usec after the log begins to be cleared.  Adds what was lost,
 * and returns whether it did so before that was done.
 */
static bool run_once(u64 usec, u64 *lost)
{
	struct timespec clear;
	struct shared *view;
	pthread_t thread;
	u64 i, page, round;
	bool hit;

	create_vm();
	view = addr_gva2hva(vm, (gva_t)&shared);
	*view = (struct shared) {};
	bitmap_fill(bits, TEST_PAGES);

	/* Until then L1 gets ready. */
	clock_gettime(CLOCK_MONOTONIC, &clear);
	clear = timespec_add_ns(clear, 10 * NSEC_PER_MSEC);
	start = timespec_add_ns(clear, usec * NSEC_PER_USEC);
	kvm_pthread_create(&thread, NULL, run_vcpu, NULL);
	sleep_until(&clear);
	TEST_ASSERT(!vm_get_stat(vm, mmu_shadow_pages), "There are shadow pages before L2 runs");
	kvm_vm_clear_dirty_log(vm, TEST_SLOT, bits, 0, TEST_PAGES);
	hit = vm_get_stat(vm, mmu_shadow_pages);

	for (i = 0; i < NR_WRITTEN; i++)
		copy[i] = READ_ONCE(*written(i));
	round = READ_ONCE(view->rounds);
	while (READ_ONCE(view->rounds) < round + 2)
		usleep(100);
	WRITE_ONCE(view->stop, 1);
	kvm_pthread_join(thread, NULL);

	kvm_vm_get_dirty_log(vm, TEST_SLOT, bits);
	for (i = 0; i < NR_WRITTEN; i++) {
		page = i * STRIDE;
		if (test_bit(page, bits) || *written(i) == copy[i])
			continue;
		if (!(*lost)++)
			ksft_print_msg("page 0x%lx: 0x%lx in memory, 0x%lx in the copy\n",
				       page, *written(i), copy[i]);
	}
	kvm_vm_free(vm);
	return hit;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 5, vms, hits = 0;
	/* The latest in microseconds. */
	u64 latest = 10000, lost = 0;
	double begin;
	int opt;

	while ((opt = getopt(argc, argv, "t:")) != -1) {
		switch (opt) {
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		default:
			printf("usage: %s [-t seconds]\n", argv[0]);
			exit(KSFT_FAIL);
		}
	}
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
		     KVM_DIRTY_LOG_INITIALLY_SET);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_cpu_has_tdp());
	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));

	bits = bitmap_zalloc(TEST_PAGES);
	TEST_ASSERT(bits, "Out of memory");
	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "%lu free huge pages are needed", TEST_SIZE / SZ_2M);

	ksft_print_header();
	ksft_set_plan(1);
	begin = now();
	for (vms = 0; now() < begin + seconds || hits < MIN_HITS; vms++) {
		if (run_once(random() % latest, &lost)) {
			hits++;
			latest += latest / 4;
		} else {
			latest -= latest / 4 - 1;
		}
	}
	ksft_print_msg("In %u of %u VMs L2 ran before the bits were clear, up to %lu us later\n",
		       hits, vms, latest);
	ksft_test_result(!lost, "%lu pages differ from their copies\n", lost);
	ksft_finished();
}
