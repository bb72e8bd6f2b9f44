// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_PRE_FAULT_MEMORY of a range does the same as page by page
 *
 * KVM may map many pages of a range at once.  Userspace must see the same as if it asked for
 * each page on its own: which pages are mapped, how far the range has advanced when something
 * is in the way, and the errno in that case.  Ask one VM for the range, and another VM with the
 * same memory for each page.  In the way are holes between memslots, memory that the host maps
 * read-only, not at all or not yet, and the ends of page tables and memslots.  Afterwards the
 * guest reads and writes all pages that exist, and the dirty logs of both VMs are compared.
 *
 * With -a the pages come by faults instead: the guest of one VM faults with
 * kvm.fault_around_pages, that of another without.  Both must see the same memory, and the log of
 * the first must have what was written, and nothing that the log of the second does not have.
 * Only the Rust MMU has the parameter.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_PAGES	1100ul
#define TEST_SIZE	(TEST_PAGES * PAGE_SIZE)
#define NR_SLOTS	3

/* What is in a page before the guest writes to it, where the host has written it. */
#define CONTENT(page)	(0x5a5a0000ul + (page))

struct slot {
	u64 first, pages;
	u32 flags;
};

/* What is done to some pages of the host before they are asked for. */
enum change { NOTHING, DONTNEED, READ_ONLY, NO_ACCESS, UNMAP };

static const struct layout {
	const char *name;
	struct slot slots[NR_SLOTS];
	int mmap_flags;
	struct {
		enum change change;
		u64 first, pages, stride;
	} changes[2];
} layouts[] = {
	{ "all pages there", { { 0, TEST_PAGES } } },
	{ "shared memory", { { 0, TEST_PAGES } }, MAP_SHARED },
	{ "a logged memslot", { { 0, TEST_PAGES, KVM_MEM_LOG_DIRTY_PAGES } } },
	{ "a read-only memslot", { { 0, TEST_PAGES, KVM_MEM_READONLY } } },
	{ "a hole between memslots", { { 0, 700 }, { 701, TEST_PAGES - 701 } } },
	{ "memslots that share a page table, one logged, one read-only",
	  { { 0, 600 }, { 600, 100, KVM_MEM_LOG_DIRTY_PAGES },
	    { 700, TEST_PAGES - 700, KVM_MEM_READONLY } } },
	{ "a memslot that begins and ends within a page table", { { 3, TEST_PAGES - 10 } } },
	{ "pages that are not there yet", { { 0, TEST_PAGES } }, 0, { { DONTNEED, 5, 1, 97 } } },
	{ "nothing there yet", { { 0, TEST_PAGES } }, 0,
	  { { DONTNEED, 0, TEST_PAGES, TEST_PAGES } } },
	{ "shared pages that are not there yet", { { 0, TEST_PAGES } }, MAP_SHARED,
	  { { DONTNEED, 5, 3, 131 } } },
	{ "pages that the host maps read-only", { { 0, TEST_PAGES } }, 0,
	  { { READ_ONLY, 63, 2, 129 } } },
	{ "read-only pages in a logged memslot", { { 0, TEST_PAGES, KVM_MEM_LOG_DIRTY_PAGES } }, 0,
	  { { READ_ONLY, 64, 1, 64 }, { DONTNEED, 90, 2, 200 } } },
	{ "pages without access", { { 0, TEST_PAGES } }, 0, { { NO_ACCESS, 127, 1, 400 } } },
	{ "pages that are not mapped", { { 0, TEST_PAGES } }, 0, { { UNMAP, 128, 1, 512 } } },
	{ "the last page of each table not mapped", { { 0, TEST_PAGES } }, 0,
	  { { UNMAP, 511, 1, 512 } } },
	{ "the first page of each table not mapped", { { 0, TEST_PAGES } }, 0,
	  { { UNMAP, 0, 1, 512 } } },
};

/*
 * Ranges that are asked for, in pages: all, within a table, and over its end. Most layouts are
 * only asked for the first two.
 */
#define FEW_RANGES	2

static const struct {
	u64 first, pages;
} ranges[] = {
	{ 0, TEST_PAGES }, { 511, 514 }, { 1, 1 }, { 10, 64 }, { 10, 65 }, { 0, 128 }, { 0, 129 },
	{ 0, 130 }, { 500, 12 }, { 500, 13 }, { 511, 1 }, { 511, 2 },
};

struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	char *mem;
};

/* The pages that the guest reads and writes, and what it has read. */
static u64 wanted[TEST_PAGES / 64 + 1], writable[TEST_PAGES / 64 + 1];
static u64 seen[TEST_PAGES];

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = 0; page < TEST_PAGES; page++) {
			u64 *at = (u64 *)(TEST_BASE + page * PAGE_SIZE);

			/* Written in either case, so that all of the array is mapped then. */
			if (READ_ONCE(wanted[page / 64]) >> (page % 64) & 1)
				WRITE_ONCE(seen[page], READ_ONCE(*at));
			else
				WRITE_ONCE(seen[page], 0);
			if (READ_ONCE(writable[page / 64]) >> (page % 64) & 1)
				WRITE_ONCE(*at, page);
		}
		GUEST_SYNC(0);
	}
}

