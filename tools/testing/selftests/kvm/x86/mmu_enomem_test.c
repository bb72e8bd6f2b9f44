// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of the MMU fails once
 *
 * With the kernel's fault injection (failslab, fail_page_alloc), let the n-th
 * allocation of an operation on the page tables fail, for n = 1, 2, 3... until
 * the operation runs to its end without a failure.  The operations are enabling
 * dirty logging (which splits huge pages), clearing the log (the same), mapping,
 * and disabling dirty logging (which promotes).  Whether the operation failed or
 * did less than it could, after it
 *
 *  - the mappings of the slot add up to its size,
 *  - the dirty log has the pages that the guest writes, and no other, so what
 *    was not split has to be write-protected,
 *  - the memory holds what the guest wrote,
 *  - the memory of page tables is given back with the VM.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(16ul * SZ_1M)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)
#define STRIDE		37

/* No operation here allocates as often: a loop would go on forever. */
#define MAX_ALLOCATIONS	1000

enum op { OP_ENABLE, OP_CLEAR, OP_MAP, OP_PROMOTE, NR_OPS };

static const char * const op_names[NR_OPS] = {
	[OP_ENABLE]	= "enable",
	[OP_CLEAR]	= "clear",
	[OP_MAP]	= "map",
	[OP_PROMOTE]	= "promote",
};

static u64 generation;
static unsigned long *bitmap;
static int fail_fd;
static void *mem;

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = 0; page < TEST_PAGES; page += STRIDE)
			WRITE_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE),
				   page + READ_ONCE(generation));
		GUEST_SYNC(0);
	}
}

static void write_pages(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	u64 page;

	generation++;
	sync_global_to_guest(vcpu->vm, generation);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);

	for (page = 0; page < TEST_PAGES; page += STRIDE)
		TEST_ASSERT_EQ(*(u64 *)(mem + page * PAGE_SIZE), page + generation);
}

static int set_dirty_logging(struct kvm_vm *vm, bool enable)
{
	return __vm_set_user_memory_region(vm, TEST_SLOT,
					   enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
					   TEST_BASE, TEST_SIZE, mem);
}

static int pre_fault(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };
	int ret = 0;

	while (!ret && range.size)
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	return ret;
}

/* How many 4KiB pages are mapped, by pages of all sizes. */
static u64 nr_mapped(struct kvm_vm *vm)
{
	return vm_get_stat(vm, pages_4k) + 512 * vm_get_stat(vm, pages_2m);
}

static void check_log(struct kvm_vcpu *vcpu)
{
	u64 page;

	write_pages(vcpu);
	kvm_vm_get_dirty_log(vcpu->vm, TEST_SLOT, bitmap);
	for (page = 0; page < TEST_PAGES; page++)
		TEST_ASSERT(test_bit(page, bitmap) == !(page % STRIDE),
			    "Page %lu was %swritten, and is %slogged", page,
			    page % STRIDE ? "not " : "", test_bit(page, bitmap) ? "" : "not ");
}

/* Memory of page tables of guests, in KiB. */
static long page_table_memory(void)
{
	char line[128];
	long kib = -1;
	FILE *f;

	f = fopen("/proc/meminfo", "re");
	TEST_ASSERT(f, "Cannot read /proc/meminfo");
	while (kib < 0 && fgets(line, sizeof(line), f))
		sscanf(line, "SecPageTables: %ld", &kib);
	fclose(f);
	TEST_ASSERT(kib >= 0, "No SecPageTables in /proc/meminfo");
	return kib;
}

/* Let the @nth allocation from now on fail; none, if 0. */
static void arm(unsigned int nth)
{
	if (fail_fd >= 0)
		TEST_ASSERT(dprintf(fail_fd, "%u", nth) > 0, "Cannot write to fail-nth");
}

/* Stop it, and return whether one has failed. */
static bool disarm(void)
{
	char left[16] = {};

	if (fail_fd < 0)
		return false;
	TEST_ASSERT(pread(fail_fd, left, sizeof(left) - 1, 0) > 0, "Cannot read fail-nth");
	arm(0);
	return !atoi(left);
}

static int run_op(enum op op, struct kvm_vcpu *vcpu)
{
	struct kvm_clear_dirty_log clear = {
		.slot = TEST_SLOT,
		.dirty_bitmap = bitmap,
		.num_pages = TEST_PAGES,
	};

	switch (op) {
	case OP_ENABLE:
		return set_dirty_logging(vcpu->vm, true);
	case OP_CLEAR:
		return __vm_ioctl(vcpu->vm, KVM_CLEAR_DIRTY_LOG, &clear);
	case OP_MAP:
		return pre_fault(vcpu);
	default:
		return set_dirty_logging(vcpu->vm, false);
	}
}

