// SPDX-License-Identifier: GPL-2.0
/*
 * Splitting huge pages ahead of dirty logging (KVM_SPLIT_HUGE_PAGES)
 *
 * A guest uses a memslot that is backed by huge pages.  Userspace splits them, keeps them
 * small, and recovers them.  After each step, check that
 *
 *  - pages_4k, pages_2m and pages_1g, and the numbers of splits and of recovered pages, are
 *    exact,
 *  - the guest finds in every page what the host wrote, and the host what the guest wrote.
 *
 * Do so with each kind of argument, good and bad; for a part of the range at a time; while the
 * host unmaps memory; across dirty logging; across slots that are deleted and moved; with
 * several threads at once on the same range, while the guest runs; with processes that are
 * killed; and in a memory cgroup that is at its limit.
 *
 * With -g, the slot is a single 1GiB page.  With -w, check instead that no more than so many
 * page tables wait to be freed when kworkers are late.  If KVM doesn't have the ioctl, it must
 * say so.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <asm/kvm_split.h>
#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "memcg_limit.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "ucall_common.h"

#include "../../../../kvm/split_ahead/split_ahead.c"

#define SLOT			10
#define OTHER_SLOT		11
#define SMM_SLOT		(0x10000 | SLOT)
#define BASE			(8ul * SZ_1G)
/* Where it is moved to; above it, so that there is a hole. */
#define MOVED_BASE		(10ul * SZ_1G)

#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)
#define PAGES_PER_1G		(SZ_1G / PAGE_SIZE)
#define NR_THREADS		4

/* Slots that all map the same page of 1GiB, and where they are. */
#define NR_ALIASES		4
#define ALIAS_SLOT		20
#define ALIAS_BASE		(16ul * SZ_1G)
/* KVM_RS_MOST_UNUSED */
#define MOST_UNUSED		32768
/* Which CPUs kworkers may use that are bound to none. */
#define UNBOUND_CPUS		"/sys/devices/virtual/workqueue/cpumask"
#define HOG_SECONDS		8

static u64 size = 8ul * SZ_2M;
static size_t backing = SZ_2M;
/* The guest looks at one page in so many. */
static u64 stride = 1;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem;
/* What the guest maps beside the slot, in each run. */
static struct page_stats rest;
static u64 round_nr;

/* Shared with the guest. */
static u64 guest_size, guest_stride, guest_round;

static u64 host_word(u64 page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull;
}

static void guest_code(void)
{
	u64 page, *word;

	for (;;) {
		for (page = 0; page < guest_size / PAGE_SIZE; page += guest_stride) {
			word = (u64 *)(BASE + page * PAGE_SIZE);
			GUEST_ASSERT_EQ(READ_ONCE(word[0]), (page + 1) * 0x9e3779b97f4a7c15ull);
			WRITE_ONCE(word[1], guest_round + page);
		}
		GUEST_SYNC(guest_round);
	}
}

/* The guest uses all pages. */
static void run_guest(void)
{
	u64 page, *word;

	guest_round = ++round_nr << 32;
	sync_global_to_guest(vm, guest_round);
	run_until_ucall(vcpu, UCALL_SYNC);
	for (page = 0; page < size / PAGE_SIZE; page += stride) {
		word = (u64 *)(mem + page * PAGE_SIZE);
		TEST_ASSERT(word[0] == host_word(page) && word[1] == guest_round + page,
			    "Page %lu has %lx and %lx, should have %lx and %lx", page, word[0],
			    word[1], host_word(page), guest_round + page);
	}
}

/* Maps the slot as a fault would. */
static void map_once(void)
{
	struct kvm_pre_fault_memory range = { .gpa = BASE, .size = size };
	int ret;

	do {
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while ((!ret && range.size) || (ret && errno == EINTR));
	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vm);
}

static void map_all(void)
{
	map_once();
	/* A fault replaces no tables of tables: the first ones make pages of 2MiB. */
	if (vm_get_stat(vm, pages_2m) >= PAGES_PER_1G / PAGES_PER_2M)
		map_once();
}

/* Has the host take mappings away, and nothing else. */
static void unmap(void *at, size_t bytes)
{
	TEST_ASSERT(!mprotect(at, bytes, PROT_READ), "mprotect failed");
	TEST_ASSERT(!mprotect(at, bytes, PROT_READ | PROT_WRITE), "mprotect failed");
}

static void unmap_all(void)
{
	unmap(mem, size);
}

static void set_slot(u32 flags, u64 base, u64 bytes)
{
	vm_set_user_memory_region(vm, SLOT, flags, base, bytes, mem);
}

static int split(u64 gpa, u64 bytes, u64 page_size, u64 flags)
{
	struct kvm_split_huge_pages request = {
		.gpa = gpa, .size = bytes, .page_size = page_size, .flags = flags,
	};
	int ret;

	do {
		ret = __vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
	} while ((!ret && request.size) || (ret && (errno == EINTR || errno == EAGAIN)));
	if (!ret)
		TEST_ASSERT(request.gpa == gpa + bytes, "The address is 0x%llx, should be 0x%lx",
			    request.gpa, gpa + bytes);
	return ret;
}

