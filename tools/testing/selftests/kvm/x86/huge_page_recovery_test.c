// SPDX-License-Identifier: GPL-2.0
/*
 * Recovery of huge pages when dirty logging is disabled
 *
 * Dirty logging splits the huge pages of a memslot.  Disabling it must restore the huge
 * mappings immediately and in place, i.e. not by zapping the small mappings and letting
 * vCPUs fault the memory back in.  Toggle dirty logging on one memslot, with the mappings
 * in each of the states that logging can leave behind.  After every toggle, before any vCPU
 * runs again, check that
 *
 *  - pages_4k, pages_2m and pages_1g are what they were before,
 *  - the host still sees in the memory what the guest wrote.
 *
 * Then the guest reads the whole slot.  It must not fault once (a recovered page is mapped,
 * not merely mappable) and must see the same content as the host.
 *
 * Finally, the guest writes the part of the slot that is mapped by huge pages.  If recovered
 * mappings are write-protected, every huge page costs a fault.  That's a lost opportunity
 * but violates no contract, so it is only reported, and fails the test only with -w.
 *
 * Also cover slots that start or end inside a huge page (the incomplete huge pages must stay
 * 4KiB mappings), and slots whose host and guest addresses are misaligned relative to each
 * other, where KVM must never create a mapping as large as the page that backs it.
 *
 * The Rust MMU (CONFIG_KVM_RUST_MMU) counts splits and promotions, ahead of and in faults.
 * The counts must be exact.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "log_mode.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT		1
/* Above everything that libkvm places in memslot 0, 1GiB aligned. */
#define TEST_BASE		(8ul * SZ_1G)

/*
 * What KVM maps wrongly is wrong by whole pages, so sampling a few words of
 * every page loses nothing and keeps 1GiB pages affordable.
 */
#define MAX_WORDS		8
#define WORD_STRIDE		(PAGE_SIZE / MAX_WORDS)

#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)
#define PAGES_PER_1G		(SZ_1G / PAGE_SIZE)

enum guest_op {
	GUEST_NOP,
	GUEST_WRITE,
	GUEST_CHECKSUM,
};

/* Request to and answer from the guest, shared through guest memory. */
static struct guest_request {
	u64 op;
	u64 gfn;
	u64 npages;
	/* Write only every stride-th page of each 2MiB region... */
	u64 stride;
	/* ... and not the first page of any. */
	u64 skip_first;
	u64 generation;
	/* Words of each page to write or read. */
	u64 words;
	u64 checksum;
} request;

/* How the slot lies in the huge pages that back it. */
enum slot_layout {
	/* On huge page boundaries. */
	LAYOUT_ALIGNED,
	/* Starts and ends inside a huge page. */
	LAYOUT_PARTIAL,
	/* The guest's huge page boundaries aren't the host's, so map one less. */
	LAYOUT_OUT_OF_STEP,
	NR_LAYOUTS,
};

static const char * const layout_names[NR_LAYOUTS] = {
	[LAYOUT_ALIGNED]	= "aligned",
	[LAYOUT_PARTIAL]	= "partial",
	[LAYOUT_OUT_OF_STEP]	= "out-of-step",
};

/* The partial layout starts and ends this many pages outside whole pages. */
#define HEAD_PAGES		17
#define TAIL_PAGES		33

/* What happens while dirty logging is enabled. */
static const struct scenario {
	const char *name;
	/* Collect (and so reprotect) the log before the guest writes. */
	bool collect_first;
	bool write;
	bool skip_first;
	bool collect_last;
} scenarios[] = {
	/* Mappings are as enabling left them. */
	{ "nothing happened" },
	{ "collected", .collect_first = true },
	/* All children are writable. */
	{ "all written", .collect_first = true, .write = true },
	/* The first child of each huge page is protected, others are not. */
	{ "all but the first written", .collect_first = true, .write = true,
	  .skip_first = true },
	/* All children were writable, and are protected again. */
	{ "written and collected", .collect_first = true, .write = true,
	  .collect_last = true },
};

struct backing {
	const char *name;
	size_t hugepage_size;
	int mmap_flags;
	/* Default of -n, huge pages in the slot. */
	unsigned int nr_hugepages;
	/* Default of -p, one page in this many is written. */
	unsigned int stride;
	/* Words of each page that hold content to check. */
	unsigned int words;
};

