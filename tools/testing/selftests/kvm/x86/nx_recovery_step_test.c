// SPDX-License-Identifier: GPL-2.0
/*
 * NX recovery of a 1GiB page, one step at a time
 *
 * Where executable huge pages are forbidden, executing from a 1GiB page makes KVM map it with
 * a table of tables.  KVM's worker zaps such tables again, a limited number per period.  Each
 * is one step for everyone who waits for mmu_lock, so none should tear down 512 others.
 *
 * The guest executes from every 2MiB of a 1GiB page, which creates 513 tables.  They must go one
 * by one, and the rest must go with the memslot: a table that someone else tears down must not
 * stay on the worker's list.  Requires kvm.nx_huge_pages, and a value of
 * kvm.nx_huge_pages_recovery_ratio such that the worker zaps one table per period.
 */
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(1ul * SZ_1G)
#define NR_TABLES	(TEST_SIZE / SZ_2M + 1)
#define RET_OPCODE	0xc3

/* So many steps are enough. */
#define STEPS		3

static void guest_code(void)
{
	u64 at;

	for (at = TEST_BASE; at < TEST_BASE + TEST_SIZE; at += SZ_2M)
		((void (*)(void))at)();
	GUEST_DONE();
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(void)
{
	double period, start, passed;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 tables, last, offset, steps = 0;
	u8 *mem;

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(get_kvm_param_bool("nx_huge_pages"));
	period = get_kvm_param_integer("nx_huge_pages_recovery_period_ms") / 1000.0;
	__TEST_REQUIRE(period && get_kvm_param_integer("nx_huge_pages_recovery_ratio") >= NR_TABLES,
		       "The worker has to zap one of %lu tables in a period", NR_TABLES);

	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "A free huge page of 1 GiB is needed");
	for (offset = 0; offset < TEST_SIZE; offset += SZ_2M)
		mem[offset] = RET_OPCODE;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, TEST_SIZE, mem);
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_1G);

	start = now();
	run_until_ucall(vcpu, UCALL_DONE);

	/* Not each period may have passed unseen, and one more may have begun. */
	last = NR_TABLES;
	while (steps < STEPS) {
		usleep(1000);
		passed = now() - start;
		tables = vm_get_stat(vm, nx_lpage_splits);
		if (tables == last)
			continue;
		TEST_ASSERT(tables < last && last - tables <= (u64)(passed / period) + 1,
			    "%lu tables are left of %lu, %.2f s later", tables, last, passed);
		ksft_print_msg("%lu tables are left after %.2f s\n", tables, passed);
		last = tables;
		start += passed;
		steps++;
	}

	/* Deleting a memslot zaps all page tables.  None is left that the worker could zap. */
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, 0, NULL);
	tables = vm_get_stat(vm, nx_lpage_splits);
	TEST_ASSERT(!tables, "%lu tables are listed that are gone", tables);

	kvm_vm_free(vm);
	return 0;
}
