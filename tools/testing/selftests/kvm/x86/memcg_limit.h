/* SPDX-License-Identifier: GPL-2.0 */
/* A memory cgroup for the test itself, which has a limit for a while. */
#ifndef SELFTEST_KVM_MEMCG_LIMIT_H
#define SELFTEST_KVM_MEMCG_LIMIT_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include "test_util.h"

struct memcg {
	char path[64];
	/* Negative if there is no such cgroup. */
	int max_fd, current_fd, events_fd;
};

static inline u64 memcg_read(int fd)
{
	char text[32] = {};

	TEST_ASSERT(pread(fd, text, sizeof(text) - 1, 0) > 0, "Cannot read a knob");
	return strtoul(text, NULL, 10);
}

/* How often the OOM killer was asked for a task of the cgroup. */
static inline u64 memcg_ooms(const struct memcg *memcg)
{
	char text[256] = {}, *line;

	TEST_ASSERT(pread(memcg->events_fd, text, sizeof(text) - 1, 0) > 0,
		    "Cannot read memory.events");
	line = strstr(text, "\noom ");
	TEST_ASSERT(line, "No oom in memory.events");
	return strtoul(line + 5, NULL, 10);
}

static inline int memcg_open(const struct memcg *memcg, const char *name, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", memcg->path, name);
	return open(path, flags | O_CLOEXEC);
}

/*
 * Enters a cgroup of this name.  The OOM killer cannot choose this process, so who is
 * at the limit gets no memory.
 */
static inline struct memcg memcg_enter(const char *name)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	struct memcg memcg = { .max_fd = -1, .current_fd = -1, .events_fd = -1 };
	bool safe = fd >= 0 && write(fd, "-1000", 5) == 5;

	close(fd);
	snprintf(memcg.path, sizeof(memcg.path), "/sys/fs/cgroup/%s", name);
	if (!safe || (mkdir(memcg.path, 0700) && errno != EEXIST))
		return memcg;
	fd = memcg_open(&memcg, "cgroup.procs", O_WRONLY);
	if (fd >= 0 && write(fd, "0", 1) == 1) {
		memcg.current_fd = memcg_open(&memcg, "memory.current", O_RDONLY);
		memcg.events_fd = memcg_open(&memcg, "memory.events", O_RDONLY);
		if (memcg.current_fd >= 0 && memcg.events_fd >= 0)
			memcg.max_fd = memcg_open(&memcg, "memory.max", O_WRONLY);
	}
	close(fd);
	/* The first time takes memory for a buffer. */
	if (memcg.max_fd >= 0) {
		memcg_read(memcg.current_fd);
		memcg_ooms(&memcg);
	}
	return memcg;
}

static inline void memcg_leave(struct memcg *memcg)
{
	int fd = open("/sys/fs/cgroup/cgroup.procs", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "0", 1) == 1)
		rmdir(memcg->path);
	close(fd);
}

/* From now on so many bytes may be charged. */
static inline void memcg_limit(const struct memcg *memcg, u64 bytes)
{
	/* The limit gives back what was charged ahead, so that the rest is exact. */
	TEST_ASSERT(dprintf(memcg->max_fd, "0") > 0, "Cannot set a limit");
	TEST_ASSERT(dprintf(memcg->max_fd, "%lu", memcg_read(memcg->current_fd) + bytes) > 0,
		    "Cannot set a limit");
}

static inline void memcg_unlimit(const struct memcg *memcg)
{
	TEST_ASSERT(write(memcg->max_fd, "max", 3) == 3, "Cannot lift the limit");
}

#endif /* SELFTEST_KVM_MEMCG_LIMIT_H */
