/* SPDX-License-Identifier: GPL-2.0 */
/* A vCPU in flat 32-bit protected mode, without paging; for programs that use /dev/kvm directly. */
#ifndef TESTS_FLAT_MODE_H
#define TESTS_FLAT_MODE_H

#include <err.h>
#include <sys/ioctl.h>

#include <linux/kvm.h>

static inline void set_flat_mode(int vcpu)
{
	struct kvm_segment data = {
		.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.ds = data;
	sregs.es = data;
	sregs.ss = data;
	sregs.cs = data;
	sregs.cs.selector = 8;
	sregs.cs.type = 11;
	sregs.cr0 |= 1;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(1, "KVM_SET_SREGS");
}

#endif /* TESTS_FLAT_MODE_H */
