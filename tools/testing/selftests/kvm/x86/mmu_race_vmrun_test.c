// SPDX-License-Identifier: GPL-2.0
/*
 * The first VMRUN of a VM in the middle of a long KVM_CLEAR_DIRTY_LOG
 *
 * As long as a VM has no shadow pages, KVM can clear its dirty log without looking at them.
 * Shadow pages may appear in the meantime: what L2 has mapped by then must be protected as
 * well, in the part of the memslot that is still to be cleared.
 *
 * A VM can hit this only once, so create many VMs, one after the other, each with a memslot
 * of huge pages that are all mapped and all dirty.  Clear all bits at once, which splits the
 * pages.  As soon as the first page is split, L1 runs L2, which writes to pages all over the
 * memslot again and again.  The vCPU's thread waits for the trace event of that split, and has
 * real-time priority until L2's first round is complete: the thread that clears the log yields
 * to it, so it is in time even with a single CPU.  When the bits are clear, copy these pages,
 * let L2 write some more, and stop it.  Every page whose bit isn't set again must equal its copy.
 *
 * L2 was in time if its first round ended before the bits were clear.  The test fails if that
 * hardly ever happens, because it has shown nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "nested_l1.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(1ul * SZ_1G)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)

/* L2 writes to one page in so many. */
#define STRIDE		(16 * SZ_2M / PAGE_SIZE + 1)
#define NR_WRITTEN	((TEST_PAGES + STRIDE - 1) / STRIDE)

/* Of so many VMs one has to have run L2 in time. */
#define MAX_VMS_PER_HIT	4

#define INSTANCE	TRACEFS "/instances/kvm_mmu_race_vmrun"
#define SPLIT		INSTANCE "/events/kvmmmu/kvm_mmu_split_huge_page"

/* What the host and the guest tell each other. */
struct shared {
	u64 rounds;
	u64 stop;
} __aligned(PAGE_SIZE);

static struct shared shared;
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem;
static unsigned long *bits;
static u64 copy[NR_WRITTEN];

/* The events of the split for which the vCPU waits. */
static int splits = -1;
/* L1 is ready; the bits are clear; L2 has written to all of its pages before they were. */
static bool ready, cleared, in_time;

/* From the end, which is cleared last. */
static u64 page_of(u64 i)
{
	return TEST_PAGES - 1 - i * STRIDE;
}

static void l2_write(u64 round)
{
	u64 i;

	for (i = 0; i < NR_WRITTEN; i++)
		WRITE_ONCE(*(u64 *)(TEST_BASE + page_of(i) * PAGE_SIZE), round);
	WRITE_ONCE(shared.rounds, round);
}

static void l2_guest_code(void)
{
	u64 round = 1;

	l2_write(round);
	GUEST_SYNC(1);
	while (!READ_ONCE(shared.stop))
		l2_write(++round);
	GUEST_DONE();
}

static void l1_guest_code(void *data)
{
	GUEST_SYNC(0);
	run_l2(data, l2_guest_code);
}

static void set_priority(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	/* Without the right to do this, the thread is in time less often. */
	(void)!pthread_setschedparam(pthread_self(), policy, &param);
}

static void *run_vcpu(void *unused)
{
	char event[256];

	run_until_ucall(vcpu, UCALL_SYNC);
	set_priority(SCHED_FIFO, 1);
	WRITE_ONCE(ready, true);
	TEST_ASSERT(read(splits, event, sizeof(event)) > 0, "No page is split, errno %d", errno);
	run_until_ucall(vcpu, UCALL_SYNC);
	in_time = !READ_ONCE(cleared);
	set_priority(SCHED_OTHER, 0);
	run_until_ucall(vcpu, UCALL_DONE);
	return NULL;
}

static void create_vm(void)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };
	u64 i, gpa;
	int ret;

	/* More than enough for L1's page tables, one for each page that L2 writes to. */
	vm = __vm_create_with_one_vcpu(&vcpu, 256, l1_guest_code);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	vm_enable_tdp(vm);
	vcpu_args_set(vcpu, 1, vcpu_alloc_nested(vm));
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < NR_WRITTEN; i++) {
		gpa = TEST_BASE + page_of(i) * PAGE_SIZE;
		tdp_map(vm, gpa, gpa, PAGE_SIZE);
	}

	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, TEST_SIZE, mem);
	do
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	while (range.size && (!ret || errno == EINTR || errno == EAGAIN));
	TEST_ASSERT(!range.size, "KVM_PRE_FAULT_MEMORY left 0x%llx bytes", range.size);
	vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_BASE, TEST_SIZE,
				  mem);
}

