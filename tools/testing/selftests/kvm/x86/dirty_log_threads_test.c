// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_CLEAR_DIRTY_LOG by several threads at once, and KVM_GET_DIRTY_LOG beside it
 *
 *  - All bits of the log are set, and threads clear a range each.  The sizes of the mappings
 *    and the number of splits must equal those after one thread has cleared the whole log.  No
 *    bit may be left, and the log must then contain exactly the pages that the guest writes.
 *  - A thread that clears a range is stopped while KVM reads its bitmap, half of which is on a page
 *    that userfaultfd withholds.  Meanwhile, another thread asks KVM to clear none of the pages of
 *    the same range, or of the other half of the slot.  The first thread gets what it asked for.
 *  - The guest keeps writing, and threads clear and copy what the log contains: each a range of
 *    its own, or all of them the same pages.  Another thread reads the log, toggles the log of
 *    another memslot, and moves that.  In the end, the copy must equal the memory.
 *
 * Repeat for each kind of log.  If it is KVM_GET_DIRTY_LOG that clears the bits, the threads
 * clear pages at the same time, and each thread copies what it has cleared.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "dirty_log_copy.h"
#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"
#include "withheld_page.h"

#define SLOT		10
#define OTHER_SLOT	11
#define BASE		(8ul * SZ_1G)
#define OTHER_BASE	(9ul * SZ_1G)
#define MOVED_BASE	(10ul * SZ_1G)

#define SIZE		(16ul * SZ_2M)
#define NR_PAGES	(SIZE / PAGE_SIZE)
#define NR_WORDS	(NR_PAGES / BITS_PER_LONG)
#define OTHER_SIZE	((u64)SZ_2M)

#define NR_VCPUS	2
#define NR_THREADS	4
/* Of a range of its own a thread clears so many pages at a time. */
#define CHUNK_PAGES	(SZ_2M / PAGE_SIZE)
/* The guest writes to one page of so many, after all bits were cleared. */
#define STRIDE		3

static enum log_kind kind;
/* All threads clear all of the slot. */
static bool overlap;
static bool stop;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[NR_VCPUS];
static u8 *mem, *other_mem;

/* Held while copying, so that an older copy does not replace a newer one. */
static pthread_mutex_t copy_lock = PTHREAD_MUTEX_INITIALIZER;
static struct dirty_log_copy log;

static struct clearer {
	pthread_t thread;
	unsigned long bits[NR_WORDS];
	u64 first, end;
	u64 rounds, pages;
} clearers[NR_THREADS];

/* Shared with the guest. */
static u64 guest_stop, guest_first, guest_stride;

/* Writes to pages of its own until it is to stop: all of them, again and again. */
static void guest_write(u64 index)
{
	u64 round, page;

	for (round = 1; !READ_ONCE(guest_stop); round++) {
		for (page = index; page < NR_PAGES; page += NR_VCPUS)
			WRITE_ONCE(*(u64 *)(BASE + page * PAGE_SIZE), round << 32 | page);
	}
	GUEST_DONE();
}

/* Writes to some pages once, again and again. */
static void guest_once(u64 index)
{
	u64 page;

	for (;;) {
		for (page = guest_first; page < NR_PAGES; page += guest_stride)
			WRITE_ONCE(*(u64 *)(BASE + page * PAGE_SIZE), page);
		GUEST_SYNC(index);
	}
}

static void set_log(u32 slot, bool on, u64 base, u64 size, u8 *at)
{
	vm_set_user_memory_region(vm, slot, on ? KVM_MEM_LOG_DIRTY_PAGES : 0, base, size, at);
}

static u8 *map_huge(u64 size)
{
	u8 *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);

	__TEST_REQUIRE(at != MAP_FAILED, "Not enough free huge pages");
	memset(at, 0, size);
	return at;
}

