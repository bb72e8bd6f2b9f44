// SPDX-License-Identifier: GPL-2.0
/*
 * Loaded into QEMU by LD_PRELOAD: a VM's ioctls work in the process that made it only,
 * and QEMU knows nothing of KVM_SPLIT_HUGE_PAGES.
 *
 * Reads lines "BYTES THREADS TIMES BUDGET PAUSE REST PHASE SPLIT RECOVER RESTS" from the FIFO
 * $SPLIT_AHEAD.in. For each it splits the first BYTES of guest memory to 4 KiB and recovers them,
 * TIMES times, by so many threads, with BUDGET bytes a call and PAUSE us between calls, and rests
 * for REST us after either. It writes a line to $SPLIT_AHEAD.out: 0, or the errno. At the address
 * PHASE is the phase of the guest's stall meter, which becomes SPLIT, RECOVER or RESTS.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../tools/kvm/split_ahead/split_ahead.c"

static int find_vm(void)
{
	DIR *dir = opendir("/proc/self/fd");
	char path[300], target[64];
	struct dirent *entry;
	ssize_t length;
	int fd = -1;

	while (dir && fd < 0 && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		length = readlink(path, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = 0;
		if (!strcmp(target, "anon_inode:kvm-vm"))
			fd = atoi(entry->d_name);
	}
	if (dir)
		closedir(dir);
	return fd;
}

struct line {
	unsigned long long bytes, threads, times, budget, pause, rest, phase, split, recover, rests;
};

static int work(const struct line *line)
{
	unsigned long long *phase = (void *)(unsigned long)line->phase;
	struct split_ahead job = {
		.vm_fd = find_vm(),
		.size = line->bytes,
		.nr_threads = line->threads,
		.budget = line->budget,
		.pause_us = line->pause,
	};
	int error = job.vm_fd < 0 ? ENODEV : 0;

	for (unsigned int n = 0; n < 2 * line->times && !error; n++) {
		job.page_size = n % 2 ? 0 : 4096;
		__atomic_store_n(phase, n % 2 ? line->recover : line->split, __ATOMIC_RELAXED);
		error = split_ahead(&job);
		if (line->rest) {
			__atomic_store_n(phase, line->rests, __ATOMIC_RELAXED);
			usleep(line->rest);
		}
	}
	return error;
}

static int read_line(FILE *in, struct line *line)
{
	return fscanf(in, "%llu %llu %llu %llu %llu %llu %llu %llu %llu %llu", &line->bytes,
		      &line->threads, &line->times, &line->budget, &line->pause, &line->rest,
		      &line->phase, &line->split, &line->recover, &line->rests) == 10;
}

static void *serve(void *arg)
{
	struct line line;
	char path[300];
	FILE *in, *out;

	for (;;) {
		snprintf(path, sizeof(path), "%s.in", (char *)arg);
		in = fopen(path, "re");
		if (!in)
			return NULL;
		while (read_line(in, &line)) {
			snprintf(path, sizeof(path), "%s.out", (char *)arg);
			out = fopen(path, "we");
			if (!out)
				break;
			fprintf(out, "%d\n", work(&line));
			fclose(out);
		}
		fclose(in);
	}
}

__attribute__((constructor)) static void start(void)
{
	char *name = getenv("SPLIT_AHEAD");
	pthread_t thread;

	if (name && !pthread_create(&thread, NULL, serve, name))
		pthread_detach(thread);
}
