// SPDX-License-Identifier: GPL-2.0
/*
 * The shadow MMU's reverse map with aliased guest frames
 *
 * L1 maps one of its frames for L2 many times, so that KVM keeps that many SPTEs in the frame's
 * rmap lists: lists of one entry, of one descriptor (up to 14 entries), and of chained
 * descriptors.  Then toggle dirty logging, which splits the huge pages with aliases as well, and
 * let L2 use all aliases after each step.  Check the page statistics, the lengths of the lists
 * (debugfs), the dirty log and the memory.
 *
 * The Rust MMU (CONFIG_KVM_RUST_MMU) counts what it splits.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/bitmap.h>
#include <linux/sizes.h>

#include "run_vcpu.h"
#include "test_util.h"
#include "kvm_util.h"
#include "mmu_stat.h"
#include "nested_l1.h"
#include "processor.h"

#define SLOT			1
#define PAGES_PER_HUGE		512
/* In L1: a huge page that is aliased as a whole, and one by a small page. */
#define HUGE_GPA		0xc0000000ul
#define SMALL_REGION_GPA	(HUGE_GPA + SZ_2M)
#define SLOT_PAGES		(2 * PAGES_PER_HUGE)
/* A small page in each that has aliases of its own. */
#define SHARED_PAGE		5
#define SMALL_GPA		(SMALL_REGION_GPA + 7 * PAGE_SIZE)
/* In L2, both virtual and physical. */
#define HUGE_ALIAS		0x100000000ul
#define SHARED_ALIAS		0x200000000ul
#define SMALL_ALIAS		0x240000000ul

/* debugfs counts lists by the number of bits of their length. */
#define NR_BINS			11

struct command {
	u64 first;
	u64 count;
	u64 stride;
	/* Writes value, value + 1, ..., or if 0 checks for .expected. */
	u64 value;
	u64 expected;
};

static struct command command;

struct pages {
	u64 small;
	u64 huge;
};

static void l2_guest_code(void)
{
	u64 i;

	for (;;) {
		GUEST_SYNC(0);

		for (i = 0; i < READ_ONCE(command.count); i++) {
			u64 *p = (u64 *)(command.first + i * command.stride);

			if (command.value)
				WRITE_ONCE(*p, command.value + i);
			else
				GUEST_ASSERT_EQ(READ_ONCE(*p), command.expected);
		}
	}
}

static void l1_guest_code(void *data)
{
	run_l2(data, l2_guest_code);
}

static void l2_access(struct kvm_vcpu *vcpu, u64 first, u64 count, u64 stride, u64 value,
		      u64 expected)
{
	command = (struct command) {
		.first = first,
		.count = count,
		.stride = stride,
		.value = value,
		.expected = expected,
	};
	sync_global_to_guest(vcpu->vm, command);
	run_until_ucall(vcpu, UCALL_SYNC);
}

static void l2_write(struct kvm_vcpu *vcpu, u64 first, u64 count, u64 stride, u64 value)
{
	l2_access(vcpu, first, count, stride, value, 0);
}

static void l2_check(struct kvm_vcpu *vcpu, u64 first, u64 count, u64 stride, u64 expected)
{
	l2_access(vcpu, first, count, stride, 0, expected);
}

static struct pages page_stats(struct kvm_vm *vm)
{
	return (struct pages) {
		.small = vm_get_stat(vm, pages_4k),
		.huge = vm_get_stat(vm, pages_2m),
	};
}

/* How many lists of a level have a length of as many bits as @length. */
static u64 nr_lists(struct kvm_vm *vm, unsigned int level, unsigned int length)
{
	struct rmap_stat stat = read_rmap_stat(vm);

	TEST_ASSERT(level <= stat.nr_levels, "There are no lists of level %u", level);
	return stat.lists[level - PG_LEVEL_4K][32 - __builtin_clz(length)];
}