static void create_vm(void *code)
{
	unsigned int i;

	vm = __vm_create(VM_SHAPE_DEFAULT, NR_VCPUS, 0);
	choose_log_kind(vm, kind);
	for (i = 0; i < NR_VCPUS; i++) {
		vcpus[i] = vm_vcpu_add(vm, i, code);
		vcpu_args_set(vcpus[i], 1, (u64)i);
	}
	memset(mem, 0, SIZE);
	set_log(SLOT, false, BASE, SIZE, mem);
	set_log(OTHER_SLOT, false, OTHER_BASE, OTHER_SIZE, other_mem);
	virt_map_level(vm, BASE, BASE, SIZE, PG_LEVEL_2M);
	guest_stop = 0;
	sync_global_to_guest(vm, guest_stop);
}

/* Pages from @first on, @stride apart. */
static void run_once(u64 first, u64 stride)
{
	guest_first = first;
	guest_stride = stride;
	sync_global_to_guest(vm, guest_first);
	sync_global_to_guest(vm, guest_stride);
	run_until_ucall(vcpus[0], UCALL_SYNC);
}

static void get_log(unsigned long *bits)
{
	kvm_vm_get_dirty_log(vm, SLOT, bits);
}

/* The bits from @first on. */
static void clear_log(unsigned long *bits, u64 first, u64 pages)
{
	kvm_vm_clear_dirty_log(vm, SLOT, bits + first / BITS_PER_LONG, first, pages);
}

/* Copies the pages of a range whose bits are set; returns how many. */
static u64 copy_pages(unsigned long *bits, u64 first, u64 end)
{
	u64 page, pages = 0;

	pthread_mutex_lock(&copy_lock);
	for (page = first; page < end; page++) {
		if (test_bit(page, bits)) {
			copy_page(&log, page);
			pages++;
		}
	}
	pthread_mutex_unlock(&copy_lock);
	return pages;
}

/* One pass over this thread's range: what the log names, or all where GET takes the bits. */
static void clear_and_copy(struct clearer *self)
{
	u64 step = overlap ? self->end - self->first : CHUNK_PAGES, first;

	if (kind == LOG_GET)
		bitmap_fill(self->bits, NR_PAGES);
	else
		get_log(self->bits);
	for (first = self->first; first < self->end; first += step) {
		clear_log(self->bits, first, step);
		self->pages += copy_pages(self->bits, first, first + step);
	}
	WRITE_ONCE(self->rounds, self->rounds + 1);
}

static void *run_clearer(void *arg)
{
	while (!READ_ONCE(stop))
		clear_and_copy(arg);
	return NULL;
}

static void *run_clearer_once(void *arg)
{
	struct clearer *self = arg;
	u64 first;

	for (first = self->first; first < self->end; first += CHUNK_PAGES)
		clear_log(self->bits, first, CHUNK_PAGES);
	return NULL;
}

static void *run_vcpu(void *arg)
{
	run_until_ucall(arg, UCALL_DONE);
	return NULL;
}

static void share_out(unsigned int threads)
{
	unsigned int i;

	for (i = 0; i < threads; i++) {
		clearers[i].first = overlap ? 0 : NR_PAGES / threads * i;
		clearers[i].end = overlap ? NR_PAGES : NR_PAGES / threads * (i + 1);
		clearers[i].rounds = 0;
		clearers[i].pages = 0;
	}
}

/* What is mapped, and was split, after so many threads have cleared a full log. */
static void clear_full_log(unsigned int threads, struct page_stats *pages, struct mmu_stats *mmu)
{
	static unsigned long bits[NR_WORDS];
	struct mmu_stats before;
	unsigned int i;
	u64 page;

	create_vm(guest_once);
	run_once(0, 1);
	before = get_mmu_stats(vm);
	set_log(SLOT, true, BASE, SIZE, mem);
	run_once(0, 1);

	overlap = false;
	share_out(threads);
	for (i = 0; i < threads; i++) {
		bitmap_fill(clearers[i].bits, NR_PAGES);
		kvm_pthread_create(&clearers[i].thread, NULL, run_clearer_once, &clearers[i]);
	}
	for (i = 0; i < threads; i++)
		kvm_pthread_join(clearers[i].thread, NULL);

	get_log(bits);
	for (page = 0; page < NR_PAGES; page++)
		TEST_ASSERT(!test_bit(page, bits), "%u threads: the bit of page %lu is left",
			    threads, page);

	run_once(1, STRIDE);
	get_log(bits);
	for (page = 0; page < NR_PAGES; page++)
		TEST_ASSERT(test_bit(page, bits) == (page % STRIDE == 1),
			    "%u threads: page %lu %s", threads, page,
			    page % STRIDE == 1 ? "is missing" : "was not written");

	*pages = get_page_stats(vm);
	*mmu = get_mmu_stats(vm);
	mmu->eager_splits -= before.eager_splits;
	mmu->fault_splits -= before.fault_splits;
	kvm_vm_free(vm);
}

