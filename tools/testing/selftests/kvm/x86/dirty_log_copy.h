/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Copies a memslot as a migration does: all pages first, then those that the dirty
 * log names.  If no write escapes the log, copy and memory are the same in the end.
 */
#ifndef SELFTEST_KVM_DIRTY_LOG_COPY_H
#define SELFTEST_KVM_DIRTY_LOG_COPY_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <asm/barrier.h>
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/kvm.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

enum log_kind {
	/* KVM_GET_DIRTY_LOG takes the bits. */
	LOG_GET,
	/* KVM_CLEAR_DIRTY_LOG takes them; they are clear when logging begins, or set. */
	LOG_CLEAR,
	LOG_CLEAR_SET,
	/* There are no bits, but the rings of the vCPUs. */
	LOG_RING,
	NR_LOG_KINDS,
};

static const char * const log_names[NR_LOG_KINDS] = {
	[LOG_GET]	= "GET",
	[LOG_CLEAR]	= "CLEAR",
	[LOG_CLEAR_SET]	= "CLEAR, bits set at first",
	[LOG_RING]	= "ring",
};

/* So many words of a page are copied, from its first on. */
#define COPY_WORDS	4

/* Entries of a vCPU's ring. */
#define RING_SIZE	4096

/* KVM_CLEAR_DIRTY_LOG clears so many pages at a time. */
#define CLEAR_PAGES	1024

struct dirty_log_copy {
	struct kvm_vm *vm;
	enum log_kind kind;
	u8 *mem;
	/* To be copied, and in the slot. */
	u64 npages, slot_npages;
	/* The pages whose bits are cleared, and that are copied; end is 0: up to the last one. */
	u64 first, end;

	/* The memslots that have this memory, at most one in each address space. */
	u32 slots[2];
	unsigned int nr_slots;

	/* For each slot the pages to copy. */
	unsigned long *bits[2];
	u64 (*copy)[COPY_WORDS];

	/* The vCPUs, and how much of each one's ring has been read. */
	struct kvm_vcpu **vcpus;
	unsigned int nr_vcpus;
	u32 fetched[KVM_MAX_VCPUS];
};

static inline bool has_log_kind(enum log_kind kind)
{
	switch (kind) {
	case LOG_CLEAR:
		return kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	case LOG_CLEAR_SET:
		return kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
		       KVM_DIRTY_LOG_INITIALLY_SET;
	case LOG_RING:
		return kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) ||
		       kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
	default:
		return true;
	}
}

/* For a VM that has no vCPU yet. */
static inline void choose_log_kind(struct kvm_vm *vm, enum log_kind kind)
{
	switch (kind) {
	case LOG_CLEAR:
	case LOG_CLEAR_SET:
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      (kind == LOG_CLEAR_SET ? KVM_DIRTY_LOG_INITIALLY_SET : 0));
		break;
	case LOG_RING:
		vm_enable_dirty_ring(vm, RING_SIZE * sizeof(struct kvm_dirty_gfn));
		break;
	default:
		break;
	}
}

static inline void copy_page(struct dirty_log_copy *log, u64 page)
{
	u64 *words = (u64 *)(log->mem + page * PAGE_SIZE);
	unsigned int i;

	for (i = 0; i < COPY_WORDS; i++)
		log->copy[page][i] = READ_ONCE(words[i]);
}

static inline void copy_all(struct dirty_log_copy *log)
{
	u64 page;

	for (page = 0; page < log->npages; page++)
		copy_page(log, page);
}

static inline void alloc_bits(struct dirty_log_copy *log)
{
	unsigned int i;

	for (i = 0; i < log->nr_slots; i++) {
		log->bits[i] = bitmap_zalloc(log->slot_npages);
		TEST_ASSERT(log->bits[i], "Out of memory");
		/* All is there: to kill who writes to it must not fail a fault. */
		bitmap_fill(log->bits[i], log->slot_npages);
	}
}

static inline void free_bits(struct dirty_log_copy *log)
{
	unsigned int i;

	for (i = 0; i < log->nr_slots; i++)
		free(log->bits[i]);
}

/* Begins with a copy of all: those of its members above @bits are set, and it is logged. */
static inline void copy_begin(struct dirty_log_copy *log)
{
	log->copy = calloc(log->npages, sizeof(*log->copy));
	TEST_ASSERT(log->copy, "Out of memory");
	alloc_bits(log);
	copy_all(log);
}

static inline void copy_end(struct dirty_log_copy *log)
{
	free_bits(log);
	free(log->copy);
}

