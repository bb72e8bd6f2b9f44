// SPDX-License-Identifier: GPL-2.0
/*
 * How much NX recovery zaps in a period
 *
 * Where executable huge pages are forbidden, executing from a huge page makes KVM map it with a
 * table of smaller pages.  KVM's worker zaps such tables again, in each period one of
 * kvm.nx_huge_pages_recovery_ratio of those that are listed.
 *
 * - Of 2MiB pages, no more than that part must go in a period, each time that they are mapped
 *   anew: what has been zapped must not count any more.
 * - A table that stands for a 1GiB page is one, however many are below it.  It is listed first,
 *   so all of them must go in the first period.
 * - What somebody else tears down must not stay on the worker's list.
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
#define RET_OPCODE	0xc3

/* 2MiB pages, and how often they are executed from. */
#define NR_HUGE		8ul
#define ROUNDS		4

static u64 nr_pages;

static void guest_code(void)
{
	u64 i;

	while (1) {
		for (i = 0; i < nr_pages; i++)
			((void (*)(void))(TEST_BASE + i * SZ_2M))();
		GUEST_SYNC(0);
	}
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, size_t size, int mmap_flags, int level)
{
	struct kvm_vm *vm;
	size_t offset;
	u8 *mem;

	mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | mmap_flags, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "%zu MiB of free huge pages are needed", size / SZ_1M);
	for (offset = 0; offset < size; offset += SZ_2M)
		mem[offset] = RET_OPCODE;

	vm = vm_create_with_one_vcpu(vcpu, guest_code);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, size, mem);
	virt_map_level(vm, TEST_BASE, TEST_BASE, size, level);
	nr_pages = size / SZ_2M;
	sync_global_to_guest(vm, nr_pages);
	return vm;
}

/*
 * Each page executed from, until the worker has zapped all.  The ratio is constant, so a period
 * zaps the more, the more there are.
 */
static void test_2m(u64 ratio, double period)
{
	u64 tables, last, most, left, i;
	struct kvm_vcpu *vcpu;
	double start, passed;
	struct kvm_vm *vm;
	int round;

	vm = create_vm(&vcpu, NR_HUGE * SZ_2M, MAP_HUGE_2MB, PG_LEVEL_2M);
	for (round = 0; round < ROUNDS; round++) {
		start = now();
		run_until_ucall(vcpu, UCALL_SYNC);
		last = NR_HUGE;
		while (last) {
			usleep(1000);
			tables = vm_get_stat(vm, nx_lpage_splits);
			passed = now() - start;
			if (tables == last)
				continue;
			/* Not each period may have passed unseen, and one more may have begun. */
			left = last;
			for (i = 0; i < (u64)(passed / period) + 1; i++)
				left -= DIV_ROUND_UP(left, ratio);
			most = last - left;
			TEST_ASSERT(tables < last && last - tables <= most,
				    "%lu tables of %lu are left in round %d, %.2f s later; %lu may go",
				    tables, last, round, passed, most);
			ksft_print_msg("2MiB, round %d: %lu tables are left after %.2f s\n",
				       round, tables, passed);
			last = tables;
			start += passed;
		}
	}
	kvm_vm_free(vm);
}

static void test_1g(double period)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	double start;
	u64 tables;

	vm = create_vm(&vcpu, SZ_1G, MAP_HUGE_1GB, PG_LEVEL_1G);
	run_until_ucall(vcpu, UCALL_SYNC);
	start = now();
	while (vm_get_stat(vm, nx_lpage_splits)) {
		usleep(1000);
		TEST_ASSERT(now() - start < 3 * period, "%lu tables are left, %.2f s later",
			    vm_get_stat(vm, nx_lpage_splits), now() - start);
	}
	ksft_print_msg("1GiB: no table is left after %.2f s\n", now() - start);

	/* Deleting a memslot zaps all page tables.  None is left that the worker could zap. */
	run_until_ucall(vcpu, UCALL_SYNC);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, 0, NULL);
	tables = vm_get_stat(vm, nx_lpage_splits);
	TEST_ASSERT(!tables, "%lu tables are listed that are gone", tables);
	kvm_vm_free(vm);
}

int main(void)
{
	double period;
	int ratio;

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(get_kvm_param_bool("nx_huge_pages"));
	period = get_kvm_param_integer("nx_huge_pages_recovery_period_ms") / 1000.0;
	ratio = get_kvm_param_integer("nx_huge_pages_recovery_ratio");
	__TEST_REQUIRE(period && ratio > 1 && ratio < (int)NR_HUGE,
		       "The worker has to zap some tables in a period, and not all");

	test_1g(period);
	test_2m(ratio, period);
	return 0;
}
