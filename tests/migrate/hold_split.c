// SPDX-License-Identifier: GPL-2.0
/*
 * Loaded into the QEMU of contrib/qemu by LD_PRELOAD: after the first UNITS calls that split ahead,
 * each waits until the file $HOLD_SPLIT is gone. So a migration can be cancelled in the middle.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <asm/kvm_split.h>

#define UNITS	8

int ioctl(int fd, unsigned long request, ...)
{
	const struct kvm_split_huge_pages *split;
	static unsigned int units;
	const char *path;
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);

	if (request == KVM_SPLIT_HUGE_PAGES) {
		split = arg;
		path = getenv("HOLD_SPLIT");
		if (path && !(split->flags & KVM_SPLIT_FLAG_RECOVER) &&
		    __atomic_fetch_add(&units, 1, __ATOMIC_RELAXED) >= UNITS) {
			while (!access(path, F_OK))
				usleep(1000);
		}
	}
	return syscall(SYS_ioctl, fd, request, arg);
}