/* Leaves the pages from @first on to another thread; where it is CLEAR that takes the bits. */
static inline void copy_share(struct dirty_log_copy *log, struct dirty_log_copy *second, u64 first)
{
	*second = *log;
	alloc_bits(second);
	second->first = first;
	log->end = first;
}

/* The opposite, when that thread has ended. */
static inline void copy_unshare(struct dirty_log_copy *log, struct dirty_log_copy *second)
{
	free_bits(second);
	log->end = second->end;
}

static inline void harvest_ring(struct dirty_log_copy *log, unsigned int cpu)
{
	struct kvm_dirty_gfn *ring = vcpu_map_dirty_ring(log->vcpus[cpu]), *entry;
	unsigned int i;

	for (;; log->fetched[cpu]++) {
		entry = &ring[log->fetched[cpu] % RING_SIZE];
		/* Pairs with smp_wmb() in kvm_dirty_ring_push(). */
		if (smp_load_acquire(&entry->flags) != KVM_DIRTY_GFN_F_DIRTY)
			return;
		for (i = 0; i < log->nr_slots; i++) {
			if (entry->slot == log->slots[i] && entry->offset < log->npages)
				set_bit(entry->offset, log->bits[i]);
		}
		/* Pairs with smp_load_acquire() in kvm_dirty_gfn_harvested(). */
		smp_store_release(&entry->flags, KVM_DIRTY_GFN_F_RESET);
	}
}

/* First step of three: what does not take a system call. */
static inline void log_prepare(struct dirty_log_copy *log)
{
	unsigned int i;

	for (i = 0; i < log->nr_slots; i++)
		bitmap_zero(log->bits[i], log->slot_npages);
	for (i = 0; i < log->nr_vcpus && log->kind == LOG_RING; i++)
		harvest_ring(log, i);
}

/*
 * Second step: the ioctls, and nothing of the library, as it may be a process that is
 * killed that does this.  Returns 0, or -1 and errno.
 */
static inline int log_take(struct dirty_log_copy *log)
{
	u64 first, end = log->end ?: log->slot_npages;
	unsigned int i;

	if (log->kind == LOG_RING)
		return __vm_ioctl(log->vm, KVM_RESET_DIRTY_RINGS, NULL) < 0 ? -1 : 0;

	for (i = 0; i < log->nr_slots; i++) {
		struct kvm_dirty_log get = {
			.slot = log->slots[i],
			.dirty_bitmap = log->bits[i],
		};

		if (__vm_ioctl(log->vm, KVM_GET_DIRTY_LOG, &get))
			return -1;
		if (log->kind == LOG_GET)
			continue;
		for (first = log->first; first < end; first += CLEAR_PAGES) {
			struct kvm_clear_dirty_log clear = {
				.slot = log->slots[i],
				.first_page = first,
				.num_pages = min_t(u64, CLEAR_PAGES, end - first),
				.dirty_bitmap = log->bits[i] + first / BITS_PER_LONG,
			};

			if (__vm_ioctl(log->vm, KVM_CLEAR_DIRTY_LOG, &clear))
				return -1;
		}
	}
	return 0;
}

/*
 * Third step: copies the pages whose bits were handed out, now that the next write to
 * each is noticed.  Also of use if the second was not done to its end.
 */
static inline void log_copy(struct dirty_log_copy *log)
{
	u64 page, end = min_t(u64, log->end ?: log->npages, log->npages);
	unsigned int i;

	for (page = log->first; page < end; page++) {
		for (i = 0; i < log->nr_slots; i++) {
			if (test_bit(page, log->bits[i])) {
				copy_page(log, page);
				break;
			}
		}
	}
}

static inline void collect_log(struct dirty_log_copy *log)
{
	log_prepare(log);
	TEST_ASSERT(!log_take(log), "%s: errno %d", log_names[log->kind], errno);
	log_copy(log);
}

/*
 * Where nobody writes any more and the log was collected: how many pages differ from
 * their copies.
 */
static inline u64 count_lost(struct dirty_log_copy *log)
{
	u64 page, lost = 0, *words;

	for (page = 0; page < log->npages; page++) {
		words = (u64 *)(log->mem + page * PAGE_SIZE);
		if (!memcmp(words, log->copy[page], sizeof(log->copy[page])))
			continue;
		if (!lost++)
			ksft_print_msg("page 0x%lx: %lx %lx %lx, copied %lx %lx %lx\n", page,
				       words[0], words[1], words[2], log->copy[page][0],
				       log->copy[page][1], log->copy[page][2]);
	}
	return lost;
}

#endif /* SELFTEST_KVM_DIRTY_LOG_COPY_H */