static void test_totals(void)
{
	struct page_stats one_pages, pages;
	struct mmu_stats one, many;

	clear_full_log(1, &one_pages, &one);
	clear_full_log(NR_THREADS, &pages, &many);
	/* The host may migrate a page beside the slots: pages of 4KiB are only shown. */
	ksft_test_result(one_pages.pages_2m == pages.pages_2m &&
			 one_pages.pages_1g == pages.pages_1g &&
			 one.eager_splits == many.eager_splits &&
			 one.fault_splits == many.fault_splits,
			 "%s: a range for each thread, mapped %lu/%lu and %lu/%lu, split %lu+%lu and %lu+%lu\n",
			 log_names[kind], one_pages.pages_4k, one_pages.pages_2m, pages.pages_4k,
			 pages.pages_2m, one.eager_splits, one.fault_splits, many.eager_splits,
			 many.fault_splits);
}

/* How long to wait for one who may have to wait for another, in milliseconds. */
#define PATIENCE	300

/* A KVM_CLEAR_DIRTY_LOG of half of the slot. */
struct half {
	unsigned long *bits;
	u64 first;
	bool done;
};

static void *run_clear_half(void *arg)
{
	struct half *half = arg;
	struct kvm_clear_dirty_log request = {
		.slot = SLOT,
		.first_page = half->first,
		.num_pages = NR_PAGES / 2,
		.dirty_bitmap = half->bits,
	};

	vm_ioctl(vm, KVM_CLEAR_DIRTY_LOG, &request);
	WRITE_ONCE(half->done, true);
	return NULL;
}

/* The second thread clears none of the pages from @first on. */
static void test_stopped(u64 first)
{
	static unsigned long none[NR_WORDS / 2], all[PAGE_SIZE / sizeof(long)], bits[NR_WORDS];
	u64 page, left = 0, missing = 0, bytes = sizeof(none);
	struct half slow = {}, fast = { .bits = none, .first = first };
	pthread_t threads[2];
	struct uffdio_copy copy;
	unsigned int i;
	int uffd;
	u8 *at;

	at = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(at != MAP_FAILED, "No memory");
	memset(at, 0xff, PAGE_SIZE);
	memset(all, 0xff, sizeof(all));
	slow.bits = (void *)(at + PAGE_SIZE - bytes / 2);
	uffd = withhold_page(at + PAGE_SIZE);
	if (uffd < 0) {
		ksft_test_result_skip("%s: there is no userfaultfd\n", log_names[kind]);
		munmap(at, 2 * PAGE_SIZE);
		return;
	}

	create_vm(guest_once);
	run_once(0, 1);
	set_log(SLOT, true, BASE, SIZE, mem);
	/* All bits are set. */
	run_once(0, 1);

	kvm_pthread_create(&threads[0], NULL, run_clear_half, &slow);
	/* KVM has read the first half of it, and waits for the second. */
	wait_for_withheld_page(uffd);
	kvm_pthread_create(&threads[1], NULL, run_clear_half, &fast);
	/* It may have to wait: for the same range, and on C always. */
	for (i = 0; i < PATIENCE && !READ_ONCE(fast.done); i++)
		usleep(1000);
	TEST_ASSERT(!READ_ONCE(slow.done), "The first thread was not stopped");

	copy = (struct uffdio_copy) {
		.dst = (u64)at + PAGE_SIZE,
		.src = (u64)all,
		.len = PAGE_SIZE,
	};
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		kvm_pthread_join(threads[i], NULL);
	close(uffd);
	munmap(at, 2 * PAGE_SIZE);

	get_log(bits);
	for (page = 0; page < NR_PAGES; page++) {
		if (page < NR_PAGES / 2)
			left += test_bit(page, bits);
		else
			missing += !test_bit(page, bits);
	}
	ksft_test_result(!left && !missing,
			 "%s: stopped, and another thread clears none of %s: %lu bits left, %lu missing\n",
			 log_names[kind], first ? "the other half" : "the same", left, missing);
	kvm_vm_free(vm);
}