static const struct backing backings[] = {
	{ "hugetlb_2mb", SZ_2M, MAP_HUGETLB | MAP_HUGE_2MB, 8, 1, MAX_WORDS },
	{ "thp", SZ_2M, 0, 8, 1, MAX_WORDS },
	{ "hugetlb_1gb", SZ_1G, MAP_HUGETLB | MAP_HUGE_1GB, 1, 32, 2 },
};

struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	enum log_mode mode;

	/* The slot, and the part of it that 2MiB (or 1GiB) pages can map. */
	u64 gfn;
	u64 npages;
	u64 huge_gfn;
	u64 huge_npages;
	u8 *hva;
	/* The largest page that KVM may map. */
	size_t max_size;

	unsigned long *bitmap;

	/* The generation of content that was last written to each page. */
	u32 *generations;
	u32 generation;
	unsigned int stride;
	unsigned int words;
};

static bool eager_page_split;
static bool require_writable;
static unsigned int nr_toggles = 2;
static unsigned int nr_hugepages_arg;
static unsigned int stride_arg;

static u64 content(u64 gfn, unsigned int word, u64 generation)
{
	return (gfn << 24 ^ (u64)word << 16 ^ generation) * 0x9e3779b97f4a7c15ull;
}

/* Depends on the position, so content that swapped places doesn't go unseen. */
static u64 checksum_add(u64 sum, u64 gfn, unsigned int word, u64 value)
{
	return sum + value * (2 * (gfn * MAX_WORDS + word) + 1);
}

static bool is_written(u64 gfn, u64 stride, bool skip_first)
{
	u64 index = gfn % PAGES_PER_2M;

	if (skip_first) {
		if (!index)
			return false;
		/* With a stride, write the second page in place of the first. */
		index--;
	}
	return index % stride == 0;
}

static void guest_code(void)
{
	struct guest_request *req = &request;
	unsigned int word;
	u64 gfn, sum;
	u64 *ptr;

	for (;;) {
		sum = 0;

		for (gfn = req->gfn; gfn < req->gfn + req->npages; gfn++) {
			if (req->op == GUEST_WRITE &&
			    !is_written(gfn, req->stride, req->skip_first))
				continue;

			for (word = 0; word < req->words; word++) {
				ptr = (u64 *)(gfn * PAGE_SIZE + word * WORD_STRIDE);

				if (req->op == GUEST_WRITE)
					WRITE_ONCE(*ptr, content(gfn, word, req->generation));
				else if (req->op == GUEST_CHECKSUM)
					sum = checksum_add(sum, gfn, word, READ_ONCE(*ptr));
			}
		}

		req->checksum = sum;
		GUEST_SYNC(req->op);
	}
}

static void run_guest(struct test_vm *t, enum guest_op op)
{
	request.op = op;
	sync_global_to_guest(t->vm, request);
	run_until_ucall(t->vcpu, UCALL_SYNC);
	sync_global_from_guest(t->vm, request);
}

static void guest_write(struct test_vm *t, u64 first, u64 npages, bool skip_first)
{
	u64 gfn;

	request = (struct guest_request) {
		.gfn = first,
		.npages = npages,
		.stride = t->stride,
		.skip_first = skip_first,
		.generation = ++t->generation,
		.words = t->words,
	};
	run_guest(t, GUEST_WRITE);

	for (gfn = first; gfn < first + npages; gfn++) {
		if (is_written(gfn, t->stride, skip_first))
			t->generations[gfn - t->gfn] = t->generation;
	}
}

static u64 guest_checksum(struct test_vm *t)
{
	request = (struct guest_request) {
		.gfn = t->gfn,
		.npages = t->npages,
		.words = t->words,
	};
	run_guest(t, GUEST_CHECKSUM);
	return request.checksum;
}

static u64 *host_word(struct test_vm *t, u64 page, unsigned int word)
{
	return (u64 *)(t->hva + page * PAGE_SIZE + word * WORD_STRIDE);
}

static void host_write(struct test_vm *t)
{
	unsigned int word;
	u64 page;

	for (page = 0; page < t->npages; page++) {
		for (word = 0; word < t->words; word++)
			*host_word(t, page, word) = content(t->gfn + page, word, 0);
	}
}

