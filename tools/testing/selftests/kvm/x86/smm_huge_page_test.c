// SPDX-License-Identifier: GPL-2.0
/*
 * Huge pages where the other address space tracks writes
 *
 * SMM has memslots of its own, through which it accesses the same memory.  If KVM shadows one
 * of L1's page tables, it must notice all writes to it, including those from SMM.  So a frame
 * that is tracked in one address space forbids a huge page in both.
 *
 * The root of L1's page tables for L2 is in the first 2MiB page of a region that both address
 * spaces contain.  L2 runs, so KVM tracks that frame.  Then the vCPU enters SMM, and the region
 * is mapped there by pre-faulting, logged, and recovered.  Both times, the first page must stay
 * small, and the second one, in which nothing is tracked, must become huge.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "nested_l1.h"
#include "processor.h"
#include "smm.h"
#include "test_util.h"

#define REGION_GPA		(4ul * SZ_1G)
#define REGION_SIZE		(2ul * SZ_2M)
#define REGION_SLOT		10
#define SMM_REGION_SLOT		(0x10000 | REGION_SLOT)
#define TABLE_OFFSET		(7 * PAGE_SIZE)
#define SMRAM_GPA		0x1000000

#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)
#define SYNC_PORT		0xe

/* Any exit will do, while the vCPU is in SMM. */
static const u8 smi_handler[] = {
	0xe4, SYNC_PORT,	/* in $SYNC_PORT, %al */
	0x0f, 0xaa,		/* rsm */
};

static void l2_guest_code(void)
{
	for (;;)
		asm volatile("outb %%al, %0" :: "i"(SYNC_PORT), "a"(0));
}

static void l1_guest_code(void *data)
{
	run_l2(data, l2_guest_code);
}

static void run(struct kvm_vcpu *vcpu, u8 direction)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT(vcpu->run->io.port == SYNC_PORT && vcpu->run->io.direction == direction,
		    "Unexpected exit: port 0x%x, direction %u", vcpu->run->io.port,
		    vcpu->run->io.direction);
}

static void map_region(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = REGION_GPA, .size = REGION_SIZE };
	int ret;

	do {
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while ((!ret && range.size) || (ret && errno == EINTR));
	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vcpu->vm);
}

static void set_smm_region(struct kvm_vm *vm, u32 flags, void *mem)
{
	vm_set_user_memory_region(vm, SMM_REGION_SLOT, flags, REGION_GPA, REGION_SIZE, mem);
}

static void assert_pages(struct kvm_vm *vm, u64 small, u64 huge, const char *when)
{
	TEST_ASSERT(vm_get_stat(vm, pages_4k) == small && vm_get_stat(vm, pages_2m) == huge,
		    "%s: %lu pages of 4KiB and %lu of 2MiB are mapped, should be %lu and %lu",
		    when, vm_get_stat(vm, pages_4k), vm_get_stat(vm, pages_2m), small, huge);
}

int main(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 small, huge;
	gva_t nested;
	u8 *mem;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_cpu_has_tdp());
	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));

	mem = mmap(NULL, REGION_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "Not enough free huge pages of 2 MiB, 2 are needed");
	memset(mem, 0, REGION_SIZE);

	vm = vm_create_with_one_vcpu(&vcpu, l1_guest_code);
	vm_enable_tdp(vm);
	nested = vcpu_alloc_nested(vm);
	vcpu_args_set(vcpu, 1, nested);
	tdp_identity_map_default_memslots(vm);
	setup_smram(vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	vm_set_user_memory_region(vm, REGION_SLOT, 0, REGION_GPA, REGION_SIZE, mem);
	set_smm_region(vm, 0, mem);

	/* Move the root of L1's page tables for L2 to the region. */
	memcpy(mem + TABLE_OFFSET, addr_gpa2hva(vm, vm->stage2_mmu.pgd), PAGE_SIZE);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		((struct vmx_pages *)addr_gva2hva(vm, nested))->eptp_gpa =
			REGION_GPA + TABLE_OFFSET;
	else
		((struct svm_test_data *)addr_gva2hva(vm, nested))->ncr3_gpa =
			REGION_GPA + TABLE_OFFSET;

	run(vcpu, KVM_EXIT_IO_OUT);
	TEST_ASSERT(vm_get_stat(vm, mmu_shadow_pages), "L2 runs without shadow pages");
	inject_smi(vcpu);
	run(vcpu, KVM_EXIT_IO_IN);

	small = vm_get_stat(vm, pages_4k);
	huge = vm_get_stat(vm, pages_2m);
	map_region(vcpu);
	assert_pages(vm, small + PAGES_PER_2M, huge + 1, "Mapped in SMM");

	set_smm_region(vm, KVM_MEM_LOG_DIRTY_PAGES, mem);
	if (get_kvm_param_bool("eager_page_split"))
		assert_pages(vm, small + 2 * PAGES_PER_2M, huge, "Logged in SMM");
	map_region(vcpu);
	assert_pages(vm, small + 2 * PAGES_PER_2M, huge, "Logged and mapped in SMM");
	set_smm_region(vm, 0, mem);
	assert_pages(vm, small + PAGES_PER_2M, huge + 1, "Recovered in SMM");

	/* Back to L2, whose page tables are what they were. */
	run(vcpu, KVM_EXIT_IO_OUT);
	kvm_vm_free(vm);
	return 0;
}