static void split_all(u64 page_size, u64 flags)
{
	int ret = split(BASE, size, page_size, flags);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SPLIT_HUGE_PAGES, ret, vm);
}

static void recover_all(void)
{
	split_all(0, KVM_SPLIT_FLAG_RECOVER);
}

/* So many bytes of the slot are mapped by pages of 4KiB, and of 2MiB; and the rest huge. */
static void assert_mapped(u64 small, u64 huge, const char *when)
{
	struct page_stats want = rest, got;

	want.pages_4k += small / PAGE_SIZE;
	want.pages_2m += huge / SZ_2M;
	if (backing == SZ_1G)
		want.pages_1g += (size - small - huge) / SZ_1G;
	else
		want.pages_2m += (size - small - huge) / SZ_2M;

	/*
	 * The host may migrate a page that the guest uses beside the slot, at any time. It is
	 * mapped again when the guest runs; what is counted wrongly stays so.
	 */
	got = get_page_stats(vm);
	if (got.pages_4k < want.pages_4k && got.pages_4k + rest.pages_4k >= want.pages_4k) {
		run_guest();
		got = get_page_stats(vm);
	}
	assert_page_stats(got, want, when);
}

static void assert_unmapped(const char *when)
{
	struct page_stats got = get_page_stats(vm);

	TEST_ASSERT(got.pages_4k <= rest.pages_4k && got.pages_2m == rest.pages_2m &&
		    got.pages_1g == rest.pages_1g, "%s: 4k/2m/1g mappings are %lu/%lu/%lu", when,
		    got.pages_4k, got.pages_2m, got.pages_1g);
}

static void assert_counted(struct mmu_stats before, u64 splits, u64 promotions, const char *when)
{
	struct mmu_stats now = get_mmu_stats(vm);

	TEST_ASSERT(now.eager_splits - before.eager_splits == splits &&
		    now.promotions - before.promotions == promotions &&
		    now.fault_splits == before.fault_splits,
		    "%s: %lu splits, %lu in faults, %lu recovered; should be %lu, 0, %lu", when,
		    now.eager_splits - before.eager_splits, now.fault_splits - before.fault_splits,
		    now.promotions - before.promotions, splits, promotions);
}

/* Tables that it takes to map everything small: one for each 2MiB, and one for each 1GiB page. */
static u64 all_tables(void)
{
	return size / SZ_2M + (backing == SZ_1G ? size / SZ_1G : 0);
}

static void test_levels(void)
{
	struct mmu_stats before = get_mmu_stats(vm);

	split_all(SZ_2M, 0);
	assert_mapped(0, size, "Split to 2MiB");
	split_all(PAGE_SIZE, 0);
	assert_mapped(size, 0, "Split to 4KiB");
	assert_counted(before, all_tables(), 0, "Split to 4KiB");
	split_all(PAGE_SIZE, 0);
	split_all(SZ_2M, 0);
	assert_mapped(size, 0, "Split again");
	assert_counted(before, all_tables(), 0, "Split again");
	run_guest();

	recover_all();
	assert_mapped(0, 0, "Recovered");
	assert_counted(before, all_tables(), all_tables(), "Recovered");
	recover_all();
	assert_counted(before, all_tables(), all_tables(), "Recovered again");
	run_guest();
	assert_mapped(0, 0, "Used again");
	ksft_test_result_pass("levels\n");
}

static void test_keep(void)
{
	u64 part = size / 4;

	/* Without that, the next fault maps what the host allows. */
	split_all(PAGE_SIZE, 0);
	unmap_all();
	map_all();
	assert_mapped(0, 0, "Split, unmapped and mapped");

	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	assert_mapped(size, 0, "Kept at 4KiB");
	unmap_all();
	assert_unmapped("Unmapped");
	map_all();
	assert_mapped(size, 0, "Kept at 4KiB, unmapped and mapped");
	run_guest();

	/* A part is let go. The 1GiB page has to wait for all of it. */
	TEST_ASSERT(!split(BASE + part, part, 0, KVM_SPLIT_FLAG_RECOVER), "errno %d", errno);
	assert_mapped(size - part, part, "A quarter recovered");
	unmap_all();
	map_all();
	assert_mapped(size - part, part, "A quarter recovered, unmapped and mapped");
	run_guest();

	recover_all();
	assert_mapped(0, 0, "All recovered");
	unmap_all();
	map_all();
	assert_mapped(0, 0, "All recovered, unmapped and mapped");

	split_all(SZ_2M, KVM_SPLIT_FLAG_KEEP);
	unmap_all();
	map_all();
	assert_mapped(0, size, "Kept at 2MiB, unmapped and mapped");

	/* The rest of the 1GiB page is kept. */
	TEST_ASSERT(!split(BASE + part, part, 0, KVM_SPLIT_FLAG_RECOVER), "errno %d", errno);
	assert_mapped(0, size, "A quarter recovered from 2MiB");
	unmap_all();
	map_all();
	assert_mapped(0, size, "A quarter recovered from 2MiB, unmapped and mapped");

	/* What is kept at both sizes is kept at the smaller one. */
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	TEST_ASSERT(!split(BASE, 3 * part, 0, KVM_SPLIT_FLAG_RECOVER), "errno %d", errno);
	assert_mapped(part, size - part, "Three quarters recovered");
	recover_all();
	assert_mapped(0, 0, "Recovered from 2MiB");

	/* Nothing is mapped when it is asked for. */
	unmap_all();
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	map_all();
	assert_mapped(size, 0, "Kept before it was mapped");
	recover_all();
	run_guest();
	assert_mapped(0, 0, "Recovered, as it was mapped small");
	ksft_test_result_pass("keep\n");
}

