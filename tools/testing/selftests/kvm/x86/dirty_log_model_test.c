// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty log against a model
 *
 * Two adjacent memslots share a page table.  In random order, the guest writes to some of
 * their pages; the log of each slot is read, read again, cleared in part, cleared where
 * nothing was read, and logging is stopped and restarted; the host unmaps memory between a
 * write and the next read of the log; a slot is moved.  Every log that is read must equal
 * the model: exactly the pages written since they were last cleared or since logging
 * started.  Some memory is written before logging starts.
 *
 * This must hold for every way of logging: write protection, PML and D bits
 * (kvm.dirty_log=dirty_bits).  With the latter, also check that D bits were in use.
 *
 * With -g, use one memslot that is backed by a 1GiB page.  The guest writes to its first 8MiB.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_BASE	(8ul * SZ_1G)
#define MOVED_BASE	(9ul * SZ_1G)
#define TEST_SIZE	(8ul * SZ_1M)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)
#define NR_SLOTS	2
#define MAX_PAGES	(SZ_1G / PAGE_SIZE)
#define BITS		(8 * sizeof(long))

/* What the guest shall write to: pages from @base on. */
static struct guest_request {
	u64 base;
	unsigned long pages[TEST_PAGES / BITS];
} request;

/* A memslot as it should be. */
struct model {
	u64 first;
	u64 pages;
	u64 base;
	bool logged;
	DECLARE_BITMAP(dirty, MAX_PAGES);
};

struct test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	void *mem;
	u64 size;
	u64 unit;
	unsigned int nr_slots;
	u64 caps;
	struct model slots[NR_SLOTS];
	unsigned int steps[8];
};

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = 0; page < TEST_PAGES; page++) {
			if (READ_ONCE(request.pages[page / BITS]) >> (page % BITS) & 1)
				WRITE_ONCE(*(u64 *)(READ_ONCE(request.base) + page * PAGE_SIZE),
					   page);
		}
		GUEST_SYNC(0);
	}
}

static u64 below(u64 n)
{
	return random() % n;
}

/* A few pages, or many, of a range of random length, of the first @pages, in a bitmap of @max. */
static void choose_pages(unsigned long *bitmap, u64 pages, u64 max)
{
	u64 first = below(pages), end = first + 1 + below(pages - first);
	u64 stride = 1 + below(below(2) ? 3 : 200);

	bitmap_zero(bitmap, max);
	for (; first < end; first += stride)
		__set_bit(first, bitmap);
}

static void set_slot(struct test *t, unsigned int n)
{
	struct model *slot = &t->slots[n];

	vm_set_user_memory_region(t->vm, n + 1, slot->logged ? KVM_MEM_LOG_DIRTY_PAGES : 0,
				  slot->base + slot->first * PAGE_SIZE,
				  slot->pages * PAGE_SIZE,
				  t->mem + slot->first * PAGE_SIZE);
}

static void set_logging(struct test *t, unsigned int n, bool logged)
{
	struct model *slot = &t->slots[n];

	slot->logged = logged;
	set_slot(t, n);
	if (t->caps & KVM_DIRTY_LOG_INITIALLY_SET)
		bitmap_fill(slot->dirty, slot->pages);
	else
		bitmap_zero(slot->dirty, MAX_PAGES);
}

static void write_pages(struct test *t, unsigned int n)
{
	struct model *slot = &t->slots[n];
	DECLARE_BITMAP(pages, TEST_PAGES);
	unsigned int i;

	choose_pages(pages, min_t(u64, slot->pages, TEST_PAGES), TEST_PAGES);
	request.base = slot->base + slot->first * PAGE_SIZE;
	for (i = 0; i < TEST_PAGES / BITS; i++) {
		request.pages[i] = pages[i];
		slot->dirty[i] |= pages[i];
	}
	sync_global_to_guest(t->vm, request);
	run_until_ucall(t->vcpu, UCALL_SYNC);
}

static void get_log(struct test *t, unsigned int n)
{
	struct model *slot = &t->slots[n];
	static DECLARE_BITMAP(log, MAX_PAGES);
	u64 page;

	bitmap_zero(log, MAX_PAGES);
	kvm_vm_get_dirty_log(t->vm, n + 1, log);
	for (page = 0; page < slot->pages; page++)
		TEST_ASSERT(test_bit(page, log) == test_bit(page, slot->dirty),
			    "Slot %u, page %lu of %lu: it is %slogged, and should %sbe", n, page,
			    slot->pages, test_bit(page, log) ? "" : "not ",
			    test_bit(page, slot->dirty) ? "" : "not ");
	if (!t->caps)
		bitmap_zero(slot->dirty, MAX_PAGES);
}

/* Clears bits whether they are set or not, and whether anybody has read them or not. */
static void clear_log(struct test *t, unsigned int n)
{
	struct model *slot = &t->slots[n];
	static DECLARE_BITMAP(pages, MAX_PAGES);
	u64 first, end;

	choose_pages(pages, slot->pages, MAX_PAGES);
	if (!below(3))
		bitmap_fill(pages, slot->pages);
	first = below(slot->pages) / BITS * BITS;
	end = first + (1 + below((slot->pages - first) / BITS)) * BITS;
	kvm_vm_clear_dirty_log(t->vm, n + 1, pages + first / BITS, first, end - first);

	for (; first < end; first++) {
		if (test_bit(first, pages))
			__clear_bit(first, slot->dirty);
	}
}