/* Compare the memory with the model, and return the checksum of the model. */
static u64 host_check(struct test_vm *t)
{
	u64 page, gfn, want, sum = 0;
	unsigned int word;

	for (page = 0; page < t->npages; page++) {
		gfn = t->gfn + page;

		for (word = 0; word < t->words; word++) {
			want = content(gfn, word, t->generations[page]);

			TEST_ASSERT(*host_word(t, page, word) == want,
				    "gfn 0x%lx word %u: 0x%lx in memory, 0x%lx written",
				    gfn, word, *host_word(t, page, word), want);
			sum = checksum_add(sum, gfn, word, want);
		}
	}
	return sum;
}

/* The largest mappings for the slot of which none is bigger than @max_size. */
static struct page_stats largest_mappings(struct test_vm *t, size_t max_size)
{
	u64 gfn = t->gfn, end = t->gfn + t->npages;
	struct page_stats stats = {};

	while (gfn < end) {
		if (max_size >= SZ_1G && !(gfn % PAGES_PER_1G) &&
		    gfn + PAGES_PER_1G <= end) {
			stats.pages_1g++;
			gfn += PAGES_PER_1G;
		} else if (max_size >= SZ_2M && !(gfn % PAGES_PER_2M) &&
			   gfn + PAGES_PER_2M <= end) {
			stats.pages_2m++;
			gfn += PAGES_PER_2M;
		} else {
			stats.pages_4k++;
			gfn++;
		}
	}
	return stats;
}

/* Every fault on a guest physical address counts, also if it fixed nothing. */
static u64 nr_faults(struct test_vm *t)
{
	return vcpu_get_stat(t->vcpu, pf_taken);
}

static void assert_mmu_stats(struct test_vm *t, struct mmu_stats before,
			     struct mmu_stats want)
{
	struct mmu_stats now = get_mmu_stats(t->vm);

	if (!has_mmu_stats())
		return;
	TEST_ASSERT_EQ(now.eager_splits - before.eager_splits, want.eager_splits);
	TEST_ASSERT_EQ(now.fault_splits - before.fault_splits, want.fault_splits);
	TEST_ASSERT_EQ(now.promotions - before.promotions, want.promotions);
	TEST_ASSERT_EQ(vm_get_stat(t->vm, mmu_split_no_memory), 0ul);
}

static void set_dirty_logging(struct test_vm *t, bool enable)
{
	vm_set_user_memory_region(t->vm, TEST_SLOT,
				  enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
				  t->gfn * PAGE_SIZE, t->npages * PAGE_SIZE, t->hva);
}

static void collect_dirty_log(struct test_vm *t)
{
	kvm_vm_get_dirty_log(t->vm, TEST_SLOT, t->bitmap);

	if (t->mode != LOG_LEGACY)
		kvm_vm_clear_dirty_log(t->vm, TEST_SLOT, t->bitmap, 0, t->npages);
}

/* Whether all huge pages are split before anybody writes. */
static bool is_split_eagerly(const struct test_vm *t, const struct scenario *s)
{
	return eager_page_split && (t->mode != LOG_INITIALLY_SET || s->collect_first);
}

/* Whether no huge page is left once @scenario has run its course. */
static bool is_everything_split(const struct test_vm *t, const struct scenario *s)
{
	/* A write to a huge page splits it, at the latest in the fault. */
	return s->write || is_split_eagerly(t, s);
}