/* Splits or recovers with a budget; each call does exactly so much. */
static void in_parts(u64 from, u64 budget, u64 page_size, u64 flags)
{
	struct kvm_split_huge_pages request = {
		.gpa = from, .size = BASE + size - from, .page_size = page_size,
		.flags = flags, .budget = budget,
	};
	u64 want;
	int ret;

	while (request.size) {
		want = align_up(request.gpa + max_t(u64, budget, PAGE_SIZE), SZ_2M);
		if (!budget || want > BASE + size)
			want = BASE + size;
		ret = __vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
		TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SPLIT_HUGE_PAGES, ret, vm);
		TEST_ASSERT(request.gpa == want && request.gpa + request.size == BASE + size,
			    "Budget 0x%lx: 0x%llx bytes from 0x%llx are left, should be from 0x%lx",
			    budget, request.size, request.gpa, want);
		if (flags)
			continue;
		assert_mapped(align_down(request.gpa - BASE, SZ_2M),
			      backing == SZ_1G ? BASE + size - request.gpa : 0, "Split in part");
	}
}

static void test_budget(void)
{
	const u64 budgets[] = { PAGE_SIZE, SZ_2M - PAGE_SIZE, SZ_2M, SZ_2M + PAGE_SIZE, 3 * SZ_2M,
				size - PAGE_SIZE, size, size + SZ_2M, 1ull << 62, 0 };
	struct mmu_stats before;
	unsigned int i;

	/* In small parts the gigabyte takes long. */
	for (i = backing == SZ_1G ? 7 : 0; i < ARRAY_SIZE(budgets); i++) {
		before = get_mmu_stats(vm);
		in_parts(BASE, budgets[i], PAGE_SIZE, 0);
		assert_counted(before, all_tables(), 0, "Split in parts");
		in_parts(BASE + (i % 2 ? PAGE_SIZE : 0), budgets[i], 0, KVM_SPLIT_FLAG_RECOVER);
		assert_mapped(0, 0, "Recovered in parts");
		assert_counted(before, all_tables(), all_tables(), "Recovered in parts");
	}
	run_guest();
	ksft_test_result_pass("budget\n");
}

static void test_slots(void)
{
	u64 half = size / 2;
	u8 *low;

	if (backing == SZ_1G) {
		ksft_test_result_pass("slots: with pages of 2MiB only\n");
		return;
	}

	/* What was kept is gone with the slot. */
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	set_slot(0, BASE, 0);
	assert_unmapped("Deleted");
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	set_slot(0, BASE, size);
	map_all();
	assert_mapped(0, 0, "Deleted and made again");

	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	set_slot(0, MOVED_BASE, size);
	set_slot(0, BASE, size);
	map_all();
	assert_mapped(0, 0, "Moved and moved back");

	/* Two slots and holes, in one call. */
	set_slot(0, BASE, 0);
	set_slot(0, BASE, half);
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, BASE + half, half, mem + half);
	map_all();
	TEST_ASSERT(!split(BASE - SZ_1G, 4ul * SZ_1G, PAGE_SIZE, KVM_SPLIT_FLAG_KEEP), "errno %d",
		    errno);
	assert_mapped(size, 0, "Two slots and holes");
	run_guest();
	TEST_ASSERT(!split(BASE - SZ_1G, 4ul * SZ_1G, 0, KVM_SPLIT_FLAG_RECOVER), "errno %d",
		    errno);
	assert_mapped(0, 0, "Two slots and holes recovered");
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, BASE + half, 0, NULL);
	set_slot(0, BASE, 0);

	/* A slot that begins and ends in the middle of huge pages. */
	low = mem + PAGE_SIZE;
	vm_set_user_memory_region(vm, SLOT, 0, BASE + PAGE_SIZE, size - 2 * PAGE_SIZE, low);
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	recover_all();
	vm_set_user_memory_region(vm, SLOT, 0, BASE + PAGE_SIZE, 0, low);

	/* SMM's slots are others. */
	set_slot(0, BASE, size);
	if (kvm_has_cap(KVM_CAP_X86_SMM)) {
		struct kvm_split_huge_pages request = {
			.gpa = BASE, .size = size, .page_size = PAGE_SIZE,
			.flags = KVM_SPLIT_FLAG_KEEP, .address_space = 1,
		};

		vm_set_user_memory_region(vm, SMM_SLOT, 0, BASE, size, mem);
		vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
		TEST_ASSERT(!request.size, "0x%llx bytes of SMM's slot are left", request.size);
		map_all();
		assert_mapped(0, 0, "SMM's slot is kept");
		vm_set_user_memory_region(vm, SMM_SLOT, 0, BASE, 0, mem);
	}
	map_all();
	run_guest();
	ksft_test_result_pass("slots\n");
}