static struct test_vm make_vm(const struct layout *layout)
{
	struct test_vm t;
	unsigned int i;
	u64 page;

	t.mem = kvm_mmap(TEST_SIZE, PROT_READ | PROT_WRITE,
			 MAP_ANONYMOUS | (layout->mmap_flags ?: MAP_PRIVATE), -1);
	kvm_madvise(t.mem, TEST_SIZE, MADV_NOHUGEPAGE);
	for (page = 0; page < TEST_PAGES; page++)
		*(u64 *)(t.mem + page * PAGE_SIZE) = CONTENT(page);

	t.vm = vm_create_with_one_vcpu(&t.vcpu, guest_code);
	for (i = 0; i < NR_SLOTS; i++) {
		const struct slot *slot = &layout->slots[i];

		if (slot->pages)
			vm_set_user_memory_region(t.vm, TEST_SLOT + i, slot->flags,
						  TEST_BASE + slot->first * PAGE_SIZE,
						  slot->pages * PAGE_SIZE,
						  t.mem + slot->first * PAGE_SIZE);
	}
	virt_map_level(t.vm, TEST_BASE, TEST_BASE, align_up(TEST_SIZE, SZ_2M), PG_LEVEL_2M);

	for (i = 0; i < ARRAY_SIZE(layout->changes); i++) {
		if (layout->changes[i].change == NOTHING)
			continue;
		for (page = layout->changes[i].first; page < TEST_PAGES;
		     page += layout->changes[i].stride) {
			u64 pages = min_t(u64, layout->changes[i].pages, TEST_PAGES - page);
			size_t size = pages * PAGE_SIZE;
			char *at = t.mem + page * PAGE_SIZE;
			int ret = 0;

			switch (layout->changes[i].change) {
			case DONTNEED:
				ret = madvise(at, size, layout->mmap_flags == MAP_SHARED ?
					      MADV_REMOVE : MADV_DONTNEED);
				break;
			case READ_ONLY:
				ret = mprotect(at, size, PROT_READ);
				break;
			case NO_ACCESS:
				ret = mprotect(at, size, PROT_NONE);
				break;
			case UNMAP:
				ret = munmap(at, size);
				break;
			default:
				break;
			}
			TEST_ASSERT(!ret, "The memory cannot be laid out: errno %d", errno);
		}
	}
	return t;
}

static void free_vm(struct test_vm *t)
{
	kvm_vm_free(t->vm);
	kvm_munmap(t->mem, TEST_SIZE);
}

/* Asks once. Returns 0 or the errno, and how many pages are done. */
static int pre_fault(struct test_vm *t, u64 first, u64 pages, u64 *done)
{
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_BASE + first * PAGE_SIZE,
		.size = pages * PAGE_SIZE,
	};
	int ret, err;

	do {
		ret = __vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range);
		err = ret ? errno : 0;
	} while (err == EINTR && range.size == pages * PAGE_SIZE);

	*done = pages - range.size / PAGE_SIZE;
	TEST_ASSERT(range.gpa == TEST_BASE + (first + *done) * PAGE_SIZE,
		    "%lu pages are done, and the address is %#llx", *done, range.gpa);
	TEST_ASSERT(!err == !!*done, "%lu of %lu pages are done, errno %d", *done, pages, err);
	return err;
}

/*
 * Asks one VM for the range, and after each error for what is behind the page in the way; and
 * the other for each page. errs has what the second has said of each page.
 */
static void compare_ranges(const struct layout *layout, u64 first, u64 pages)
{
	struct test_vm whole = make_vm(layout), single = make_vm(layout);
	int errs[TEST_PAGES];
	u64 page, done, end = first + pages;
	int err;

	for (page = first; page < end; page++)
		errs[page] = pre_fault(&single, page, 1, &done);

	for (page = first; page < end;) {
		u64 expected = 0;

		while (page + expected < end && !errs[page + expected])
			expected++;
		err = pre_fault(&whole, page, end - page, &done);
		/* A signal may come at any time. */
		while (!err && done < expected && page + done < end) {
			page += done;
			expected -= done;
			err = pre_fault(&whole, page, end - page, &done);
		}
		TEST_ASSERT(done == expected && err == (expected ? 0 : errs[page]),
			    "%s, %lu pages from %lu on: %lu pages from %lu on are done, errno %d; by single pages %lu, errno %d",
			    layout->name, pages, first, done, page, err, expected,
			    expected ? 0 : errs[page]);
		page += expected ?: 1;
	}
	assert_page_stats(get_page_stats(whole.vm), get_page_stats(single.vm), layout->name);

	free_vm(&whole);
	free_vm(&single);
}

