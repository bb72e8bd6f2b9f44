/* SPDX-License-Identifier: GPL-2.0 */
/* Statistics of KVM's MMU, for its tests. */
#ifndef SELFTEST_KVM_MMU_STAT_H
#define SELFTEST_KVM_MMU_STAT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* Leaves, by the size of what they map. */
struct page_stats {
	u64 pages_4k;
	u64 pages_2m;
	u64 pages_1g;
};

static inline struct page_stats get_page_stats(struct kvm_vm *vm)
{
	return (struct page_stats) {
		.pages_4k = vm_get_stat(vm, pages_4k),
		.pages_2m = vm_get_stat(vm, pages_2m),
		.pages_1g = vm_get_stat(vm, pages_1g),
	};
}

static inline void assert_page_stats(struct page_stats got, struct page_stats want,
				     const char *when)
{
	TEST_ASSERT(got.pages_4k == want.pages_4k &&
		    got.pages_2m == want.pages_2m &&
		    got.pages_1g == want.pages_1g,
		    "%s: 4k/2m/1g mappings are %lu/%lu/%lu, should be %lu/%lu/%lu",
		    when, got.pages_4k, got.pages_2m, got.pages_1g,
		    want.pages_4k, want.pages_2m, want.pages_1g);
}

/* Whether it counts what it splits and recovers (CONFIG_KVM_RUST_MMU). */
static inline bool has_mmu_stats(void)
{
	return !access("/sys/module/kvm/parameters/mmu_engine", F_OK);
}

/* What it counts; all 0 if it counts nothing. */
struct mmu_stats {
	u64 eager_splits;
	u64 fault_splits;
	u64 promotions;
};

static inline struct mmu_stats get_mmu_stats(struct kvm_vm *vm)
{
	if (!has_mmu_stats())
		return (struct mmu_stats) {};
	return (struct mmu_stats) {
		.eager_splits = vm_get_stat(vm, mmu_eager_splits),
		.fault_splits = vm_get_stat(vm, mmu_fault_splits),
		.promotions = vm_get_stat(vm, mmu_promotions),
	};
}

/* Whether VMs that can be are logged by D bits, and the VMs of a test can. */
static inline bool logs_by_dirty_bits(void)
{
	char mode[32] = "";
	FILE *f = fopen("/sys/module/kvm/parameters/dirty_log", "re");

	if (f) {
		TEST_ASSERT(fgets(mode, sizeof(mode), f), "Cannot read kvm.dirty_log");
		fclose(f);
	}
	/* Where the CPU logs writes, or sets no D bits, the parameter changes nothing. */
	if (strcmp(mode, "dirty_bits\n") || !get_kvm_param_bool("tdp_mmu"))
		return false;
	return host_cpu_is_amd || (get_kvm_intel_param_bool("eptad") &&
				   !get_kvm_intel_param_bool("pml"));
}

/*
 * How many lists of the reverse map have a length of so many bits, that is 0, 1,
 * 2 and 3, 4 to 7 and so on leaves, for the levels from 4KiB to 1GiB; for none of
 * them, where the VM has no lists.
 */
struct rmap_stat {
	unsigned int nr_levels;
	u64 lists[PG_LEVEL_1G][11];
};

static inline struct rmap_stat read_rmap_stat(struct kvm_vm *vm)
{
	struct rmap_stat stat = {};
	char path[128], line[512], *word;
	unsigned int bin;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/mmu_rmaps_stat",
		 getpid(), vm->fd);
	f = fopen(path, "re");
	TEST_ASSERT(f, "Cannot open %s", path);
	while (stat.nr_levels < ARRAY_SIZE(stat.lists) && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "Level=", 6))
			continue;
		strtok(line, "\t\n");
		for (bin = 0; bin < ARRAY_SIZE(stat.lists[0]); bin++) {
			word = strtok(NULL, "\t\n");
			TEST_ASSERT(word, "%s has no bin %u", path, bin);
			stat.lists[stat.nr_levels][bin] = strtoul(word, NULL, 10);
		}
		stat.nr_levels++;
	}
	fclose(f);
	return stat;
}

#endif /* SELFTEST_KVM_MMU_STAT_H */