static void test_log(void)
{
	struct mmu_stats before = get_mmu_stats(vm);
	unsigned long *bitmap = bitmap_zalloc(size / PAGE_SIZE);
	struct kvm_split_huge_pages request = {
		.gpa = BASE - SZ_2M, .size = SZ_2M + size, .flags = KVM_SPLIT_FLAG_RECOVER,
	};

	/* The log finds small pages, and leaves them. */
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES, BASE, size);
	assert_counted(before, all_tables(), 0, "Logged");
	run_guest();
	kvm_vm_get_dirty_log(vm, SLOT, bitmap);
	TEST_ASSERT(split(BASE, size, 0, KVM_SPLIT_FLAG_RECOVER) && errno == EBUSY,
		    "Recovering a logged slot: errno %d", errno);
	/* What comes before an error counts, also a hole. */
	vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
	TEST_ASSERT(request.gpa == BASE && request.size == size,
		    "0x%llx bytes are left, should be those of the slot", request.size);
	/* What is split does no harm. */
	split_all(PAGE_SIZE, 0);
	set_slot(0, BASE, size);
	assert_mapped(size, 0, "Kept, and logged once");
	assert_counted(before, all_tables(), 0, "Kept, and logged once");
	recover_all();
	assert_mapped(0, 0, "Recovered after the log");

	/* If they need not stay, the end of the log recovers them. */
	split_all(PAGE_SIZE, 0);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES, BASE, size);
	set_slot(0, BASE, size);
	assert_mapped(0, 0, "Logged once");
	run_guest();
	free(bitmap);
	ksft_test_result_pass("log\n");
}

static void recover_guest_memfd(u32 type, u64 flags)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	struct kvm_pre_fault_memory range = { .gpa = BASE, .size = PAGE_SIZE };
	struct kvm_split_huge_pages request = {
		.gpa = BASE, .size = SZ_2M, .page_size = PAGE_SIZE, .flags = KVM_SPLIT_FLAG_KEEP,
	};
	struct page_stats before;
	struct kvm_vcpu *cpu;
	struct kvm_vm *gmem;
	void *space, *at;
	int fd;

	gmem = vm_create_shape_with_one_vcpu(shape, &cpu, guest_code);
	fd = vm_create_guest_memfd(gmem, SZ_2M, flags);
	space = mmap(NULL, 2 * SZ_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(space != MAP_FAILED, "No memory");
	at = align_ptr_up(space, SZ_2M);
	if (flags)
		at = mmap(at, SZ_2M, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	TEST_ASSERT(at != MAP_FAILED, "guest_memfd cannot be mapped");
	vm_set_user_memory_region2(gmem, SLOT, KVM_MEM_GUEST_MEMFD, BASE, SZ_2M, at, fd, 0);
	if (!flags)
		vm_mem_set_private(gmem, BASE, SZ_2M);

	vcpu_ioctl(cpu, KVM_PRE_FAULT_MEMORY, &range);
	before = get_page_stats(gmem);
	TEST_ASSERT(before.pages_4k == 1, "%lu pages are mapped, should be 1", before.pages_4k);
	vm_ioctl(gmem, KVM_SPLIT_HUGE_PAGES, &request);
	request = (struct kvm_split_huge_pages) {
		.gpa = BASE, .size = SZ_2M, .flags = KVM_SPLIT_FLAG_RECOVER,
	};
	vm_ioctl(gmem, KVM_SPLIT_HUGE_PAGES, &request);
	assert_page_stats(get_page_stats(gmem), before, "guest_memfd recovered");

	kvm_vm_free(gmem);
	close(fd);
	kvm_munmap(space, 2 * SZ_2M);
}

/* Has no huge pages. KVM warns if guest_memfd is asked for their size other than in a fault. */
static void test_guest_memfd(void)
{
	u64 shared = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	unsigned int done = 0;

	if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & shared) == shared) {
		recover_guest_memfd(KVM_X86_DEFAULT_VM, shared);
		done++;
	}
	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)) {
		recover_guest_memfd(KVM_X86_SW_PROTECTED_VM, 0);
		done++;
	}
	ksft_test_result_pass("guest_memfd: %u kinds of VMs\n", done);
}