static bool is_in(const struct layout *layout, enum change change, u64 page)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(layout->changes); i++)
		if (layout->changes[i].change == change && page >= layout->changes[i].first &&
		    (page - layout->changes[i].first) % layout->changes[i].stride <
		    layout->changes[i].pages)
			return true;
	return false;
}

static const struct slot *slot_of(const struct layout *layout, u64 page)
{
	unsigned int i;

	for (i = 0; i < NR_SLOTS; i++)
		if (page - layout->slots[i].first < layout->slots[i].pages)
			return &layout->slots[i];
	return NULL;
}

static void run_guest(struct test_vm *t)
{
	sync_global_to_guest(t->vm, wanted);
	sync_global_to_guest(t->vm, writable);
	run_until_ucall(t->vcpu, UCALL_SYNC);
	sync_global_from_guest(t->vm, seen);
}

/* The guest reads what is there, and writes where it may; returns its log in bitmap. */
static void use_memory(const struct layout *layout, struct test_vm *t, unsigned long *bitmap)
{
	unsigned long *part = bitmap_zalloc(TEST_PAGES);
	unsigned int i;
	u64 page;

	memset(wanted, 0, sizeof(wanted));
	memset(writable, 0, sizeof(writable));
	for (page = 0; page < TEST_PAGES; page++) {
		const struct slot *slot = slot_of(layout, page);

		if (!slot || is_in(layout, UNMAP, page) || is_in(layout, NO_ACCESS, page))
			continue;
		wanted[page / 64] |= 1ul << (page % 64);
		/* One in three, so that the log has something to miss. */
		if (page % 3 == 0 && !(slot->flags & KVM_MEM_READONLY) &&
		    !is_in(layout, READ_ONLY, page))
			writable[page / 64] |= 1ul << (page % 64);
	}
	run_guest(t);

	for (page = 0; page < TEST_PAGES; page++) {
		u64 content = is_in(layout, DONTNEED, page) ? 0 : CONTENT(page);

		if (wanted[page / 64] >> (page % 64) & 1)
			TEST_ASSERT(seen[page] == content,
				    "%s: the guest reads %#lx from page %lu, not %#lx",
				    layout->name, seen[page], page, content);
		if (writable[page / 64] >> (page % 64) & 1)
			TEST_ASSERT(*(u64 *)(t->mem + page * PAGE_SIZE) == page,
				    "%s: what the guest writes to page %lu is lost",
				    layout->name, page);
	}

	bitmap_zero(bitmap, TEST_PAGES);
	for (i = 0; i < NR_SLOTS; i++) {
		const struct slot *slot = &layout->slots[i];

		if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES))
			continue;
		bitmap_zero(part, TEST_PAGES);
		kvm_vm_get_dirty_log(t->vm, TEST_SLOT + i, part);
		for (page = 0; page < slot->pages; page++) {
			bool logged = test_bit(page, part);
			bool written = writable[(slot->first + page) / 64] >>
				       ((slot->first + page) % 64) & 1;

			TEST_ASSERT(logged || !written,
				    "%s: page %lu is written, and not in the log",
				    layout->name, slot->first + page);
			if (logged)
				set_bit(slot->first + page, bitmap);
		}
	}
	free(part);
}

static void compare_use(const struct layout *layout)
{
	struct test_vm whole = make_vm(layout), single = make_vm(layout);
	unsigned long *log = bitmap_zalloc(TEST_PAGES), *other = bitmap_zalloc(TEST_PAGES);
	u64 page, done;

	for (page = 0; page < TEST_PAGES; page++)
		pre_fault(&single, page, 1, &done);
	for (page = 0; page < TEST_PAGES; page += done ?: 1)
		pre_fault(&whole, page, TEST_PAGES - page, &done);

	use_memory(layout, &whole, log);
	use_memory(layout, &single, other);
	TEST_ASSERT(!memcmp(log, other, BITS_TO_LONGS(TEST_PAGES) * sizeof(*log)),
		    "%s: the logs differ", layout->name);

	free(log);
	free(other);
	free_vm(&whole);
	free_vm(&single);
}

#define FAULT_AROUND	"/sys/module/kvm/parameters/fault_around_pages"

static char fault_around_was[16];

static bool has_fault_around(void)
{
	int fd = open(FAULT_AROUND, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, fault_around_was, sizeof(fault_around_was) - 1);
	TEST_ASSERT(len > 0, "%s cannot be read", FAULT_AROUND);
	close(fd);
	return true;
}

static void write_fault_around(const char *value)
{
	TEST_ASSERT(write_file(FAULT_AROUND, value), "%s cannot be set to %s", FAULT_AROUND, value);
}

