// SPDX-License-Identifier: GPL-2.0
/*
 * Loaded into QEMU by LD_PRELOAD: a VM's ioctls work in the process that made it only,
 * and QEMU knows nothing of KVM_SPLIT_HUGE_PAGES.
 *
 * Reads lines "BYTES THREADS TIMES" from the FIFO $SPLIT_AHEAD.in. For each it splits the
 * first BYTES of guest memory to 4 KiB and recovers them, TIMES times, by so many threads, and
 * writes a line to $SPLIT_AHEAD.out: 0, or the errno.
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

static int work(unsigned long long bytes, unsigned int threads, unsigned int times)
{
	struct split_ahead job = { .vm_fd = find_vm(), .size = bytes, .nr_threads = threads };
	int error = job.vm_fd < 0 ? ENODEV : 0;

	for (unsigned int n = 0; n < 2 * times && !error; n++) {
		job.page_size = n % 2 ? 0 : 4096;
		error = split_ahead(&job);
	}
	return error;
}

static void *serve(void *arg)
{
	unsigned int threads, times;
	unsigned long long bytes;
	char path[300];
	FILE *in, *out;

	for (;;) {
		snprintf(path, sizeof(path), "%s.in", (char *)arg);
		in = fopen(path, "re");
		if (!in)
			return NULL;
		while (fscanf(in, "%llu %u %u", &bytes, &threads, &times) == 3) {
			snprintf(path, sizeof(path), "%s.out", (char *)arg);
			out = fopen(path, "we");
			if (!out)
				break;
			fprintf(out, "%d\n", work(bytes, threads, times));
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
