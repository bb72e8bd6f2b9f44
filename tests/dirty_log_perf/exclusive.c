// SPDX-License-Identifier: GPL-2.0
/*
 * Give a thread of dirty_log_perf_test the only CPU while it is being timed.
 *
 * In the exact (-icount) boot there is one CPU and its clock counts
 * instructions. Of the test's threads one always works while the others spin,
 * so half of what the test measures would be spinning. Linked with
 * --wrap=ioctl,--wrap=clock_gettime this runs a thread under SCHED_FIFO for the
 * duration of a dirty logging ioctl or a KVM_RUN, so that a spinning thread
 * does not get the CPU then. The test itself is upstream's, unchanged.
 *
 * How soon the main thread notices that a KVM_RUN is over is up to the
 * scheduler's tick, which is far too coarse. So what a KVM_RUN took is printed
 * here: the first one populates memory, the others are the passes.
 */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <linux/kvm.h>

int __real_ioctl(int fd, unsigned long request, void *arg);
int __real_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);

static __thread int exclusive;
static int nr_runs;

static void set_exclusive(int on)
{
	struct sched_param param = { .sched_priority = on };

	if (exclusive == on)
		return;
	if (sched_setscheduler(0, on ? SCHED_FIFO : SCHED_OTHER, &param)) {
		perror("sched_setscheduler");
		exit(1);
	}
	exclusive = on;
}

static int timed_run(int fd, void *arg)
{
	struct timespec start, end;
	int ret, err;
	long ns;

	set_exclusive(1);
	__real_clock_gettime(CLOCK_MONOTONIC, &start);
	ret = __real_ioctl(fd, KVM_RUN, arg);
	err = errno;
	__real_clock_gettime(CLOCK_MONOTONIC, &end);
	set_exclusive(0);

	ns = (end.tv_sec - start.tv_sec) * 1000000000l + end.tv_nsec - start.tv_nsec;
	/* To complete an exit, the library runs a vCPU only to be interrupted. */
	if (!ret)
		fprintf(stderr, "KVM_RUN %d time: %ld.%.9lds\n", nr_runs++,
			ns / 1000000000, ns % 1000000000);
	errno = err;
	return ret;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);

	switch (request) {
	case KVM_RUN:
		return timed_run(fd, arg);
	case KVM_SET_USER_MEMORY_REGION2:
	case KVM_GET_DIRTY_LOG:
	case KVM_CLEAR_DIRTY_LOG:
		/* The test reads the clock next: not before may others run. */
		set_exclusive(1);
		break;
	}
	return __real_ioctl(fd, request, arg);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	int ret = __real_clock_gettime(clock, ts);

	set_exclusive(0);
	return ret;
}