/* Returns the number of faults that writing to recovered huge pages took. */
static u64 toggle_dirty_logging(struct test_vm *t, const struct scenario *s)
{
	struct page_stats before, during, after;
	struct mmu_stats counted, want = {};
	u64 faults, fixed, sum, splits;
	bool promoted;

	before = get_page_stats(t->vm);
	counted = get_mmu_stats(t->vm);
	/* A 1GiB page is split to 2MiB pages first. */
	splits = before.pages_2m + before.pages_1g * (1 + PAGES_PER_1G / PAGES_PER_2M);

	set_dirty_logging(t, true);
	if (s->collect_first)
		collect_dirty_log(t);
	if (s->write)
		guest_write(t, t->gfn, t->npages, s->skip_first);
	if (s->collect_last)
		collect_dirty_log(t);

	during = before;
	if (is_everything_split(t, s)) {
		during.pages_2m = 0;
		during.pages_1g = 0;
		during.pages_4k += before.pages_2m * PAGES_PER_2M +
				   before.pages_1g * PAGES_PER_1G;
	}
	assert_page_stats(get_page_stats(t->vm), during, "While logging");
	promoted = during.pages_4k != before.pages_4k;
	if (is_split_eagerly(t, s))
		want.eager_splits = splits;
	else if (promoted)
		want.fault_splits = splits;
	assert_mmu_stats(t, counted, want);

	faults = nr_faults(t);
	fixed = vcpu_get_stat(t->vcpu, pf_fixed);
	set_dirty_logging(t, false);

	/* No vCPU has run since: what is there now, the ioctl put there. */
	after = get_page_stats(t->vm);
	assert_page_stats(after, before, "After disabling, before any vCPU ran");
	/* A 1GiB page comes of 2MiB pages that have been promoted before. */
	if (promoted)
		want.promotions = splits;
	assert_mmu_stats(t, counted, want);
	sum = host_check(t);

	TEST_ASSERT_EQ(guest_checksum(t), sum);
	TEST_ASSERT(nr_faults(t) == faults,
		    "Reading the slot after disabling took %lu page faults",
		    nr_faults(t) - faults);
	TEST_ASSERT_EQ(vcpu_get_stat(t->vcpu, pf_fixed), fixed);
	assert_page_stats(get_page_stats(t->vm), before, "After reading");

	if (t->huge_npages)
		guest_write(t, t->huge_gfn, t->huge_npages, false);
	faults = nr_faults(t) - faults;

	/* Small pages may still be protected: that is nobody's promotion. */
	guest_write(t, t->gfn, t->npages, false);
	TEST_ASSERT_EQ(guest_checksum(t), host_check(t));
	assert_page_stats(get_page_stats(t->vm), before, "After writing");

	/* Where nothing was split, nothing was promoted. */
	return promoted ? faults : 0;
}

/* Huge pages that the slot contains as a whole. */
static unsigned int nr_whole(const struct backing *b)
{
	return nr_hugepages_arg ?: b->nr_hugepages;
}

static void pre_fault(struct test_vm *t)
{
	struct kvm_pre_fault_memory range = {
		.gpa = t->gfn * PAGE_SIZE,
		.size = t->npages * PAGE_SIZE,
	};
	int ret;

	do {
		ret = __vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while ((!ret && range.size) || (ret && (errno == EINTR || errno == EAGAIN)));

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, t->vm);
}

/* Host memory for a slot, on a huge page boundary. NULL if there isn't enough. */
static u8 *map_memory(const struct backing *b, size_t size)
{
	void *mem;

	/* Only hugetlb aligns by itself; what is too much is given back on exit. */
	mem = mmap(NULL, size + (b->mmap_flags ? 0 : b->hugepage_size),
		   PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | b->mmap_flags, -1, 0);
	if (mem == MAP_FAILED)
		return NULL;

	mem = align_ptr_up(mem, b->hugepage_size);
	if (!b->mmap_flags)
		kvm_madvise(mem, size, MADV_HUGEPAGE);
	return mem;
}

/* Place the slot in guest address space, and in the memory at @mem. */
static void place_slot(struct test_vm *t, const struct backing *b,
		       enum slot_layout layout, u8 *mem)
{
	u64 whole = nr_whole(b) * b->hugepage_size / PAGE_SIZE;
	size_t hsize = b->hugepage_size;
	u64 offset = 0;

	t->max_size = hsize;
	t->gfn = TEST_BASE / PAGE_SIZE;
	t->npages = whole;
	t->huge_gfn = t->gfn;
	t->huge_npages = whole;

	if (layout != LAYOUT_ALIGNED) {
		offset = hsize / PAGE_SIZE - HEAD_PAGES;
		/* Of a 1GiB page, leave a whole 2MiB page outside as well. */
		if (hsize > SZ_2M)
			offset -= PAGES_PER_2M;

		t->npages = whole + hsize / PAGE_SIZE - offset + TAIL_PAGES;
		t->gfn += offset;
		t->huge_gfn = align_up(t->gfn, PAGES_PER_2M);
		t->huge_npages = align_down(t->gfn + t->npages, PAGES_PER_2M) -
				 t->huge_gfn;
	}
	t->hva = mem + offset * PAGE_SIZE;

	/* Out of step by the next smaller page size, which remains usable. */
	if (layout == LAYOUT_OUT_OF_STEP) {
		t->max_size = hsize > SZ_2M ? SZ_2M : PAGE_SIZE;
		t->hva += t->max_size;
		if (t->max_size < SZ_2M)
			t->huge_npages = 0;
	}
}