static void set_fault_around(unsigned int pages)
{
	char value[16];

	snprintf(value, sizeof(value), "%u", pages);
	write_fault_around(value);
}

static void restore_fault_around(void)
{
	write_fault_around(fault_around_was);
}

/* The parameter is the host's: a test that is ended leaves it as it was. */
static void restore_and_die(int sig)
{
	int fd = open(FAULT_AROUND, O_WRONLY);

	if (fd < 0 || write(fd, fault_around_was, strlen(fault_around_was)) < 0)
		_exit(KSFT_FAIL);
	raise(sig);
}

static void restore_at_end(void)
{
	struct sigaction act = { .sa_handler = restore_and_die, .sa_flags = SA_RESETHAND };
	const int signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM };
	unsigned int i;

	atexit(restore_fault_around);
	for (i = 0; i < ARRAY_SIZE(signals); i++)
		TEST_ASSERT(!sigaction(signals[i], &act, NULL), "Signal %d cannot be handled",
			    signals[i]);
}

/*
 * Pages of which the guest reads one in the middle of each window of so many. The last page of
 * all is mapped before: the pages around a fault end there.
 */
static void check_windows(unsigned int pages, unsigned int window)
{
	struct test_vm t = make_vm(&layouts[0]);
	const u64 last = TEST_PAGES - 1;
	u64 page, before, after, reads = 0, expected = 0;

	memset(wanted, 0, sizeof(wanted));
	memset(writable, 0, sizeof(writable));
	wanted[last / 64] |= 1ul << (last % 64);
	set_fault_around(0);
	/* What the guest uses besides is mapped now. */
	run_guest(&t);
	before = vm_get_stat(t.vm, pages_4k);
	/* The last page itself does not fault again. */
	for (page = window / 2; page < last; page += window) {
		wanted[page / 64] |= 1ul << (page % 64);
		expected += min_t(u64, window, last - (page - window / 2));
		reads++;
	}
	set_fault_around(pages);
	run_guest(&t);
	after = vm_get_stat(t.vm, pages_4k);
	TEST_ASSERT(after - before == expected,
		    "With %u pages around each of %lu faults, %lu are mapped, not %lu", pages,
		    reads, after - before, expected);
	for (page = window / 2; page < TEST_PAGES; page += window)
		TEST_ASSERT_EQ(seen[page], CONTENT(page));
	free_vm(&t);
}

static void compare_faults(const struct layout *layout)
{
	struct test_vm around, single;
	unsigned long *log = bitmap_zalloc(TEST_PAGES), *other = bitmap_zalloc(TEST_PAGES);
	u64 page;

	set_fault_around(16);
	around = make_vm(layout);
	use_memory(layout, &around, log);
	set_fault_around(0);
	single = make_vm(layout);
	use_memory(layout, &single, other);
	for (page = 0; page < TEST_PAGES; page++)
		TEST_ASSERT(!test_bit(page, log) || test_bit(page, other),
			    "%s: page %lu is in the log only with the pages around faults",
			    layout->name, page);

	free(log);
	free(other);
	free_vm(&around);
	free_vm(&single);
}

/* What is asked for, and what that means. */
static const unsigned int windows[][2] = {
	{ 0, 1 }, { 1, 1 }, { 2, 2 }, { 16, 16 }, { 100, 64 }, { 128, 128 }, { 1000, 128 },
};

static void test_fault_around(void)
{
	unsigned int i;

	ksft_set_plan(ARRAY_SIZE(windows) + ARRAY_SIZE(layouts));
	restore_at_end();
	for (i = 0; i < ARRAY_SIZE(windows); i++) {
		check_windows(windows[i][0], windows[i][1]);
		ksft_test_result_pass("a page in each %u, and %u around it\n", windows[i][1],
				      windows[i][0]);
	}
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		compare_faults(&layouts[i]);
		ksft_test_result_pass("around faults: %s\n", layouts[i].name);
	}
	ksft_finished();
}

int main(int argc, char **argv)
{
	bool around = argc == 2 && !strcmp(argv[1], "-a");
	unsigned int i, j;

	TEST_ASSERT(argc == 1 + around, "usage: %s [-a]", argv[0]);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));
	if (around)
		__TEST_REQUIRE(has_fault_around(), "kvm.fault_around_pages, of the Rust MMU");

	ksft_print_header();
	if (around)
		test_fault_around();
	ksft_set_plan(ARRAY_SIZE(layouts));

	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		for (j = 0; j < (i ? FEW_RANGES : ARRAY_SIZE(ranges)); j++)
			compare_ranges(&layouts[i], ranges[j].first, ranges[j].pages);
		compare_use(&layouts[i]);
		ksft_test_result_pass("%s\n", layouts[i].name);
	}
	ksft_finished();
}