static void assert_chunk(int want)
{
	int chunk = vm_check_cap(vm, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE);

	TEST_ASSERT(chunk == want, "The chunk is 0x%x, should be 0x%x", chunk, want);
}

static void test_chunk(void)
{
	static const u64 bad[] = { 1, PAGE_SIZE, SZ_2M - 1, SZ_2M + PAGE_SIZE, 65 * SZ_2M, ~0ull };
	struct mmu_stats before = get_mmu_stats(vm);
	struct kvm_enable_cap more = {
		.cap = KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, .args = { SZ_2M, 1 },
	};
	bool eager = get_kvm_param_bool("eager_page_split");
	unsigned int i;

	assert_chunk(eager ? 64 * SZ_2M : 0);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		TEST_ASSERT(__vm_enable_cap(vm, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, bad[i]) &&
			    errno == EINVAL, "A chunk of 0x%lx: errno %d", bad[i], errno);
		assert_chunk(eager ? 64 * SZ_2M : 0);
	}

	TEST_ASSERT(__vm_ioctl(vm, KVM_ENABLE_CAP, &more) && errno == EINVAL, "errno %d", errno);

	vm_enable_cap(vm, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, 0);
	assert_chunk(0);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES, BASE, size);
	assert_mapped(0, 0, "Logged without eager splitting");
	set_slot(0, BASE, size);
	assert_counted(before, 0, 0, "Logged without eager splitting");

	vm_enable_cap(vm, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, SZ_2M);
	assert_chunk(SZ_2M);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES, BASE, size);
	assert_mapped(size, 0, "Logged, a table at a time");
	set_slot(0, BASE, size);
	assert_mapped(0, 0, "Not logged any more");
	assert_counted(before, all_tables(), all_tables(), "Logged, a table at a time");

	vm_enable_cap(vm, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, 64 * SZ_2M);
	run_guest();
	ksft_test_result_pass("chunk\n");
}

static void test_errors(void)
{
	const struct kvm_split_huge_pages good = {
		.gpa = BASE, .size = size, .page_size = PAGE_SIZE,
	};
	const struct {
		const char *what;
		struct kvm_split_huge_pages request;
	} bad[] = {
#define BAD(field, value) { #field " = " #value, .request = good, .request.field = value }
		BAD(gpa, BASE + 1),
		BAD(size, 0),
		BAD(size, PAGE_SIZE + 1),
		BAD(size, -BASE),
		BAD(size, -PAGE_SIZE),
		BAD(page_size, 0),
		BAD(page_size, PAGE_SIZE + 1),
		BAD(page_size, SZ_1G),
		BAD(flags, KVM_SPLIT_FLAG_RECOVER),
		BAD(flags, 4),
		BAD(flags, 1ull << 63),
		BAD(address_space, 2),
		BAD(address_space, ~0u),
		BAD(padding, 1),
		BAD(reserved[0], 1),
		BAD(reserved[1], 1),
	};
	struct kvm_split_huge_pages request;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		request = bad[i].request;
		TEST_ASSERT(__vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request) && errno == EINVAL,
			    "%s: errno %d, should be EINVAL", bad[i].what, errno);
		TEST_ASSERT(!memcmp(&request, &bad[i].request, sizeof(request)),
			    "%s: the request has changed", bad[i].what);
	}
	request = good;
	request.page_size = 0;
	request.flags = KVM_SPLIT_FLAG_RECOVER | KVM_SPLIT_FLAG_KEEP;
	TEST_ASSERT(__vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request) && errno == EINVAL,
		    "To keep and to recover: errno %d, should be EINVAL", errno);
	TEST_ASSERT(ioctl(vm->fd, KVM_SPLIT_HUGE_PAGES, NULL) && errno == EFAULT,
		    "NULL: errno %d, should be EFAULT", errno);
	assert_mapped(0, 0, "After errors");
	ksft_test_result_pass("errors\n");
}

static bool stop;

static void *split_until_stopped(void *unused)
{
	while (!READ_ONCE(stop)) {
		split_all(PAGE_SIZE, 0);
		recover_all();
	}
	return NULL;
}

static pthread_barrier_t barrier;

static void *split_once(void *unused)
{
	pthread_barrier_wait(&barrier);
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	recover_all();
	return NULL;
}