/* Returns whether an allocation failed. */
static bool run_case(enum op op, unsigned int nth)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	bool failed;
	u64 mapped;
	int ret;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	if (op == OP_CLEAR)
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      KVM_DIRTY_LOG_INITIALLY_SET);
	TEST_ASSERT(!set_dirty_logging(vm, false), "Cannot make the slot");
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	if (op != OP_MAP) {
		TEST_ASSERT(!pre_fault(vcpu), "Cannot map the slot");
		write_pages(vcpu);
	}
	if (op == OP_CLEAR || op == OP_PROMOTE)
		TEST_ASSERT(!set_dirty_logging(vm, true), "Cannot enable the log");
	if (op == OP_CLEAR)
		kvm_vm_get_dirty_log(vm, TEST_SLOT, bitmap);
	mapped = nr_mapped(vm);

	arm(nth);
	ret = run_op(op, vcpu);
	TEST_ASSERT(!ret || errno == ENOMEM || errno == EFAULT,
		    "%s: errno %d with allocation %u failing", op_names[op], errno, nth);
	failed = disarm();
	TEST_ASSERT(!ret || failed, "%s failed without reason", op_names[op]);

	/* What did not work for lack of memory works when there is some. */
	if (op != OP_MAP)
		TEST_ASSERT_EQ(nr_mapped(vm), mapped);
	if (ret)
		TEST_ASSERT(!run_op(op, vcpu), "%s fails with memory as well", op_names[op]);
	if (op == OP_MAP) {
		write_pages(vcpu);
		mapped = nr_mapped(vm);
	}
	if (op == OP_MAP || op == OP_PROMOTE) {
		write_pages(vcpu);
		TEST_ASSERT(!set_dirty_logging(vm, true), "Cannot enable the log");
	}
	check_log(vcpu);
	TEST_ASSERT_EQ(nr_mapped(vm), mapped);

	kvm_vm_free(vm);
	return failed;
}

/* Make each allocation of any size fail that arm() asks for, silently. */
static void set_up_injection(void)
{
	static const char * const knobs[][2] = {
		{ "failslab/ignore-gfp-wait", "N" },
		{ "failslab/verbose", "0" },
		{ "fail_page_alloc/ignore-gfp-wait", "N" },
		{ "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ "fail_page_alloc/min-order", "0" },
		{ "fail_page_alloc/verbose", "0" },
	};
	char path[128];
	unsigned int i;
	int fd;

	fail_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	__TEST_REQUIRE(fail_fd >= 0, "The kernel has no fault injection");

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s", knobs[i][0]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		__TEST_REQUIRE(fd >= 0, "No %s", path);
		TEST_ASSERT(write(fd, knobs[i][1], 1) == 1, "Cannot write to %s", path);
		close(fd);
	}
}

static void run(enum op op)
{
	unsigned int nth, tries;
	long before, after;
	bool failed = true;

	/* What the first VM leaves behind is no leak. */
	run_case(op, 0);
	before = page_table_memory();

	for (nth = 1; failed && fail_fd >= 0; nth++) {
		TEST_ASSERT(nth < MAX_ALLOCATIONS, "%s never ends", op_names[op]);
		failed = run_case(op, nth);
	}

	/* Page tables are freed after a grace period. */
	for (tries = 0; tries < 50; tries++) {
		after = page_table_memory();
		if (after <= before)
			break;
		usleep(100000);
	}
	ksft_test_result(after <= before,
			 "%s: %u allocations failed, page tables %ld KiB before, %ld after\n",
			 op_names[op], fail_fd < 0 ? 0 : nth - 2, before, after);
}

int main(int argc, char *argv[])
{
	enum op op;

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	/* -n: the same with no allocation failing, on any kernel. */
	if (argc > 1 && !strcmp(argv[1], "-n"))
		fail_fd = -1;
	else
		set_up_injection();

	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "Not enough free huge pages");
	memset(mem, 0, TEST_SIZE);
	bitmap = bitmap_zalloc(TEST_PAGES);

	ksft_print_header();
	ksft_set_plan(NR_OPS);
	for (op = 0; op < NR_OPS; op++)
		run(op);
	ksft_finished();
}