/* As a balloon does, or by moving the slot: the guest's page tables lose their leaves. */
static void zap(struct test *t)
{
	u64 units = t->size / t->unit;
	u64 first = below(units), count = 1 + below(units - first);

	kvm_madvise(t->mem + first * t->unit, count * t->unit, MADV_DONTNEED);
}

static void move(struct test *t)
{
	struct model *slot = &t->slots[0];

	slot->base = slot->base == TEST_BASE ? MOVED_BASE : TEST_BASE;
	set_slot(t, 0);
}

static void step(struct test *t)
{
	unsigned int n = below(t->nr_slots);
	struct model *slot = &t->slots[n];
	unsigned int what = below(8);

	t->steps[what]++;
	switch (what) {
	case 0 ... 2:
		write_pages(t, n);
		break;
	case 3 ... 4:
		if (slot->logged)
			get_log(t, n);
		break;
	case 5:
		if (slot->logged && t->caps)
			clear_log(t, n);
		break;
	case 6:
		zap(t);
		break;
	case 7:
		if (below(4))
			set_logging(t, n, !slot->logged);
		else
			move(t);
		break;
	}
}

static void run_case(const char *name, u64 unit, u64 caps, unsigned int seed)
{
	int mmap_flags = unit == PAGE_SIZE ? 0 :
			 MAP_HUGETLB | (unit == SZ_2M ? MAP_HUGE_2MB : MAP_HUGE_1GB);
	struct test *t = calloc(1, sizeof(*t));
	bool dirty_bits = logs_by_dirty_bits();
	u64 carried = 0, tables = 0;
	unsigned int i;

	srandom(seed);
	t->unit = unit;
	t->size = max_t(u64, unit, TEST_SIZE);
	t->nr_slots = unit == SZ_1G ? 1 : NR_SLOTS;
	t->caps = caps;
	/* 5 MiB and 3 MiB: one page table maps the end of one and the beginning of the other. */
	t->slots[0] = (struct model) { .pages = 5 * SZ_1M / PAGE_SIZE, .base = TEST_BASE };
	t->slots[1] = (struct model) { .first = t->slots[0].pages, .base = TEST_BASE,
				       .pages = TEST_PAGES - t->slots[0].pages };
	if (t->nr_slots == 1)
		t->slots[0].pages = t->size / PAGE_SIZE;

	t->mem = mmap(NULL, t->size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | mmap_flags, -1, 0);
	__TEST_REQUIRE(t->mem != MAP_FAILED, "Not enough free huge pages");
	if (unit == PAGE_SIZE)
		kvm_madvise(t->mem, TEST_SIZE, MADV_NOHUGEPAGE);

	t->vm = vm_create_with_one_vcpu(&t->vcpu, guest_code);
	if (caps)
		vm_enable_cap(t->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, caps);
	virt_map_level(t->vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	virt_map_level(t->vm, MOVED_BASE, MOVED_BASE, TEST_SIZE, PG_LEVEL_2M);
	for (i = 0; i < t->nr_slots; i++) {
		set_slot(t, i);
		write_pages(t, i);
	}

	/* A page of 1 GiB takes time to split. */
	for (i = 0; i < (unit == SZ_1G ? 100 : 400); i++)
		step(t);
	for (i = 0; i < t->nr_slots; i++) {
		if (t->slots[i].logged)
			get_log(t, i);
	}

	if (dirty_bits) {
		tables = vm_get_stat(t->vm, mmu_dirty_tables);
		carried = vm_get_stat(t->vm, mmu_dirty_carried);
	}
	ksft_test_result(!dirty_bits || (tables && carried),
			 "%s: the log is exact in %u readings (%lu tables looked at, %lu D bits carried)\n",
			 name, t->steps[3] + t->steps[4], tables, carried);
	kvm_vm_free(t->vm);
	kvm_munmap(t->mem, t->size);
	free(t);
}

int main(int argc, char *argv[])
{
	static const struct {
		const char *name;
		u64 caps;
	} cases[] = {
		{ "legacy", 0 },
		{ "manual", KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE },
		{ "initially set",
		  KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET },
	};
	static const struct {
		const char *name;
		u64 size;
	} units[] = {
		{ "4KiB", PAGE_SIZE },
		{ "2MiB", SZ_2M },
		{ "1GiB", SZ_1G },
	};
	unsigned int i, n = 0, end = 2, seed = 16;
	char name[64];
	int opt;

	while ((opt = getopt(argc, argv, "gs:")) != -1) {
		switch (opt) {
		case 'g':
			n = 2;
			end = 3;
			break;
		case 's':
			seed = atoi(optarg);
			break;
		default:
			TEST_FAIL("Usage: %s [-g] [-s seed]", argv[0]);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));

	ksft_print_header();
	ksft_set_plan((end - n) * ARRAY_SIZE(cases));
	ksft_print_msg("Seed %u\n", seed);
	for (; n < end; n++) {
		for (i = 0; i < ARRAY_SIZE(cases); i++) {
			snprintf(name, sizeof(name), "%s, %s", units[n].name, cases[i].name);
			run_case(name, units[n].size, cases[i].caps, seed++);
		}
	}
	ksft_finished();
}
