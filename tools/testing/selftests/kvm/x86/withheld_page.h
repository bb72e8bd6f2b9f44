/* SPDX-License-Identifier: GPL-2.0 */
/* A page whose first access stops a thread, until the test provides it (userfaultfd). */
#ifndef SELFTEST_KVM_WITHHELD_PAGE_H
#define SELFTEST_KVM_WITHHELD_PAGE_H

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "kvm_util.h"
#include "test_util.h"

/* Drops the anonymous page at @page, and withholds it.  Returns a userfaultfd; -1 without one. */
static inline int withhold_page(void *page)
{
	struct uffdio_register range = {
		.range = { .start = (u64)page, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		return -1;
	kvm_madvise(page, PAGE_SIZE, MADV_DONTNEED);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &range),
		    "Cannot catch faults, errno %d", errno);
	return uffd;
}

/* Waits until a thread is stopped. */
static inline void wait_for_withheld_page(int uffd)
{
	struct uffd_msg msg;

	TEST_ASSERT(read(uffd, &msg, sizeof(msg)) == sizeof(msg) &&
		    msg.event == UFFD_EVENT_PAGEFAULT, "No fault, errno %d", errno);
}

#endif /* SELFTEST_KVM_WITHHELD_PAGE_H */
