// SPDX-License-Identifier: GPL-2.0
/* Splits, keeps and recovers in several threads, each in a part of the range. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <asm/kvm_split.h>

#include "split_ahead.h"

#define BUDGET		(64ULL << 20)
#define HUGE_PAGE	(2ULL << 20)

struct part {
	pthread_t thread;
	struct split_ahead *job;
	struct kvm_split_huge_pages request;
	int error;
};

static void *do_part(void *arg)
{
	struct part *part = arg;
	struct split_ahead *job = part->job;
	struct kvm_split_huge_pages *request = &part->request;
	__u64 before;

	while (request->size && !__atomic_load_n(&job->stop, __ATOMIC_RELAXED)) {
		before = request->size;
		if (ioctl(job->vm_fd, KVM_SPLIT_HUGE_PAGES, request)) {
			/* A memslot that is being changed will be there again, or not. */
			if (errno == EINTR || errno == EAGAIN)
				continue;
			part->error = errno;
			break;
		}
		__atomic_add_fetch(&job->done, before - request->size, __ATOMIC_RELAXED);
		if (job->pause_us)
			usleep(job->pause_us);
	}
	return NULL;
}

int split_ahead(struct split_ahead *job)
{
	__u64 each = job->size / job->nr_threads / HUGE_PAGE * HUGE_PAGE, at = job->gpa;
	struct part *parts = calloc(job->nr_threads, sizeof(*parts));
	unsigned int n, started;
	int error = 0;

	if (!parts)
		return errno;

	for (started = 0; started < job->nr_threads; started++, at += each) {
		struct part *part = &parts[started];

		part->job = job;
		part->request = (struct kvm_split_huge_pages) {
			.gpa = at,
			.size = started + 1 < job->nr_threads ? each : job->gpa + job->size - at,
			.page_size = job->page_size,
			.budget = job->budget ?: BUDGET,
			.flags = job->page_size ? KVM_SPLIT_FLAG_KEEP : KVM_SPLIT_FLAG_RECOVER,
		};
		/* The parts may be empty, if there are more threads than huge pages. */
		error = pthread_create(&part->thread, NULL, do_part, part);
		if (error)
			break;
	}
	for (n = 0; n < started; n++) {
		pthread_join(parts[n].thread, NULL);
		if (!error)
			error = parts[n].error;
	}
	free(parts);
	return error;
}
