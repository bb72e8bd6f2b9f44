// SPDX-License-Identifier: GPL-2.0
/*
 * The end of a migration while memory is being pre-faulted
 *
 * A VMM stops the vCPUs before it reads the dirty log for the last time, but doesn't stop a
 * thread in KVM_PRE_FAULT_MEMORY.  Pre-faulting must not make a page writable and set its bit
 * only afterwards: a vCPU's write in between would not be copied.
 *
 * Migrate a few pages to the end, over and over: a vCPU writes to all of them and stops, the
 * log is read, and the copy is compared with the memory.  Meanwhile, another thread unmaps the
 * pages from the host, so that KVM zaps them, and pre-faults them.
 *
 * The window is only some hundred instructions wide.  To widen it (unless -w 0), have the
 * function that sets the bit write its stack trace to several trace buffers first.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/sizes.h>

#include "dirty_log_copy.h"
#include "kvm_util.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	SZ_1G
/* Few, so that many a write is one of the last. */
#define TEST_PAGES	8ul
#define TEST_SIZE	(TEST_PAGES * PAGE_SIZE)

#define INSTANCES	TRACEFS "/instances/kvm_mmu_race_prefault"
#define SET_BIT		"mark_page_dirty_in_slot"
#define MAX_BUFFERS	32

static struct kvm_vm *vm;
/* One runs, the other only prefaults. */
static struct kvm_vcpu *vcpus[2];
static u8 *mem;
static bool stop;
static u64 nr_prefaults;
static unsigned int nr_buffers;
static struct dirty_log_copy log;

static void guest_code(void)
{
	u64 round, i;

	for (round = 1;; round++) {
		/* Each page is the last one at times. */
		for (i = 0; i < TEST_PAGES; i++)
			WRITE_ONCE(*(u64 *)(TEST_BASE + (i + round) % TEST_PAGES * PAGE_SIZE),
				   round);
		GUEST_SYNC(round);
	}
}

/* Whether the ring of the vCPU that does not run is half full. */
static bool ring_is_filling(void)
{
	struct kvm_dirty_gfn *ring = vcpus[1]->dirty_gfns;
	u32 index = READ_ONCE(log.fetched[1]) + RING_SIZE / 2;

	return log.kind == LOG_RING &&
	       READ_ONCE(ring[index % RING_SIZE].flags) == KVM_DIRTY_GFN_F_DIRTY;
}

static void *prefault(void *unused)
{
	struct kvm_pre_fault_memory range;
	u64 gpa, size;

	while (!READ_ONCE(stop)) {
		if (ring_is_filling()) {
			usleep(100);
			continue;
		}
		/* The memory is a file's: its contents stay. */
		kvm_madvise(mem, TEST_SIZE, MADV_DONTNEED);
		/* Every other time page by page: KVM may map neighbours in another way. */
		size = nr_prefaults % 2 ? TEST_SIZE : PAGE_SIZE;
		for (gpa = TEST_BASE; gpa < TEST_BASE + TEST_SIZE; gpa += size) {
			range = (struct kvm_pre_fault_memory) { .gpa = gpa, .size = size };
			while (range.size && !__vcpu_ioctl(vcpus[1], KVM_PRE_FAULT_MEMORY, &range))
				;
		}
		nr_prefaults++;
	}
	return NULL;
}

static void narrow_window(void)
{
	char path[128];

	while (nr_buffers) {
		nr_buffers--;
		snprintf(path, sizeof(path), INSTANCES "%u/set_ftrace_filter", nr_buffers);
		append_file(path, "!" SET_BIT ":stacktrace");
		snprintf(path, sizeof(path), INSTANCES "%u", nr_buffers);
		rmdir(path);
	}
}

