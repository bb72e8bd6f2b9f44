/* SPDX-License-Identifier: GPL-2.0 */
/* Run a vCPU until the guest's next ucall, for the tests of KVM's MMU. */
#ifndef SELFTEST_KVM_RUN_VCPU_H
#define SELFTEST_KVM_RUN_VCPU_H

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* The vCPU's last run must have ended with ucall @cmd.  Prints the guest's failed assertion. */
static inline void assert_ucall(struct kvm_vcpu *vcpu, u64 cmd)
{
	struct ucall uc;

	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(uc.cmd == cmd, "Exit %s with ucall %lu, should be ucall %lu",
		    exit_reason_str(vcpu->run->exit_reason), uc.cmd, cmd);
}

static inline void run_until_ucall(struct kvm_vcpu *vcpu, u64 cmd)
{
	vcpu_run(vcpu);
	assert_ucall(vcpu, cmd);
}

#endif /* SELFTEST_KVM_RUN_VCPU_H */
