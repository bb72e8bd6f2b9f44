/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Splitting huge pages ahead of dirty logging, by userspace. The numbers are far from
 * upstream's, which may grow. Documentation/virt/kvm/x86/split-ahead.rst describes all of it.
 */
#ifndef _UAPI_ASM_X86_KVM_SPLIT_H
#define _UAPI_ASM_X86_KVM_SPLIT_H

#include <linux/const.h>
#include <linux/ioctl.h>
#include <linux/types.h>

/* KVM_CHECK_EXTENSION: the set of what exists, 0 if nothing does. */
#define KVM_CAP_SPLIT_HUGE_PAGES	0x72730001
#define KVM_SPLIT_CAN_SPLIT		_BITUL(0)
#define KVM_SPLIT_CAN_KEEP		_BITUL(1)
#define KVM_SPLIT_CAN_RECOVER		_BITUL(2)
#define KVM_SPLIT_CAN_SET_CHUNK		_BITUL(3)

/*
 * KVM_ENABLE_CAP, for a VM: args[0] is the number of bytes for which the kernel allocates page
 * tables at a time when it splits eagerly, or 0 if it is not to. KVM_CHECK_EXTENSION: the
 * number that is in effect.
 */
#define KVM_CAP_EAGER_SPLIT_CHUNK_SIZE	0x72730002

/* The pages stay small until they are recovered: no fault maps larger ones. */
#define KVM_SPLIT_FLAG_KEEP		_BITULL(0)
/* The opposite: pages need not stay small, and are recovered in place. */
#define KVM_SPLIT_FLAG_RECOVER		_BITULL(1)

struct kvm_split_huge_pages {
	/* Both advance by what is done. */
	__u64 gpa;
	__u64 size;
	/* The largest pages that are left, 4096 or 2 MiB; 0 with KVM_SPLIT_FLAG_RECOVER. */
	__u64 page_size;
	/* How many bytes of memslots one call may go through, rounded up to 2 MiB; 0: all. */
	__u64 budget;
	__u64 flags;
	/* 0; 1 for the memslots of SMM. */
	__u32 address_space;
	__u32 padding;
	__u64 reserved[2];
};

#define KVM_SPLIT_HUGE_PAGES		_IOWR(0xAE, 0xf0, struct kvm_split_huge_pages)

#endif /* _UAPI_ASM_X86_KVM_SPLIT_H */
