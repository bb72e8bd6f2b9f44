/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Splitting a VM's huge pages ahead of dirty logging, for a VMM: the ioctl works in
 * the process that made the VM only. See Documentation/virt/kvm/x86/split-ahead.rst.
 */
#ifndef SPLIT_AHEAD_H
#define SPLIT_AHEAD_H

#include <stdbool.h>

#include <linux/types.h>

struct split_ahead {
	int vm_fd;
	/* Guest physical memory, in bytes, multiples of 2 MiB; may have holes. */
	__u64 gpa, size;
	/* 4096 or 2 MiB; the pages stay so small. 0: what has stayed small is recovered. */
	__u64 page_size;
	unsigned int nr_threads;
	/* How much a call does, in bytes; 0: 64 MiB. Each thread sleeps so long after each. */
	__u64 budget;
	unsigned int pause_us;
	/* May be set at any time. */
	bool stop;
	/* How many bytes are done; may be read at any time. */
	__u64 done;
};

/* Returns 0, or the errno of the first thread that failed; the others go on. */
int split_ahead(struct split_ahead *job);

#endif /* SPLIT_AHEAD_H */