static void test_threads(void)
{
	pthread_t threads[NR_THREADS];
	struct mmu_stats before;
	unsigned int i, n;

	/* All at the same range: each page is split, and recovered, once. */
	pthread_barrier_init(&barrier, NULL, NR_THREADS + 1);
	for (n = 0; n < (backing == SZ_1G ? 2 : 8); n++) {
		before = get_mmu_stats(vm);
		for (i = 0; i < NR_THREADS; i++)
			kvm_pthread_create(&threads[i], NULL, split_once, NULL);
		pthread_barrier_wait(&barrier);
		run_guest();
		pthread_barrier_wait(&barrier);
		assert_mapped(size, 0, "Split by several threads");
		assert_counted(before, all_tables(), 0, "Split by several threads");
		pthread_barrier_wait(&barrier);
		run_guest();
		for (i = 0; i < NR_THREADS; i++)
			kvm_pthread_join(threads[i], NULL);
		assert_mapped(0, 0, "Recovered by several threads");
		assert_counted(before, all_tables(), all_tables(), "Recovered by several threads");
	}
	pthread_barrier_destroy(&barrier);

	/* Against each other, the guest, the host and the log. */
	for (i = 0; i < NR_THREADS / 2; i++)
		kvm_pthread_create(&threads[i], NULL, split_until_stopped, NULL);
	for (n = 0; n < (backing == SZ_1G ? 4 : 16); n++) {
		run_guest();
		unmap_all();
		run_guest();
	}
	WRITE_ONCE(stop, true);
	for (i = 0; i < NR_THREADS / 2; i++)
		kvm_pthread_join(threads[i], NULL);
	split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
	run_guest();
	assert_mapped(size, 0, "Split in the end");
	recover_all();
	assert_mapped(0, 0, "Recovered in the end");
	ksft_test_result_pass("threads\n");
}

/* What tools/kvm offers to a VMM. */
static void test_client(void)
{
	struct split_ahead job = {
		.vm_fd = vm->fd, .gpa = BASE, .size = size, .page_size = PAGE_SIZE,
		.nr_threads = 3,
	};
	struct mmu_stats before = get_mmu_stats(vm);

	TEST_ASSERT(!split_ahead(&job) && job.done == size, "0x%llx bytes are done", job.done);
	assert_mapped(size, 0, "Split by the client");
	job.page_size = 0;
	job.nr_threads = size / SZ_2M + 1;
	job.done = 0;
	TEST_ASSERT(!split_ahead(&job) && job.done == size, "0x%llx bytes are done", job.done);
	assert_mapped(0, 0, "Recovered by the client");
	assert_counted(before, all_tables(), all_tables(), "Recovered by the client");

	job.stop = true;
	job.done = 0;
	job.page_size = PAGE_SIZE;
	TEST_ASSERT(!split_ahead(&job) && !job.done, "0x%llx bytes are done", job.done);
	assert_mapped(0, 0, "The client was stopped");
	job.stop = false;
	job.page_size = 1;
	TEST_ASSERT(split_ahead(&job) == EINVAL, "The client has not failed");
	ksft_test_result_pass("client\n");
}

static void on_alarm(int unused)
{
}

static void test_signals(void)
{
	const struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = {};
	struct kvm_split_huge_pages request, was;
	unsigned int n, interrupted = 0;
	int ret;

	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &often, NULL);
	for (n = 0; n < (backing == SZ_1G ? 4 : 200); n++) {
		request = (struct kvm_split_huge_pages) {
			.gpa = BASE, .size = size, .budget = size / 8,
			.page_size = n % 2 ? 0 : PAGE_SIZE,
			.flags = n % 2 ? KVM_SPLIT_FLAG_RECOVER : KVM_SPLIT_FLAG_KEEP,
		};
		while (request.size) {
			was = request;
			ret = __vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
			if (!ret) {
				TEST_ASSERT(request.size < was.size, "Nothing is done");
				continue;
			}
			TEST_ASSERT(errno == EINTR && !memcmp(&request, &was, sizeof(was)),
				    "errno %d", errno);
			interrupted++;
		}
	}
	setitimer(ITIMER_REAL, &never, NULL);
	recover_all();
	assert_mapped(0, 0, "Interrupted");
	run_guest();
	ksft_test_result_pass("signals: %u calls were interrupted\n", interrupted);
}

static int split_and_recover(void *unused)
{
	for (;;) {
		split(BASE, size, PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
		split(BASE, size, 0, KVM_SPLIT_FLAG_RECOVER);
	}
	return 0;
}

static void test_killed(void)
{
	static char stack[SZ_64K] __aligned(16);
	struct mmu_stats before;
	unsigned int n;
	int pid, status;

	for (n = backing == SZ_1G ? 11 : 0; n < 14; n++) {
		pid = clone(split_and_recover, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
		TEST_ASSERT(pid > 0, __KVM_SYSCALL_ERROR("clone()", pid));
		usleep(1 << n);
		kill(pid, SIGKILL);
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status),
			    "It has not been killed");
		split_all(PAGE_SIZE, KVM_SPLIT_FLAG_KEEP);
		assert_mapped(size, 0, "Split after another was killed");
		before = get_mmu_stats(vm);
		recover_all();
		assert_mapped(0, 0, "Recovered after another was killed");
		assert_counted(before, 0, all_tables(), "Recovered after another was killed");
	}
	run_guest();
	ksft_test_result_pass("killed\n");
}

/*
 * At the limit of the memory cgroup a call fails, or does less: the OOM killer is not
 * asked.  What is split stays, and the rest is split when there is memory.
 */
