// SPDX-License-Identifier: GPL-2.0
/*
 * Dirty logging without faults: Page-Modification Logging and D bits
 *
 * With PML, enabling dirty logging must not write-protect.  It clears the D bits of the SPTEs,
 * and the CPU logs each page whose D bit it sets, so pages get into the dirty log although no
 * write to them faulted.  The guest writes to a slot in which everything is mapped.  After each
 * round, check that
 *
 *  - the dirty log contains exactly the pages that were written,
 *  - no vCPU took a page fault.
 *
 * The same must hold for pages that are pre-faulted while the slot is logged, and for logging
 * by D bits without PML (kvm.dirty_log=dirty_bits).
 *
 * The memory is mapped by 4KiB pages, and by 2MiB pages that are split when logging is enabled
 * (eager_page_split): the small pages of a split must be writable and clean as well.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(8ul * SZ_1M)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)

static const u64 strides[] = { 1, 3, 7, 512, TEST_PAGES };

static struct guest_request {
	u64 first;
	u64 stride;
} request;

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = READ_ONCE(request.first); page < TEST_PAGES;
		     page += READ_ONCE(request.stride))
			WRITE_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE), page);
		GUEST_SYNC(0);
	}
}

static void write_pages(struct kvm_vcpu *vcpu, u64 first, u64 stride)
{
	request.first = first;
	request.stride = stride;
	sync_global_to_guest(vcpu->vm, request);
	run_until_ucall(vcpu, UCALL_SYNC);
}

static void set_dirty_logging(struct kvm_vm *vm, void *mem, bool enable)
{
	vm_set_user_memory_region(vm, TEST_SLOT, enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
				  TEST_BASE, TEST_SIZE, mem);
}

static void pre_fault(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };

	while (range.size)
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

/*
 * What is pre-faulted while it is logged.  The Rust MMU has nothing to log before the
 * guest writes; upstream logs it at once, unless there are no A/D bits.  Returns the number
 * of faults of the writes.
 */
static u64 pre_fault_logged(struct kvm_vcpu *vcpu, void *mem, unsigned long *bitmap)
{
	const u64 stride = 5;
	u64 page, before;

	kvm_madvise(mem, TEST_SIZE, MADV_DONTNEED);
	memset(mem, 0, TEST_SIZE);
	pre_fault(vcpu);
	before = vcpu_get_stat(vcpu, pf_taken);
	write_pages(vcpu, 0, stride);

	kvm_vm_get_dirty_log(vcpu->vm, TEST_SLOT, bitmap);
	for (page = 0; page < TEST_PAGES; page++) {
		if (page % stride && !has_mmu_stats())
			continue;
		TEST_ASSERT(test_bit(page, bitmap) == (page % stride == 0),
			    "Page %lu was pre-faulted%s, and is %slogged", page,
			    page % stride ? "" : " and written",
			    test_bit(page, bitmap) ? "" : "not ");
	}
	return vcpu_get_stat(vcpu, pf_taken) - before;
}

/* Returns the number of faults that writing while logging took. */
static u64 run_case(const char *name, int mmap_flags, bool manual_protect)
{
	unsigned long *bitmap = bitmap_zalloc(TEST_PAGES);
	u64 first, page, before, faults = 0;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	unsigned int i;
	void *mem;

	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | mmap_flags, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "Not enough free huge pages");
	if (!mmap_flags)
		kvm_madvise(mem, TEST_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 0, TEST_SIZE);

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	if (manual_protect)
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	set_dirty_logging(vm, mem, false);
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);

	/* Everything is mapped, and the guest has touched all else it uses. */
	pre_fault(vcpu);
	write_pages(vcpu, 0, 1);
	write_pages(vcpu, 0, 1);

	for (i = 0; i < ARRAY_SIZE(strides); i++) {
		/* Again from huge pages to small ones, every other time. */
		if (i % 2 == 0) {
			set_dirty_logging(vm, mem, false);
			set_dirty_logging(vm, mem, true);
		}
		first = i;
		before = vcpu_get_stat(vcpu, pf_taken);
		write_pages(vcpu, first, strides[i]);
		faults += vcpu_get_stat(vcpu, pf_taken) - before;

		kvm_vm_get_dirty_log(vm, TEST_SLOT, bitmap);
		for (page = 0; page < TEST_PAGES; page++) {
			bool written = page >= first && (page - first) % strides[i] == 0;

			TEST_ASSERT(test_bit(page, bitmap) == written,
				    "%s, stride %lu: page %lu was %swritten, and is %slogged",
				    name, strides[i], page, written ? "" : "not ",
				    test_bit(page, bitmap) ? "" : "not ");
		}
		if (manual_protect)
			kvm_vm_clear_dirty_log(vm, TEST_SLOT, bitmap, 0, TEST_PAGES);
	}

	faults += pre_fault_logged(vcpu, mem, bitmap);

	kvm_vm_free(vm);
	kvm_munmap(mem, TEST_SIZE);
	free(bitmap);
	return faults;
}

int main(void)
{
	static const struct {
		const char *name;
		int mmap_flags;
		bool manual_protect;
	} cases[] = {
		{ "4KiB, legacy", 0, false },
		{ "4KiB, manual-protect", 0, true },
		{ "2MiB, legacy", MAP_HUGETLB | MAP_HUGE_2MB, false },
		{ "2MiB, manual-protect", MAP_HUGETLB | MAP_HUGE_2MB, true },
	};
	unsigned int i;
	u64 faults;
	bool pml, no_faults;

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(get_kvm_param_bool("eager_page_split"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	/* Without PML, the same log costs a fault a page. */
	pml = host_cpu_is_intel && get_kvm_intel_param_bool("pml");
	no_faults = pml || logs_by_dirty_bits();

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(cases));

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		faults = run_case(cases[i].name, cases[i].mmap_flags,
				  cases[i].manual_protect);
		ksft_test_result(no_faults == !faults,
				 "%s: the log is exact, %lu faults, PML=%c, D bits=%c\n",
				 cases[i].name, faults, "NY"[pml], "NY"[no_faults && !pml]);
	}
	ksft_finished();
}
