// SPDX-License-Identifier: GPL-2.0
/*
 * A thread is killed while it toggles or reads the dirty log
 *
 * Enabling dirty logging for a big memslot, clearing its log and disabling it take long.
 * A fatal signal should end them early, but must not leave the log in a state in which
 * writes go unnoticed, because another process may share the VM and its memory (CLONE_VM).
 * Kill such a process in the middle of each operation, and check that
 *
 *  - the log contains what the guest writes from then on,
 *  - the log still contains what it had and had not yet returned.
 *
 * The test finds the right moment for the signal by trying, or takes random ones (-r).  It
 * also checks whether the operation ended early.  Upstream's MMU always runs to completion,
 * so this is only reported, and fails the test only with -e.  GET is too short to be caught
 * every time, and never fails for that reason.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT		1
/* Above everything that libkvm places in memslot 0, 1GiB aligned. */
#define TEST_BASE		(8ul * SZ_1G)
#define TEST_SIZE		(1ul * SZ_1G)
#define TEST_PAGES		(TEST_SIZE / PAGE_SIZE)
#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)
#define HUGE_PAGES		(TEST_SIZE / SZ_2M)

enum op {
	OP_ENABLE,
	OP_GET,
	OP_CLEAR,
	OP_DISABLE,
	NR_OPS,
};

static const struct {
	const char *name;
	/* Log with all bits set at first. */
	bool initially_set;
	/* Few writes are quick, but GET is quicker if it finds few. */
	u64 stride;
	/* Over too soon, even so, to be caught in the middle each time. */
	bool quick;
} ops[NR_OPS] = {
	[OP_ENABLE]	= { "enable", .stride = 67 },
	[OP_GET]	= { "get", .stride = 7, .quick = true },
	[OP_CLEAR]	= { "clear", .initially_set = true, .stride = 67 },
	[OP_DISABLE]	= { "disable", .stride = 67 },
};

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static void *mem;
static unsigned long *bitmap, *scratch;
/* The guest writes one page in @stride, the first of which is @first_page. */
static u64 first_page, stride;
/* Set by the process that will be killed, right before its system call. */
static int started;

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = READ_ONCE(first_page); page < TEST_PAGES; page += READ_ONCE(stride))
			WRITE_ONCE(*(u8 *)(TEST_BASE + page * PAGE_SIZE), page);
		GUEST_SYNC(0);
	}
}

static void guest_write(u64 first)
{
	first_page = first;
	sync_global_to_guest(vm, first_page);
	sync_global_to_guest(vm, stride);
	run_until_ucall(vcpu, UCALL_SYNC);
}

static int set_dirty_logging(bool enable)
{
	return __vm_set_user_memory_region(vm, TEST_SLOT,
					   enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
					   TEST_BASE, TEST_SIZE, mem);
}

static int get_log(unsigned long *to)
{
	struct kvm_dirty_log args = { .slot = TEST_SLOT, .dirty_bitmap = to };

	return __vm_ioctl(vm, KVM_GET_DIRTY_LOG, &args);
}

static int clear_log(unsigned long *bits)
{
	struct kvm_clear_dirty_log args = {
		.slot = TEST_SLOT,
		.num_pages = TEST_PAGES,
		.dirty_bitmap = bits,
	};

	return __vm_ioctl(vm, KVM_CLEAR_DIRTY_LOG, &args);
}

/* What the process that is killed does. It must not touch the library's state. */
static int child(void *arg)
{
	WRITE_ONCE(started, 1);

	switch ((enum op)(long)arg) {
	case OP_ENABLE:
		set_dirty_logging(true);
		break;
	case OP_GET:
		get_log(scratch);
		break;
	case OP_CLEAR:
		clear_log(scratch);
		break;
	case OP_DISABLE:
		set_dirty_logging(false);
		break;
	case NR_OPS:
		break;
	}
	_exit(0);
}

/* The child does not inherit it.  Without the right to do this the test is less sharp. */
static void set_policy(int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };

	sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &param);
}

/*
 * Starts the operation in a process of its own, and kills that @usec later: not
 * when its time slice has ended, by which it may be done.
 */
static void run_killed(enum op op, useconds_t usec)
{
	static char stack[SZ_64K] __aligned(16);
	int pid, status;

	started = 0;
	set_policy(SCHED_FIFO);
	pid = clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD, (void *)(long)op);
	TEST_ASSERT(pid > 0, __KVM_SYSCALL_ERROR("clone()", pid));
	while (!READ_ONCE(started))
		usleep(50);
	usleep(usec);
	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, __KVM_SYSCALL_ERROR("waitpid()", -1));
	set_policy(SCHED_OTHER);
}

static void make_vm(enum op op)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };
	int ret;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	if (ops[op].initially_set)
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      KVM_DIRTY_LOG_INITIALLY_SET);
	TEST_ASSERT(!set_dirty_logging(false), "The memslot can't be set");
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);

	do
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	while (range.size && (!ret || errno == EINTR || errno == EAGAIN));
	TEST_ASSERT(!range.size, "KVM_PRE_FAULT_MEMORY left 0x%llx bytes", range.size);
	TEST_ASSERT(vm_get_stat(vm, pages_2m) == HUGE_PAGES,
		    "%lu of %lu huge pages are mapped", vm_get_stat(vm, pages_2m), HUGE_PAGES);
}