static void test_memcg(void)
{
	struct kvm_split_huge_pages request = {
		.gpa = BASE, .size = size, .page_size = PAGE_SIZE, .budget = SZ_2M,
	};
	struct memcg memcg = memcg_enter("split_ahead_test");
	struct mmu_stats before = get_mmu_stats(vm);
	u64 ooms, splits;
	int ret, err;

	if (memcg.max_fd < 0) {
		ksft_test_result_skip("memcg: no memory cgroups\n");
		return;
	}
	/* For some of them. What KVM has in its slabs is charged already, or a page. */
	memcg_limit(&memcg, all_tables() / 2 * PAGE_SIZE);
	/* To set the limit asked the OOM killer, too. */
	ooms = memcg_ooms(&memcg);
	do {
		ret = __vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
		err = errno;
	} while (!ret && request.size);
	memcg_unlimit(&memcg);

	TEST_ASSERT(ret && err == ENOMEM, "It splits all, or errno is %d", err);
	TEST_ASSERT(memcg_ooms(&memcg) == ooms, "The OOM killer was asked");
	splits = get_mmu_stats(vm).eager_splits - before.eager_splits;
	TEST_ASSERT(splits && splits <= all_tables() / 2, "%lu pages are split", splits);
	if (backing == SZ_2M)
		TEST_ASSERT(splits == (request.gpa - BASE) / SZ_2M, "%lu are split, not %llu",
			    splits, (request.gpa - BASE) / SZ_2M);
	run_guest();

	split_all(PAGE_SIZE, 0);
	assert_mapped(size, 0, "Split when there was memory");
	assert_counted(before, all_tables(), 0, "Split when there was memory");
	recover_all();
	run_guest();
	memcg_leave(&memcg);
	ksft_test_result_pass("memcg: %lu of %lu tables were in its limit\n", splits,
			      all_tables());
}

static char unbound_cpus[1024];

static bool write_unbound_cpus(const char *mask)
{
	FILE *f = fopen(UNBOUND_CPUS, "we");
	bool done = f && fputs(mask, f) >= 0;

	return f && !fclose(f) && done;
}

static void restore_unbound_cpus(void)
{
	if (!write_unbound_cpus(unbound_cpus))
		fprintf(stderr, "Cannot restore " UNBOUND_CPUS "\n");
}

static void run_on(unsigned int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	__TEST_REQUIRE(!sched_setaffinity(0, sizeof(cpus), &cpus), "CPU %u cannot be used", cpu);
}

static void *hog_kworkers_cpu(void *unused)
{
	struct timespec start;

	run_on(1);
	TEST_ASSERT(!setpriority(PRIO_PROCESS, 0, -20), "errno %d", errno);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_elapsed(start).tv_sec < HOG_SECONDS)
		;
	return NULL;
}

/* Leaves the kworkers that free page tables a hundredth of a CPU, for some seconds. */
static void make_kworkers_late(pthread_t *hogs)
{
	FILE *f = fopen(UNBOUND_CPUS, "re");
	unsigned int i;

	__TEST_REQUIRE(f, "Cannot read " UNBOUND_CPUS);
	TEST_ASSERT(fgets(unbound_cpus, sizeof(unbound_cpus), f), "Cannot read " UNBOUND_CPUS);
	fclose(f);
	run_on(1);
	run_on(0);
	/* CPU 1 only */
	__TEST_REQUIRE(write_unbound_cpus("2"), "Cannot write " UNBOUND_CPUS);
	atexit(restore_unbound_cpus);
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_create(&hogs[i], NULL, hog_kworkers_cpu, NULL);
}

/* For each slot: the pages of 2MiB, and that of 1GiB. */
#define ALIAS_TABLES		(NR_ALIASES * (PAGES_PER_1G / PAGES_PER_2M + 1))

/* Splits and recovers in a loop: more tables are unlinked than the kworkers can free. */
static void test_unused(void)
{
	/* What was recovered since more tables were allocated may wait beside the limit. */
	const u64 bytes = (u64)NR_ALIASES * SZ_1G, limit = MOST_UNUSED + ALIAS_TABLES;
	u64 unused, most = 0, done = 0;
	pthread_t hogs[NR_THREADS];
	struct timespec start;
	unsigned int n;
	int ret;

	for (n = 0; n < NR_ALIASES; n++) {
		struct kvm_pre_fault_memory range = {
			.gpa = ALIAS_BASE + (u64)n * SZ_1G, .size = SZ_1G,
		};

		vm_set_user_memory_region(vm, ALIAS_SLOT + n, 0, range.gpa, SZ_1G, mem);
		do {
			ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		} while ((!ret && range.size) || (ret && errno == EINTR));
		TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vm);
	}
	make_kworkers_late(hogs);

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_elapsed(start).tv_sec < HOG_SECONDS) {
		ret = split(ALIAS_BASE, bytes, PAGE_SIZE, 0);
		TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SPLIT_HUGE_PAGES, ret, vm);
		ret = split(ALIAS_BASE, bytes, 0, KVM_SPLIT_FLAG_RECOVER);
		TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SPLIT_HUGE_PAGES, ret, vm);
		done += ALIAS_TABLES;
		unused = vm_get_stat(vm, mmu_unused_tables);
		most = max(most, unused);
	}
	for (n = 0; n < NR_THREADS; n++)
		kvm_pthread_join(hogs[n], NULL);
	TEST_ASSERT(get_mmu_stats(vm).promotions >= done, "%lu pages are recovered, not %lu",
		    get_mmu_stats(vm).promotions, done);
	TEST_ASSERT(most <= limit, "%lu tables have waited to be freed, should be %lu at most",
		    most, limit);
	if (most > MOST_UNUSED)
		ksft_test_result_pass("unused: %lu of %lu tables have waited at a time\n", most,
				      done);
	else
		ksft_test_result_skip("unused: not more than %lu of %lu tables have waited\n",
				      most, done);
}

