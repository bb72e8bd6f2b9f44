/* SPDX-License-Identifier: GPL-2.0 */
/* An L1 that does nothing but run an L2, on either vendor's CPUs. */
#ifndef SELFTEST_KVM_NESTED_L1_H
#define SELFTEST_KVM_NESTED_L1_H

#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "vmx.h"

/* Gives the vCPU what run_l2() takes for its first argument, and returns that. */
static inline gva_t vcpu_alloc_nested(struct kvm_vm *vm)
{
	gva_t data;

	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &data);
	else
		vcpu_alloc_svm(vm, &data);
	return data;
}

/* In L1: runs L2, which must not exit to L1. */
static inline void run_l2(void *data, void *l2_guest_code)
{
	if (this_cpu_has(X86_FEATURE_VMX)) {
		struct vmx_pages *vmx = data;

		GUEST_ASSERT(prepare_for_vmx_operation(vmx));
		GUEST_ASSERT(load_vmcs(vmx));
		prepare_vmcs(vmx, l2_guest_code);
		GUEST_ASSERT(!vmlaunch());
	} else {
		struct svm_test_data *svm = data;

		generic_svm_setup(svm, l2_guest_code);
		run_guest(svm->vmcb, svm->vmcb_gpa);
	}
	GUEST_FAIL("L2 has exited to L1");
}

#endif /* SELFTEST_KVM_NESTED_L1_H */