static void stop_tracing(void)
{
	write_file(SPLIT "/enable", "0");
	close(splits);
	rmdir(INSTANCE);
}

static bool start_tracing(void)
{
	atexit(stop_tracing);
	/* A test that was killed may have left one. */
	rmdir(INSTANCE);
	if (mkdir(INSTANCE, 0700))
		return false;
	splits = open(INSTANCE "/trace_pipe", O_RDONLY | O_CLOEXEC);
	return splits >= 0 && write_file(SPLIT "/filter", "gfn == 0") &&
	       write_file(SPLIT "/enable", "1");
}

/* The event is that of the huge page that begins with @page. */
static void wait_for_split_of(u64 page)
{
	u64 gfn = TEST_BASE / PAGE_SIZE + page;
	char filter[64];

	snprintf(filter, sizeof(filter), "gfn == 0x%lx", gfn);
	TEST_ASSERT(write_file(SPLIT "/filter", filter), "The filter is not accepted");
}

static u64 *written(u64 i)
{
	return (u64 *)(mem + page_of(i) * PAGE_SIZE);
}

/* A VM.  Adds what was lost, and returns whether L2 was in time. */
static bool run_once(u64 *lost)
{
	struct shared *view;
	pthread_t thread;
	u64 i, round;

	create_vm();
	view = addr_gva2hva(vm, (gva_t)&shared);
	*view = (struct shared) {};
	bitmap_fill(bits, TEST_PAGES);

	TEST_ASSERT(!vm_get_stat(vm, mmu_shadow_pages), "There are shadow pages before L2 runs");
	/* In any of the first three quarters. */
	wait_for_split_of(random() % (TEST_SIZE / SZ_2M * 3 / 4) * SZ_2M / PAGE_SIZE);
	ready = false;
	cleared = false;
	kvm_pthread_create(&thread, NULL, run_vcpu, NULL);
	while (!READ_ONCE(ready))
		usleep(100);
	kvm_vm_clear_dirty_log(vm, TEST_SLOT, bits, 0, TEST_PAGES);
	WRITE_ONCE(cleared, true);

	for (i = 0; i < NR_WRITTEN; i++)
		copy[i] = READ_ONCE(*written(i));
	round = READ_ONCE(view->rounds);
	while (READ_ONCE(view->rounds) < round + 2)
		usleep(100);
	WRITE_ONCE(view->stop, 1);
	kvm_pthread_join(thread, NULL);

	kvm_vm_get_dirty_log(vm, TEST_SLOT, bits);
	for (i = 0; i < NR_WRITTEN; i++) {
		if (test_bit(page_of(i), bits) || *written(i) == copy[i])
			continue;
		if (!(*lost)++)
			ksft_print_msg("page 0x%lx: 0x%lx in memory, 0x%lx in the copy\n",
				       page_of(i), *written(i), copy[i]);
	}
	kvm_vm_free(vm);
	return in_time;
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
	u64 lost = 0;
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
	TEST_REQUIRE(get_kvm_param_bool("eager_page_split"));

	bits = bitmap_zalloc(TEST_PAGES);
	TEST_ASSERT(bits, "Out of memory");
	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "%lu free huge pages are needed", TEST_SIZE / SZ_2M);

	__TEST_REQUIRE(start_tracing(), "The event of a split can't be traced");

	ksft_print_header();
	ksft_set_plan(2);
	begin = now();
	for (vms = 0; now() < begin + seconds || vms < MAX_VMS_PER_HIT; vms++)
		hits += run_once(&lost);

	ksft_test_result(hits * MAX_VMS_PER_HIT >= vms, "L2 was in time in %u of %u VMs\n",
			 hits, vms);
	ksft_test_result(!lost, "%lu pages differ from their copies\n", lost);
	ksft_finished();
}