/* Every page that guest_write(@first) wrote has its bit set. */
static void assert_logged(const char *what, u64 first)
{
	u64 page;

	for (page = first; page < TEST_PAGES; page += stride)
		TEST_ASSERT(test_bit(page, bitmap), "%s: page 0x%lx was written, but isn't logged",
			    what, page);
}

/* Kills the operation after @usec. Returns whether it ended early. */
static bool test_op(enum op op, useconds_t usec)
{
	u64 left, page, huge, faults;
	bool early = false;

	stride = ops[op].stride;
	make_vm(op);

	if (op != OP_ENABLE)
		TEST_ASSERT(!set_dirty_logging(true), "Logging can't be enabled");
	if (op == OP_GET || op == OP_DISABLE)
		guest_write(1);

	bitmap_fill(scratch, TEST_PAGES);
	run_killed(op, usec);
	huge = vm_get_stat(vm, pages_2m);

	switch (op) {
	case OP_ENABLE:
		early = huge > 0 && huge < HUGE_PAGES;
		break;
	case OP_GET:
		/* Either it was handed out, or it is still there. */
		get_log(bitmap);
		left = 0;
		for (page = 1; page < TEST_PAGES; page += stride)
			left += test_bit(page, bitmap);
		TEST_ASSERT(!left || left == (TEST_PAGES - 1 + stride - 1) / stride,
			    "get: %lu bits are left, which is neither all nor none", left);
		/* To be sure that it began: pages that it protected take a fault. */
		faults = vcpu_get_stat(vcpu, pf_taken);
		guest_write(1);
		early = left && vcpu_get_stat(vcpu, pf_taken) > faults;
		break;
	case OP_CLEAR:
		get_log(bitmap);
		left = 0;
		for (page = 0; page < TEST_PAGES; page += PAGES_PER_2M)
			left += test_bit(page, bitmap);
		early = left || huge;
		break;
	case OP_DISABLE:
		early = huge < HUGE_PAGES;
		/* The content is what counts here; it was written before. */
		for (page = 1; page < TEST_PAGES; page += stride)
			TEST_ASSERT(*((u8 *)mem + page * PAGE_SIZE) == (u8)page,
				    "disable: page 0x%lx has lost its content", page);
		TEST_ASSERT(!set_dirty_logging(true), "Logging can't be enabled again");
		break;
	case NR_OPS:
		break;
	}

	guest_write(2);
	get_log(bitmap);
	assert_logged(ops[op].name, 2);

	kvm_vm_free(vm);
	return early;
}

/* Kill each operation @times at any time in the first 131 ms, most often early. */
static void kill_at_random(unsigned int times)
{
	unsigned int i, nr_early, range;
	enum op op;

	for (op = 0; op < NR_OPS; op++) {
		nr_early = 0;
		for (i = 0; i < times; i++) {
			range = 1 << (6 + random() % 11);
			nr_early += test_op(op, range + random() % range);
		}
		ksft_test_result(true, "%s: killed %u times, ended early %u times\n",
				 ops[op].name, times, nr_early);
	}
}

int main(int argc, char *argv[])
{
	bool require_early = false, early;
	unsigned int times = 0, seed = 1;
	useconds_t usec;
	enum op op;
	int opt;

	while ((opt = getopt(argc, argv, "her:s:")) != -1) {
		switch (opt) {
		case 'e':
			require_early = true;
			break;
		case 'r':
			times = atoi_positive("Times", optarg);
			break;
		case 's':
			seed = atoi_positive("Seed", optarg);
			break;
		default:
			printf("usage: %s [-h] [-e] [-r times] [-s seed]\n"
			       " -e: fail if a long operation never ends early\n"
			       " -r: kill each operation so often, at random points\n"
			       " -s: of the random points (default: %u)\n", argv[0], seed);
			exit(opt == 'h' ? 0 : KSFT_FAIL);
		}
	}
	srandom(seed);

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
		     KVM_DIRTY_LOG_INITIALLY_SET);

	bitmap = bitmap_zalloc(TEST_PAGES);
	scratch = bitmap_zalloc(TEST_PAGES);
	TEST_ASSERT(bitmap && scratch, "Out of memory");
	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "%lu free huge pages are needed", HUGE_PAGES);

	ksft_print_header();
	ksft_set_plan(NR_OPS);

	if (times)
		kill_at_random(times);
	for (op = 0; op < NR_OPS && !times; op++) {
		/* Where in the operation the signal comes is found by trying. */
		early = false;
		for (usec = 32000; usec >= 125 && !early; usec /= 2)
			early = test_op(op, usec);

		if (early)
			ksft_print_msg("%s: ended early, killed after %u us\n",
				       ops[op].name, usec * 2);
		else
			ksft_print_msg("%s: never ended early\n", ops[op].name);
		ksft_test_result(early || ops[op].quick || !require_early, "%s\n",
				 ops[op].name);
	}
	ksft_finished();
}