/* Returns the reason why the case can't be run here, NULL if it was run. */
static const char *run_case(const struct backing *b, enum slot_layout layout,
			    enum log_mode mode, u8 *mem)
{
	struct page_stats empty, mapped, want;
	struct test_vm t = {
		.mode = mode,
		.stride = stride_arg ?: b->stride,
		.words = b->words,
	};
	unsigned int toggle, i;
	u64 gpa, size, faults;

	place_slot(&t, b, layout, mem);
	t.generations = calloc(t.npages, sizeof(*t.generations));
	t.bitmap = bitmap_zalloc(t.npages);
	TEST_ASSERT(t.generations && t.bitmap, "Out of memory");
	host_write(&t);

	t.vm = vm_create_with_one_vcpu(&t.vcpu, guest_code);
	if (log_modes[mode].caps)
		vm_enable_cap(t.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      log_modes[mode].caps);
	set_dirty_logging(&t, false);

	/* Huge guest mappings: few guest page tables, which aren't of interest. */
	gpa = align_down(t.gfn * PAGE_SIZE, SZ_2M);
	size = align_up((t.gfn + t.npages) * PAGE_SIZE, SZ_2M) - gpa;
	virt_map_level(t.vm, gpa, gpa, size, PG_LEVEL_2M);

	/* Nothing but the pre-fault may add mappings between these two. */
	request = (struct guest_request) {};
	run_guest(&t, GUEST_NOP);
	empty = get_page_stats(t.vm);
	pre_fault(&t);
	mapped = get_page_stats(t.vm);

	mapped.pages_4k -= empty.pages_4k;
	want = largest_mappings(&t, t.max_size);
	if (!b->mmap_flags && mapped.pages_2m < want.pages_2m) {
		/* Huge pages are the kernel's to give or not to give here. */
		kvm_vm_free(t.vm);
		free(t.generations);
		free(t.bitmap);
		return "no transparent huge pages to be had";
	}
	assert_page_stats(mapped, want, "After pre-faulting");

	/* Let the guest touch all that it uses outside of the slot. */
	guest_write(&t, t.gfn, t.npages, false);
	TEST_ASSERT_EQ(guest_checksum(&t), host_check(&t));

	for (i = 0; i < ARRAY_SIZE(scenarios); i++) {
		faults = 0;
		for (toggle = 0; toggle < nr_toggles; toggle++)
			faults += toggle_dirty_logging(&t, &scenarios[i]);

		if (!t.huge_npages)
			continue;

		if (faults)
			ksft_print_msg("%s %s %s, %s: writable-after-promotion: no (%lu faults)\n",
				       b->name, layout_names[layout],
				       log_modes[mode].name, scenarios[i].name, faults);
		TEST_ASSERT(!faults || !require_writable,
			    "Recovered huge pages aren't writable");
	}

	kvm_vm_free(t.vm);
	free(t.generations);
	free(t.bitmap);
	return NULL;
}

static void run_layout(const struct backing *b, enum slot_layout layout, u64 caps)
{
	/* Two more huge pages hold the head and the tail. */
	size_t size = (nr_whole(b) + (layout == LAYOUT_ALIGNED ? 0 : 2)) * b->hugepage_size;
	const char *reason;
	enum log_mode mode;
	u8 *mem;

	mem = map_memory(b, size);

	for (mode = 0; mode < NR_LOG_MODES; mode++) {
		if (!mem)
			reason = "not enough free huge pages";
		else if ((caps & log_modes[mode].caps) != log_modes[mode].caps)
			reason = "dirty log mode not supported";
		else
			reason = run_case(b, layout, mode, mem);

		if (reason)
			ksft_test_result_skip("%s %s %s: %s\n", b->name,
					      layout_names[layout],
					      log_modes[mode].name, reason);
		else
			ksft_test_result_pass("%s %s %s\n", b->name,
					      layout_names[layout],
					      log_modes[mode].name);
	}

	if (mem)
		kvm_munmap(mem, size);
}

/*
 * Memory that becomes private while it is logged (-P).  Its mappings go, and leave tables
 * without any; recovery has nothing to ask the host there, which has no answer.
 */