/* Has KVM take its time before it sets a bit. */
static void widen_window(unsigned int buffers)
{
	char path[128];
	bool ok;

	atexit(narrow_window);
	while (nr_buffers < buffers) {
		snprintf(path, sizeof(path), INSTANCES "%u", nr_buffers);
		/* One that is there has been left by a test that was killed. */
		if (mkdir(path, 0700) && errno != EEXIST)
			break;
		snprintf(path, sizeof(path), INSTANCES "%u/set_ftrace_filter", nr_buffers);
		nr_buffers++;
		ok = append_file(path, SET_BIT ":stacktrace");
		if (!ok)
			break;
	}
	if (nr_buffers < buffers || !ok)
		ksft_print_msg("no function tracing: the window is as short as it is\n");
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void create_vm(enum log_kind kind)
{
	int fd = kvm_memfd_alloc(TEST_SIZE, false);

	vm = __vm_create(VM_SHAPE_DEFAULT, ARRAY_SIZE(vcpus), 0);
	choose_log_kind(vm, kind);
	vcpus[0] = vm_vcpu_add(vm, 0, guest_code);
	vcpus[1] = vm_vcpu_add(vm, 1, guest_code);

	mem = kvm_mmap(TEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	close(fd);
	memset(mem, 0, TEST_SIZE);
	vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_BASE, TEST_SIZE,
				  mem);
	virt_map(vm, TEST_BASE, TEST_BASE, TEST_PAGES);

	log = (struct dirty_log_copy) {
		.vm = vm,
		.kind = kind,
		.mem = mem,
		.npages = TEST_PAGES,
		.slot_npages = TEST_PAGES,
		.slots = { TEST_SLOT },
		.nr_slots = 1,
		.vcpus = vcpus,
		.nr_vcpus = ARRAY_SIZE(vcpus),
	};
	copy_begin(&log);
	if (kind == LOG_RING)
		vcpu_map_dirty_ring(vcpus[1]);
}

static void run(enum log_kind kind, unsigned int seconds)
{
	double start = now(), end = start + seconds;
	u64 rounds, lost = 0;
	pthread_t thread;

	create_vm(kind);
	WRITE_ONCE(stop, false);
	nr_prefaults = 0;
	kvm_pthread_create(&thread, NULL, prefault, NULL);

	for (rounds = 0; !lost && (now() < end || !READ_ONCE(nr_prefaults)); rounds++) {
		vcpu_run(vcpus[0]);
		/* Collecting empties it. */
		if (vcpus[0]->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL)
			assert_ucall(vcpus[0], UCALL_SYNC);
		collect_log(&log);
		lost = count_lost(&log);
	}

	ksft_print_msg("%lu ends of a migration, %lu prefaults in %.1f s\n", rounds,
		       READ_ONCE(nr_prefaults), now() - start);
	WRITE_ONCE(stop, true);
	kvm_pthread_join(thread, NULL);
	ksft_test_result(!lost, "%s: %lu of %lu pages differ from their copies\n",
			 log_names[kind], lost, TEST_PAGES);

	copy_end(&log);
	kvm_vm_free(vm);
	kvm_munmap(mem, TEST_SIZE);
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 10, buffers = 16;
	enum log_kind kind;
	int opt, kinds = 0;

	while ((opt = getopt(argc, argv, "t:w:")) != -1) {
		switch (opt) {
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 'w':
			buffers = atoi_non_negative("Trace buffers", optarg);
			TEST_ASSERT(buffers <= MAX_BUFFERS, "Up to %u trace buffers", MAX_BUFFERS);
			break;
		default:
			printf("usage: %s [-t seconds] [-w buffers]\n"
			       " -t: for so many seconds with each kind of log, or until a write is lost (default: %u)\n"
			       " -w: so many trace buffers widen the window (default: %u)\n",
			       argv[0], seconds, buffers);
			exit(KSFT_FAIL);
		}
	}
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));

	for (kind = 0; kind < NR_LOG_KINDS; kind++)
		kinds += has_log_kind(kind);
	ksft_print_header();
	ksft_set_plan(kinds);
	if (buffers)
		widen_window(buffers);
	for (kind = 0; kind < NR_LOG_KINDS; kind++) {
		if (has_log_kind(kind))
			run(kind, seconds);
	}
	ksft_finished();
}