static void set_logging(struct kvm_vm *vm, bool on)
{
	vm_mem_region_set_flags(vm, SLOT, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

/* Reads the log, which must have @page of the slot alone, or nothing (-1). */
static void check_log(struct kvm_vm *vm, unsigned long *bitmap, int page, const char *what,
		      unsigned int alias)
{
	unsigned int i;

	kvm_vm_get_dirty_log(vm, SLOT, bitmap);
	for (i = 0; i < SLOT_PAGES; i++)
		TEST_ASSERT(test_bit(i, bitmap) == ((int)i == page),
			    "Page %u is %s in the log after a write to page %d by %s alias %u", i,
			    test_bit(i, bitmap) ? "dirty" : "clean", page, what, alias);
}

/* With eager splitting off, the first write to a huge page splits it. */
static bool splits_eagerly(void)
{
	return get_kvm_param_bool("eager_page_split") && get_kvm_param_bool("tdp_mmu");
}

static u64 eager_splits(struct kvm_vm *vm)
{
	return has_mmu_stats() ? vm_get_stat(vm, mmu_eager_splits) : 0;
}

/* Uses all aliases, so that all are mapped, and checks that they are the same memory. */
static void use_all(struct kvm_vcpu *vcpu, unsigned int n, u64 token)
{
	u64 *shared = addr_gpa2hva(vcpu->vm, HUGE_GPA + SHARED_PAGE * PAGE_SIZE);
	u64 *small = addr_gpa2hva(vcpu->vm, SMALL_GPA);
	u64 *huge = addr_gpa2hva(vcpu->vm, HUGE_GPA);

	l2_write(vcpu, HUGE_ALIAS, n, SZ_2M, token);
	TEST_ASSERT_EQ(READ_ONCE(*huge), token + n - 1);
	l2_check(vcpu, HUGE_ALIAS, n, SZ_2M, token + n - 1);

	l2_write(vcpu, SHARED_ALIAS, n, PAGE_SIZE, token + 1000);
	TEST_ASSERT_EQ(READ_ONCE(*shared), token + 1000 + n - 1);
	l2_check(vcpu, HUGE_ALIAS + SHARED_PAGE * PAGE_SIZE, n, SZ_2M, token + 1000 + n - 1);

	l2_write(vcpu, SMALL_ALIAS, n, PAGE_SIZE, token + 2000);
	TEST_ASSERT_EQ(READ_ONCE(*small), token + 2000 + n - 1);
	l2_check(vcpu, SMALL_ALIAS, n, PAGE_SIZE, token + 2000 + n - 1);
}

/* Every write is logged, whichever alias it comes by. */
static void check_logging(struct kvm_vcpu *vcpu, unsigned long *bitmap, unsigned int n)
{
	struct kvm_vm *vm = vcpu->vm;
	unsigned int i;

	/* What was written before counts, too. */
	kvm_vm_get_dirty_log(vm, SLOT, bitmap);
	check_log(vm, bitmap, -1, "no", 0);

	for (i = 0; i < n; i++) {
		l2_write(vcpu, HUGE_ALIAS + i * SZ_2M + 9 * PAGE_SIZE, 1, 0, 0x900 + i);
		check_log(vm, bitmap, 9, "huge", i);
		l2_write(vcpu, SHARED_ALIAS + i * PAGE_SIZE, 1, 0, 0x500 + i);
		check_log(vm, bitmap, SHARED_PAGE, "shared", i);
		l2_write(vcpu, SMALL_ALIAS + i * PAGE_SIZE, 1, 0, 0x700 + i);
		check_log(vm, bitmap, (SMALL_GPA - HUGE_GPA) / PAGE_SIZE, "small", i);
	}
}

static void test_aliases(unsigned int n)
{
	u64 small_lists, huge_lists;
	unsigned int toggle;
	struct pages before, split, now;
	struct kvm_vcpu *vcpu;
	unsigned long *bitmap;
	struct kvm_vm *vm;
	unsigned int i;
	gva_t nested;
	u64 splits;

	vm = __vm_create_with_one_vcpu(&vcpu, SLOT_PAGES, l1_guest_code);
	vm_enable_tdp(vm);
	nested = vcpu_alloc_nested(vm);
	vcpu_args_set(vcpu, 1, nested);

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, HUGE_GPA, SLOT,
				    SLOT_PAGES, 0);
	bitmap = bitmap_zalloc(SLOT_PAGES);

	/* L2's virtual addresses are its physical ones; L1 aliases those. */
	virt_map_level(vm, HUGE_ALIAS, HUGE_ALIAS, n * SZ_2M, PG_LEVEL_2M);
	virt_map(vm, SHARED_ALIAS, SHARED_ALIAS, n);
	virt_map(vm, SMALL_ALIAS, SMALL_ALIAS, n);
	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < n; i++) {
		__virt_pg_map(vm, &vm->stage2_mmu, HUGE_ALIAS + i * SZ_2M, HUGE_GPA, PG_LEVEL_2M);
		tdp_map(vm, SHARED_ALIAS + i * PAGE_SIZE, HUGE_GPA + SHARED_PAGE * PAGE_SIZE,
			PAGE_SIZE);
		tdp_map(vm, SMALL_ALIAS + i * PAGE_SIZE, SMALL_GPA, PAGE_SIZE);
	}

	run_until_ucall(vcpu, UCALL_SYNC);
	small_lists = nr_lists(vm, PG_LEVEL_4K, n);
	huge_lists = nr_lists(vm, PG_LEVEL_2M, n);
	before = page_stats(vm);

	use_all(vcpu, n, 0x10000);
	now = page_stats(vm);
	TEST_ASSERT_EQ(now.huge, before.huge + n);
	TEST_ASSERT_EQ(nr_lists(vm, PG_LEVEL_2M, n), huge_lists + 1);
	/* Page tables were touched as well, but once each. */
	TEST_ASSERT(now.small >= before.small + 2 * n, "Of %u small aliases, %lu are mapped",
		    2 * n, now.small - before.small);
	if (n > 2)
		TEST_ASSERT_EQ(nr_lists(vm, PG_LEVEL_4K, n), small_lists + 2);
	small_lists = nr_lists(vm, PG_LEVEL_4K, n);

	for (toggle = 0; toggle < 2; toggle++) {
		before = page_stats(vm);
		splits = eager_splits(vm);
		set_logging(vm, true);
		split = page_stats(vm);
		if (has_mmu_stats())
			TEST_ASSERT_EQ(eager_splits(vm) - splits, splits_eagerly() ? n : 0);
		if (splits_eagerly()) {
			/* All aliases have the same rights, and share one table. */
			TEST_ASSERT_EQ(split.huge, before.huge - n);
			TEST_ASSERT_EQ(split.small, before.small + PAGES_PER_HUGE);
			TEST_ASSERT_EQ(nr_lists(vm, PG_LEVEL_2M, n), huge_lists);
			/* Now the shared page is mapped by that table as well. */
			TEST_ASSERT(nr_lists(vm, PG_LEVEL_4K, n + 1), "No list of %u", n + 1);
		}

		use_all(vcpu, n, 0x20000 + toggle * 0x10000);
		check_logging(vcpu, bitmap, n);

		set_logging(vm, false);
		use_all(vcpu, n, 0x50000 + toggle * 0x10000);
		now = page_stats(vm);
		TEST_ASSERT_EQ(now.huge, before.huge);
		TEST_ASSERT_EQ(now.small, before.small);
		TEST_ASSERT_EQ(nr_lists(vm, PG_LEVEL_2M, n), huge_lists + 1);
		TEST_ASSERT_EQ(nr_lists(vm, PG_LEVEL_4K, n), small_lists);
	}

	free(bitmap);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	/* A lone entry, one descriptor partly and just filled, and more of them. */
	static const unsigned int lengths[] = { 1, 2, 14, 15, 16, 200 };
	unsigned int i;

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_cpu_has_tdp());
	TEST_REQUIRE(!access("/sys/kernel/debug/kvm", R_OK));

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(lengths));
	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		test_aliases(lengths[i]);
		ksft_test_result_pass("%u aliases\n", lengths[i]);
	}
	ksft_finished();
}