/* What else happens meanwhile. Where GET takes bits, their pages are copied. */
static void disturb(unsigned int round)
{
	static unsigned long bits[NR_WORDS];

	get_log(bits);
	if (kind == LOG_GET)
		copy_pages(bits, 0, NR_PAGES);
	switch (round % 8) {
	case 3:
		set_log(OTHER_SLOT, true, OTHER_BASE, OTHER_SIZE, other_mem);
		set_log(OTHER_SLOT, false, OTHER_BASE, OTHER_SIZE, other_mem);
		break;
	case 7:
		set_log(OTHER_SLOT, false, OTHER_BASE, 0, other_mem);
		set_log(OTHER_SLOT, false, MOVED_BASE, OTHER_SIZE, other_mem);
		set_log(OTHER_SLOT, false, OTHER_BASE, OTHER_SIZE, other_mem);
		break;
	}
	usleep(100);
}

static void test_race(unsigned int seconds)
{
	pthread_t threads[NR_VCPUS];
	u64 lost, rounds = 0, pages = 0;
	unsigned int i, round;
	struct timespec start;

	create_vm(guest_write);
	set_log(SLOT, true, BASE, SIZE, mem);
	log = (struct dirty_log_copy) {
		.vm = vm,
		.kind = kind,
		.mem = mem,
		.npages = NR_PAGES,
		.slot_npages = NR_PAGES,
		.slots = { SLOT },
		.nr_slots = 1,
	};
	copy_begin(&log);
	share_out(NR_THREADS);
	WRITE_ONCE(stop, false);

	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_create(&threads[i], NULL, run_vcpu, vcpus[i]);
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_create(&clearers[i].thread, NULL, run_clearer, &clearers[i]);

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (round = 0; timespec_elapsed(start).tv_sec < seconds; round++)
		disturb(round);
	/* On a slow machine. */
	for (i = 0; i < NR_THREADS; i++) {
		while (!READ_ONCE(clearers[i].rounds))
			usleep(1000);
	}
	/* The next write to each page is noticed, whoever has cleared it last. */
	WRITE_ONCE(stop, true);
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_join(clearers[i].thread, NULL);
	guest_stop = 1;
	sync_global_to_guest(vm, guest_stop);
	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_join(threads[i], NULL);

	collect_log(&log);
	lost = count_lost(&log);
	for (i = 0; i < NR_THREADS; i++) {
		rounds += clearers[i].rounds;
		pages += clearers[i].pages;
	}
	ksft_test_result(!lost,
			 "%s, %s: %lu of %lu pages differ; %lu rounds, %lu pages, %u others\n",
			 log_names[kind], overlap ? "all the same" : "a range each", lost,
			 (u64)NR_PAGES, rounds, pages, round);
	copy_end(&log);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 2;
	int opt, kinds = 0;

	while ((opt = getopt(argc, argv, "t:")) != -1) {
		if (opt != 't') {
			printf("usage: %s [-t seconds]\n", argv[0]);
			exit(KSFT_FAIL);
		}
		seconds = atoi_positive("Seconds", optarg);
	}
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	mem = map_huge(SIZE);
	other_mem = mmap(NULL, OTHER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			 0);
	TEST_ASSERT(other_mem != MAP_FAILED, "No memory");

	for (kind = 0; kind < LOG_RING; kind++)
		kinds += has_log_kind(kind);
	ksft_print_header();
	ksft_set_plan(5 * kinds);
	for (kind = 0; kind < LOG_RING; kind++) {
		if (!has_log_kind(kind))
			continue;
		test_totals();
		test_stopped(0);
		test_stopped(NR_PAGES / 2);
		for (overlap = false;; overlap = true) {
			test_race(seconds);
			if (overlap)
				break;
		}
	}
	ksft_finished();
}
