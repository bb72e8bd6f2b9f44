/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the processor's counters say of a piece of this thread's work, guests included. A
 * counter that is not there, as in a VM, is left out, and that is said once.
 */
#ifndef PMU_H
#define PMU_H

#include <linux/perf_event.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PMU_CACHE(cache, op) (PERF_COUNT_HW_CACHE_##cache | PERF_COUNT_HW_CACHE_OP_##op << 8 | \
			      PERF_COUNT_HW_CACHE_RESULT_MISS << 16)

static struct pmu_event {
	const char *name;
	unsigned int type, only_guest;
	unsigned long config;
	int fd;
} pmu_events[] = {
	{ "instructions", PERF_TYPE_HARDWARE, 0, PERF_COUNT_HW_INSTRUCTIONS, -1 },
	{ "cycles", PERF_TYPE_HARDWARE, 0, PERF_COUNT_HW_CPU_CYCLES, -1 },
	/* On the processors of today, misses of all TLBs, which make the walker work. */
	{ "dtlb-load-misses", PERF_TYPE_HW_CACHE, 0, PMU_CACHE(DTLB, READ), -1 },
	{ "guest-dtlb-load-misses", PERF_TYPE_HW_CACHE, 1, PMU_CACHE(DTLB, READ), -1 },
	{ "guest-dtlb-store-misses", PERF_TYPE_HW_CACHE, 1, PMU_CACHE(DTLB, WRITE), -1 },
	{ "page-faults", PERF_TYPE_SOFTWARE, 0, PERF_COUNT_SW_PAGE_FAULTS, -1 },
};

#define PMU_EVENTS (sizeof(pmu_events) / sizeof(pmu_events[0]))

static void pmu_open(void)
{
	struct pmu_event *e;

	for (e = pmu_events; e < pmu_events + PMU_EVENTS; e++) {
		struct perf_event_attr attr = {
			.size = sizeof(attr),
			.type = e->type,
			.config = e->config,
			.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED |
				       PERF_FORMAT_TOTAL_TIME_RUNNING,
			.disabled = 1,
			.exclude_hv = 1,
			.exclude_host = e->only_guest,
		};

		e->fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
		if (e->fd < 0)
			printf("# %s are not counted: %m\n", e->name);
	}
}

static void pmu_begin(void)
{
	struct pmu_event *e;

	for (e = pmu_events; e < pmu_events + PMU_EVENTS; e++)
		if (e->fd >= 0)
			ioctl(e->fd, PERF_EVENT_IOC_RESET, 0);
	/* All of this thread's at once, so that none counts the work for another. */
	prctl(PR_TASK_PERF_EVENTS_ENABLE);
}

static void pmu_end(void)
{
	prctl(PR_TASK_PERF_EVENTS_DISABLE);
}

/* " NAME=N" of each counter since pmu_begin(); times are of all that is counted. */
static void pmu_print(void)
{
	static struct { unsigned long n, enabled, running; } last[PMU_EVENTS];
	size_t i;

	for (i = 0; i < PMU_EVENTS; i++) {
		unsigned long now[3];
		double running;

		if (pmu_events[i].fd < 0 ||
		    read(pmu_events[i].fd, now, sizeof(now)) != sizeof(now))
			continue;
		running = now[2] - last[i].running;
		/* Where counters are too few, they take turns; some were in none. */
		if (running)
			printf(" %s=%.0f", pmu_events[i].name,
			       now[0] * ((now[1] - last[i].enabled) / running));
		last[i].enabled = now[1];
		last[i].running = now[2];
	}
}

#endif