static void create_vm(void)
{
	u64 page;

	mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		   (backing == SZ_1G ? MAP_HUGE_1GB : MAP_HUGE_2MB), -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "Not enough free huge pages");
	for (page = 0; page < size / PAGE_SIZE; page++)
		*(u64 *)(mem + page * PAGE_SIZE) = host_word(page);

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	/* What is mapped beside the slot stays when that is deleted. */
	vm_enable_cap(vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);
	set_slot(0, BASE, size);
	virt_map_level(vm, BASE, BASE, size, backing == SZ_1G ? PG_LEVEL_1G : PG_LEVEL_2M);
	guest_size = size;
	guest_stride = stride;
	sync_global_to_guest(vm, guest_size);
	sync_global_to_guest(vm, guest_stride);

	/* It boots, and only what every run uses is mapped again. */
	run_guest();
	unmap(addr_gpa2hva(vm, 0), memslot2region(vm, 0)->region.memory_size);
	run_guest();
	map_all();
	rest = get_page_stats(vm);
	if (backing == SZ_1G)
		rest.pages_1g -= size / SZ_1G;
	else
		rest.pages_2m -= size / SZ_2M;
}

/* KVM has none of it, and says so. */
static void test_absent(void)
{
	struct kvm_split_huge_pages request = {
		.gpa = BASE, .size = SZ_2M, .page_size = PAGE_SIZE,
	};
	struct kvm_vm *none = vm_create_barebones();

	TEST_ASSERT(!kvm_check_cap(KVM_CAP_SPLIT_HUGE_PAGES) &&
		    !kvm_check_cap(KVM_CAP_EAGER_SPLIT_CHUNK_SIZE), "There are capabilities");
	TEST_ASSERT(__vm_ioctl(none, KVM_SPLIT_HUGE_PAGES, &request) && errno == ENOTTY,
		    "errno %d, should be ENOTTY", errno);
	TEST_ASSERT(__vm_enable_cap(none, KVM_CAP_EAGER_SPLIT_CHUNK_SIZE, SZ_2M) && errno == EINVAL,
		    "errno %d, should be EINVAL", errno);
	kvm_vm_free(none);
	ksft_test_result_pass("absent\n");
}

int main(int argc, char *argv[])
{
	bool waits = false;
	int opt;

	while ((opt = getopt(argc, argv, "gw")) != -1) {
		if (opt != 'g' && opt != 'w') {
			printf("usage: %s [-g | -w]\n", argv[0]);
			exit(KSFT_FAIL);
		}
		waits |= opt == 'w';
		backing = SZ_1G;
		size = SZ_1G;
		stride = PAGES_PER_2M / 2;
	}

	ksft_print_header();
	__TEST_REQUIRE(!waits || has_mmu_stats(), "The MMU in C does not split ahead");
	if (!has_mmu_stats() || !get_kvm_param_bool("tdp_mmu")) {
		ksft_set_plan(1);
		test_absent();
		ksft_finished();
	}
	TEST_ASSERT(kvm_check_cap(KVM_CAP_SPLIT_HUGE_PAGES) ==
		    (KVM_SPLIT_CAN_SPLIT | KVM_SPLIT_CAN_KEEP | KVM_SPLIT_CAN_RECOVER |
		     KVM_SPLIT_CAN_SET_CHUNK), "KVM can do 0x%x",
		    kvm_check_cap(KVM_CAP_SPLIT_HUGE_PAGES));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));

	create_vm();
	if (waits) {
		ksft_set_plan(1);
		test_unused();
		kvm_vm_free(vm);
		ksft_finished();
	}
	ksft_set_plan(13);
	test_errors();
	test_levels();
	test_keep();
	test_budget();
	test_slots();
	test_log();
	test_guest_memfd();
	test_threads();
	test_client();
	test_signals();
	test_killed();
	test_memcg();
	/* Last: it changes how the VM is logged. */
	test_chunk();
	kvm_vm_free(vm);
	ksft_finished();
}