static void run_private(void)
{
	const struct backing *b = &backings[0];
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct test_vm t = { .mode = LOG_LEGACY };
	struct page_stats empty, want;
	u8 *mem;

	mem = map_memory(b, nr_whole(b) * b->hugepage_size);
	__TEST_REQUIRE(mem, "Not enough free huge pages");
	memset(mem, 1, nr_whole(b) * b->hugepage_size);
	place_slot(&t, b, LAYOUT_ALIGNED, mem);

	t.vm = vm_create_shape_with_one_vcpu(shape, &t.vcpu, guest_code);
	set_dirty_logging(&t, false);
	empty = get_page_stats(t.vm);
	pre_fault(&t);
	want = empty;
	want.pages_2m += nr_whole(b);
	assert_page_stats(get_page_stats(t.vm), want, "After pre-faulting");

	set_dirty_logging(&t, true);
	vm_mem_set_private(t.vm, t.gfn * PAGE_SIZE, SZ_2M);
	set_dirty_logging(&t, false);
	want.pages_2m--;
	assert_page_stats(get_page_stats(t.vm), want, "With private memory");

	vm_mem_set_shared(t.vm, t.gfn * PAGE_SIZE, SZ_2M);
	pre_fault(&t);
	want.pages_2m++;
	assert_page_stats(get_page_stats(t.vm), want, "Shared again");

	kvm_vm_free(t.vm);
	kvm_munmap(mem, nr_whole(b) * b->hugepage_size);
	ksft_test_result_pass("private memory\n");
}

static bool is_selected(const char *only, const char *name)
{
	return !only || !strcmp(only, name);
}

static void help(const char *name)
{
	unsigned int i;

	printf("usage: %s [-h] [-P] [-w] [-i toggles] [-l layout] [-n pages]\n"
	       "          [-p stride] [-s backing]\n"
	       " -P: only that memory may become private while it is logged\n"
	       " -w: fail if writing to a recovered huge page takes a fault\n"
	       " -i: toggles of dirty logging per scenario (default: %u)\n"
	       " -l: test only this layout: aligned, partial or out-of-step\n"
	       " -n: whole huge pages in the slot (default: by backing)\n"
	       " -p: write one page in this many, at most %lu (default: by backing)\n"
	       " -s: test only this backing, one of:", name, nr_toggles,
	       (unsigned long)PAGES_PER_2M / 2);
	for (i = 0; i < ARRAY_SIZE(backings); i++)
		printf(" %s", backings[i].name);
	puts(" (default: all)");
}

int main(int argc, char *argv[])
{
	unsigned int i, layout, nr_cases = 0;
	const char *only = NULL, *only_layout = NULL;
	bool private = false;
	u64 caps;
	int opt;

	while ((opt = getopt(argc, argv, "hPwi:l:n:p:s:")) != -1) {
		switch (opt) {
		case 'P':
			private = true;
			break;
		case 'w':
			require_writable = true;
			break;
		case 'i':
			nr_toggles = atoi_positive("Toggles", optarg);
			break;
		case 'l':
			only_layout = optarg;
			break;
		case 'n':
			nr_hugepages_arg = atoi_positive("Huge pages", optarg);
			break;
		case 'p':
			stride_arg = atoi_positive("Stride", optarg);
			TEST_ASSERT(stride_arg <= PAGES_PER_2M / 2,
				    "Every 2MiB must be written to at least once");
			break;
		case 's':
			only = optarg;
			break;
		case 'h':
		default:
			help(argv[0]);
			exit(opt == 'h' ? 0 : KSFT_FAIL);
		}
	}

	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		for (layout = 0; layout < NR_LAYOUTS; layout++) {
			if (is_selected(only, backings[i].name) &&
			    is_selected(only_layout, layout_names[layout]))
				nr_cases += NR_LOG_MODES;
		}
	}
	TEST_ASSERT(nr_cases, "Unknown backing '%s' or layout '%s', see -h",
		    only ?: "any", only_layout ?: "any");

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	caps = kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	eager_page_split = get_kvm_param_bool("eager_page_split");

	ksft_print_header();
	if (private) {
		TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
		ksft_set_plan(1);
		run_private();
		ksft_finished();
	}
	ksft_print_msg("eager_page_split=%c\n", eager_page_split ? 'Y' : 'N');
	ksft_set_plan(nr_cases);

	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		for (layout = 0; layout < NR_LAYOUTS; layout++) {
			if (is_selected(only, backings[i].name) &&
			    is_selected(only_layout, layout_names[layout]))
				run_layout(&backings[i], layout, caps);
		}
	}

	/* That everything was skipped must not look like a pass. */
	if (ksft_get_xskip_cnt() == nr_cases)
		exit(KSFT_SKIP);

	ksft_finished();
}
