// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of the MMU fails once
 *
 * Using fault injection (failslab, fail_page_alloc), fail the n-th allocation of an operation
 * on the page tables, for n = 1, 2, 3... until the operation succeeds without a failure.  The
 * operations are creating the memslot, enabling dirty logging (which splits huge pages),
 * clearing the log (ditto), mapping (by pre-faulting and by guest faults), disabling dirty
 * logging (which promotes), and splitting ahead.  Repeat in a memory cgroup that is at its
 * limit, or that reaches it n pages later; splitting ahead must then fail without the OOM
 * killer being invoked.  Whether the operation failed or merely did less than it could, check
 * afterwards that
 *
 *  - the slot's mappings add up to its size,
 *  - the dirty log contains exactly the pages that the guest writes, i.e. whatever was not
 *    split is write-protected,
 *  - the memory contains what the guest wrote,
 *  - the memory of page tables is freed along with the VM.
 *
 * With -2, the writer is a nested guest.  The slot is then mapped by shadow pages as well, and
 * splitting takes descriptors, page headers and page tables from three caches.  L1 maps each
 * huge page twice, and one page of each once more.  What remains mapped then depends on what
 * failed, so compare the number of leaves in the reverse map with the number that KVM accounts
 * for.  Counting them walks all lists.
 *
 * Without -2, check one thing of allocations that succeed as well: what one root leaves of the
 * page tables that were allocated ahead serves the next root.
 *
 * With -v, the kernel logs the call trace of each failure.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include <asm/kvm_split.h>
#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "memcg_limit.h"
#include "mmu_stat.h"
#include "nested_l1.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_SIZE	(16ul * SZ_1M)
#define TEST_PAGES	(TEST_SIZE / PAGE_SIZE)
#define TEST_HUGE_PAGES	(TEST_SIZE / SZ_2M)
#define STRIDE		37

/* A slot for which as many page tables are allocated ahead as ever are. */
#define AHEAD		64
#define AHEAD_SIZE	(AHEAD * SZ_2M)

/* In L2, other addresses of the slot, and of one page of each huge page. */
#define ALIAS		(TEST_BASE + SZ_1G)
#define SHARED		(TEST_BASE + 2ul * SZ_1G)

/* No operation here allocates as often. */
#define MANY		100000

/*
 * Of more, which fill a cache with hundreds of the same, only some are tried; and of
 * those of nested guests, where each case takes longer, fewer.
 */
#define FIRST		(nested ? 32 : 64)
#define LAST		(nested ? 96 : 160)

enum op { OP_SLOT, OP_ENABLE, OP_CLEAR, OP_MAP, OP_FAULT, OP_PROMOTE, OP_AHEAD, NR_OPS };

static const char * const op_names[NR_OPS] = {
	[OP_SLOT]	= "slot",
	[OP_ENABLE]	= "enable",
	[OP_CLEAR]	= "clear",
	[OP_MAP]	= "map",
	[OP_FAULT]	= "fault",
	[OP_PROMOTE]	= "promote",
	[OP_AHEAD]	= "split ahead",
};

#define INSTANCE	TRACEFS "/instances/mmu_enomem_test"
#define PAGE_ALLOC	INSTANCE "/events/kmem/mm_page_alloc"

/* How an allocation is made to fail. */
enum way { WAY_NONE, WAY_NTH, WAY_MEMCG };

static bool can_pre_fault, tdp_mmu, splits, nested;
static char verbose = '0';
static u64 generation;
static unsigned long *bitmap;
static int fail_fd = -1;
static struct memcg memcg = { .max_fd = -1 };
static u64 events, armed, counted;
static void *mem;

static void write_slot(void)
{
	u64 page;

	for (page = 0; page < TEST_PAGES; page += STRIDE)
		WRITE_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE),
			   page + READ_ONCE(generation));
}

static void guest_code(void)
{
	for (;;) {
		write_slot();
		GUEST_SYNC(0);
	}
}

/* Of the pages that are written, the first in a huge page. */
static u64 shared_page(u64 huge)
{
	return (huge * 512 + STRIDE - 1) / STRIDE * STRIDE;
}

static void l2_guest_code(void)
{
	u64 page, huge, expected;

	for (;;) {
		write_slot();
		for (huge = 0; huge < TEST_HUGE_PAGES; huge++) {
			page = shared_page(huge);
			expected = page + READ_ONCE(generation);
			/* The first access is a write, so that both aliases share a table. */
			WRITE_ONCE(*(u64 *)(ALIAS + page * PAGE_SIZE), ~expected);
			GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)(SHARED + huge * PAGE_SIZE)), ~expected);
			WRITE_ONCE(*(u64 *)(SHARED + huge * PAGE_SIZE), expected);
			GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE)),
					expected);
		}
		GUEST_SYNC(0);
	}
}

/* Runs l2_guest_code() in a guest of its own. */
static void l1_guest_code(void *data)
{
	run_l2(data, l2_guest_code);
}

static struct kvm_vm *make_vm(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm;
	u64 huge, gpa;
	gva_t data;

	if (!nested)
		return vm_create_with_one_vcpu(vcpu, guest_code);

	vm = __vm_create_with_one_vcpu(vcpu, TEST_PAGES, l1_guest_code);
	vm_enable_tdp(vm);
	data = vcpu_alloc_nested(vm);
	vcpu_args_set(*vcpu, 1, data);
	virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	virt_map_level(vm, ALIAS, ALIAS, TEST_SIZE, PG_LEVEL_2M);
	virt_map(vm, SHARED, SHARED, TEST_HUGE_PAGES);
	tdp_identity_map_default_memslots(vm);
	for (huge = 0; huge < TEST_HUGE_PAGES; huge++) {
		gpa = TEST_BASE + huge * SZ_2M;
		__virt_pg_map(vm, &vm->stage2_mmu, gpa, gpa, PG_LEVEL_2M);
		__virt_pg_map(vm, &vm->stage2_mmu, ALIAS + huge * SZ_2M, gpa, PG_LEVEL_2M);
		tdp_map(vm, SHARED + huge * PAGE_SIZE,
			TEST_BASE + shared_page(huge) * PAGE_SIZE, PAGE_SIZE);
	}
	return vm;
}

static void begin_round(struct kvm_vm *vm)
{
	generation++;
	sync_global_to_guest(vm, generation);
}

static void check_round(struct kvm_vcpu *vcpu)
{
	u64 page;

	assert_ucall(vcpu, UCALL_SYNC);
	for (page = 0; page < TEST_PAGES; page += STRIDE)
		TEST_ASSERT_EQ(*(u64 *)(mem + page * PAGE_SIZE), page + generation);
}

static void write_pages(struct kvm_vcpu *vcpu)
{
	begin_round(vcpu->vm);
	vcpu_run(vcpu);
	check_round(vcpu);
}

static int set_dirty_logging(struct kvm_vm *vm, bool enable)
{
	return __vm_set_user_memory_region(vm, TEST_SLOT,
					   enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
					   TEST_BASE, TEST_SIZE, mem);
}

static int pre_fault(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE, .size = TEST_SIZE };
	int ret = 0;

	while (!ret && range.size)
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	return ret;
}

static int split_ahead(struct kvm_vm *vm)
{
	struct kvm_split_huge_pages range = {
		.gpa = TEST_BASE, .size = TEST_SIZE, .page_size = PAGE_SIZE,
	};
	int ret = 0;

	while (!ret && range.size)
		ret = __vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &range);
	return ret;
}

/* How many 4KiB pages are mapped, by pages of all sizes. */
static u64 nr_mapped(struct kvm_vm *vm)
{
	return vm_get_stat(vm, pages_4k) + 512 * vm_get_stat(vm, pages_2m);
}

/* How many leaves are in the lists of the reverse map, by level. */
static void count_listed(struct kvm_vm *vm, u64 listed[PG_LEVEL_1G])
{
	struct rmap_stat stat = read_rmap_stat(vm);
	unsigned int level, bin;

	for (level = 0; level < ARRAY_SIZE(stat.lists); level++) {
		/* Here none has 3 leaves or more, as far as bins tell. */
		for (bin = 3; bin < ARRAY_SIZE(stat.lists[level]); bin++)
			TEST_ASSERT(!stat.lists[level][bin], "%lu lists are too long",
				    stat.lists[level][bin]);
		listed[level] = stat.lists[level][1] + 2 * stat.lists[level][2];
	}
}

/*
 * How many 4KiB pages are mapped by leaves that are in no list, which are those of
 * the TDP MMU.  As many as before, whatever is split or promoted.
 */
static u64 nr_unlisted(struct kvm_vm *vm)
{
	u64 listed[PG_LEVEL_1G];

	count_listed(vm, listed);
	return nr_mapped(vm) - listed[0] - 512 * listed[1];
}

static void check_log(struct kvm_vcpu *vcpu)
{
	u64 page;

	write_pages(vcpu);
	kvm_vm_get_dirty_log(vcpu->vm, TEST_SLOT, bitmap);
	for (page = 0; page < TEST_PAGES; page++)
		TEST_ASSERT(test_bit(page, bitmap) == !(page % STRIDE),
			    "Page %lu was %swritten, and is %slogged", page,
			    page % STRIDE ? "not " : "", test_bit(page, bitmap) ? "" : "not ");
}

/* Memory of page tables of guests, in KiB, as far as the kernel has counted. */
static long read_page_table_memory(void)
{
	char line[128];
	long kib = -1;
	FILE *f;

	f = fopen("/proc/meminfo", "re");
	TEST_ASSERT(f, "Cannot read /proc/meminfo");
	while (kib < 0 && fgets(line, sizeof(line), f))
		sscanf(line, "SecPageTables: %ld", &kib);
	fclose(f);
	TEST_ASSERT(kib >= 0, "No SecPageTables in /proc/meminfo");
	return kib;
}

/* The same, once what waits for a grace period has been freed: at most @enough. */
static long page_table_memory(long enough)
{
	long now = read_page_table_memory();
	unsigned int tries;

	for (tries = 0; tries < 50 && now > enough; tries++) {
		usleep(100000);
		now = read_page_table_memory();
	}
	return now;
}

static void write_number(int fd, u64 value)
{
	TEST_ASSERT(dprintf(fd, "%lu", value) > 0, "Cannot write %lu to a knob", value);
}

static u64 read_number(int fd)
{
	char text[32] = {};

	TEST_ASSERT(pread(fd, text, sizeof(text) - 1, 0) > 0, "Cannot read a knob");
	return strtoul(text, NULL, 10);
}

/* Let the @nth allocation from now on fail, or charges from the @nth page on. */
static void arm(enum way way, unsigned int nth)
{
	armed = nth;
	if (way == WAY_NTH)
		write_number(fail_fd, nth);
	if (way != WAY_MEMCG)
		return;
	memcg_limit(&memcg, (nth - 1) * PAGE_SIZE);
	events = memcg_ooms(&memcg);
}

/* Stop it, and return whether one has failed.  Counts them, if none has. */
static bool disarm(enum way way)
{
	bool failed = false;

	if (way == WAY_NTH) {
		counted = armed - read_number(fail_fd);
		failed = counted == armed;
		write_number(fail_fd, 0);
	} else if (way == WAY_MEMCG) {
		memcg_unlimit(&memcg);
		failed = memcg_ooms(&memcg) != events;
	}
	return failed;
}

static int run_op(enum op op, struct kvm_vcpu *vcpu)
{
	struct kvm_clear_dirty_log clear = {
		.slot = TEST_SLOT,
		.dirty_bitmap = bitmap,
		.num_pages = TEST_PAGES,
	};

	switch (op) {
	case OP_ENABLE:
		return set_dirty_logging(vcpu->vm, true);
	case OP_CLEAR:
		return __vm_ioctl(vcpu->vm, KVM_CLEAR_DIRTY_LOG, &clear);
	case OP_MAP:
		return pre_fault(vcpu);
	case OP_FAULT:
		return __vcpu_run(vcpu);
	case OP_AHEAD:
		return split_ahead(vcpu->vm);
	default:
		return set_dirty_logging(vcpu->vm, false);
	}
}

/* Returns whether an allocation failed. */
static bool run_case(enum op op, enum way way, unsigned int nth)
{
	bool maps = op == OP_SLOT || op == OP_MAP || op == OP_FAULT, failed, exact;
	/* In the last VM that nothing failed in, at the end. */
	static u64 usual;
	u64 mapped, unlisted, listed[PG_LEVEL_1G];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int ret, err;

	vm = make_vm(&vcpu);
	if (op == OP_CLEAR)
		vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      KVM_DIRTY_LOG_INITIALLY_SET);
	TEST_ASSERT(op == OP_SLOT || !set_dirty_logging(vm, false), "Cannot make the slot");
	if (!nested)
		virt_map_level(vm, TEST_BASE, TEST_BASE, TEST_SIZE, PG_LEVEL_2M);
	if (!maps) {
		if (can_pre_fault)
			TEST_ASSERT(!pre_fault(vcpu), "Cannot map the slot");
		write_pages(vcpu);
	}
	if (!maps && nested) {
		count_listed(vm, listed);
		TEST_ASSERT(listed[1] >= 2 * TEST_HUGE_PAGES,
			    "Only %lu huge pages are in lists", listed[1]);
	}
	if (op == OP_CLEAR || op == OP_PROMOTE)
		TEST_ASSERT(!set_dirty_logging(vm, true), "Cannot enable the log");
	if (op == OP_CLEAR)
		kvm_vm_get_dirty_log(vm, TEST_SLOT, bitmap);
	if (op == OP_FAULT)
		begin_round(vm);
	mapped = nr_mapped(vm);
	unlisted = nested ? nr_unlisted(vm) : 0;
	/* Shadow pages may be zapped instead of split, and are instead of promoted. */
	exact = tdp_mmu && !nested;

	arm(way, nth);
	ret = run_op(op, vcpu);
	err = errno;
	failed = disarm(way);
	if (op == OP_AHEAD && way == WAY_MEMCG) {
		TEST_ASSERT(!failed, "The OOM killer was asked for a task");
		failed = ret;
	}
	TEST_ASSERT(!ret || err == ENOMEM || err == EFAULT,
		    "%s: errno %d with allocation %u failing", op_names[op], err, nth);
	TEST_ASSERT(!ret || failed, "%s failed without reason", op_names[op]);

	/* What did not work for lack of memory works when there is some. */
	if (!maps && exact)
		TEST_ASSERT_EQ(nr_mapped(vm), mapped);
	if (!maps && nested)
		TEST_ASSERT_EQ(nr_unlisted(vm), unlisted);
	if (nested && splits && !failed && (op == OP_ENABLE || op == OP_CLEAR)) {
		count_listed(vm, listed);
		TEST_ASSERT_EQ(listed[1], 0);
	}
	if (ret)
		TEST_ASSERT(!run_op(op, vcpu), "%s fails with memory as well", op_names[op]);
	if (op == OP_FAULT)
		check_round(vcpu);
	if (maps) {
		write_pages(vcpu);
		mapped = nr_mapped(vm);
	}
	if (op == OP_AHEAD)
		TEST_ASSERT(!vm_get_stat(vm, pages_2m), "A page was not split");
	if (maps || op == OP_PROMOTE || op == OP_AHEAD) {
		write_pages(vcpu);
		TEST_ASSERT(!set_dirty_logging(vm, true), "Cannot enable the log");
	}
	check_log(vcpu);
	if (exact)
		TEST_ASSERT_EQ(nr_mapped(vm), mapped);
	if (nested) {
		unlisted = nr_unlisted(vm);
		if (way == WAY_NONE)
			usual = unlisted;
		TEST_ASSERT_EQ(unlisted, usual);
	}

	kvm_vm_free(vm);
	return failed;
}

/* Make each allocation of any size fail that arm() asks for, silently. */
static void set_up_injection(void)
{
	const char * const knobs[][2] = {
		{ "failslab/ignore-gfp-wait", "N" },
		{ "failslab/verbose", &verbose },
		{ "fail_page_alloc/ignore-gfp-wait", "N" },
		{ "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ "fail_page_alloc/min-order", "0" },
		{ "fail_page_alloc/verbose", &verbose },
	};
	char path[128];
	unsigned int i;
	int fd;

	fail_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_fd < 0)
		return;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s", knobs[i][0]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		__TEST_REQUIRE(fd >= 0, "No %s", path);
		TEST_ASSERT(write(fd, knobs[i][1], 1) == 1, "Cannot write to %s", path);
		close(fd);
	}
}

/* Returns how many cases had a failure. */
static unsigned int run_nth(enum op op)
{
	unsigned int failures = 0;
	u64 total, nth;

	TEST_ASSERT(!run_case(op, WAY_NTH, MANY), "%s never stops allocating", op_names[op]);
	total = counted;
	for (nth = 1; nth <= total; nth++) {
		if (nth > FIRST && nth + LAST < total && nth % 16)
			continue;
		failures += run_case(op, WAY_NTH, nth);
	}
	/* It may vary a little, but the last one has to be behind us. */
	for (; run_case(op, WAY_NTH, nth); nth++)
		failures++;
	return failures;
}

static unsigned int run_memcg(enum op op)
{
	unsigned int failures = 0, step = 1;
	u64 nth;

	for (nth = 1; run_case(op, WAY_MEMCG, nth); nth += step) {
		TEST_ASSERT(nth < MANY, "%s never ends", op_names[op]);
		failures++;
		/* A page is little, and the kernel logs each charge that fails by 100 lines. */
		if (nth > (nested ? 4 : 16))
			step = nested ? 8 : 4;
	}
	return failures;
}

static void run(enum op op, enum way way)
{
	unsigned int failures = 0;
	long before, after;

	if ((way == WAY_NTH && fail_fd < 0) || (way == WAY_MEMCG && memcg.max_fd < 0)) {
		ksft_test_result_skip("%s: the kernel cannot let that fail\n", op_names[op]);
		return;
	}
	if (op == OP_AHEAD && (!kvm_has_cap(KVM_CAP_SPLIT_HUGE_PAGES) || nested)) {
		ksft_test_result_skip("%s: %s\n", op_names[op],
				      nested ? "no shadow pages" : "no KVM_SPLIT_HUGE_PAGES");
		return;
	}
	if (op == OP_MAP && nested) {
		ksft_test_result_skip("%s: by no shadow pages\n", op_names[op]);
		return;
	}
	if (op == OP_MAP && !can_pre_fault) {
		ksft_test_result_skip("%s: no KVM_PRE_FAULT_MEMORY\n", op_names[op]);
		return;
	}

	/* What the first VM leaves behind is no leak. */
	run_case(op, WAY_NONE, 0);
	before = page_table_memory(0);
	if (way == WAY_NTH)
		failures = run_nth(op);
	else if (way == WAY_MEMCG)
		failures = run_memcg(op);
	after = page_table_memory(before);
	ksft_test_result(after <= before,
			 "%s: %u %s, page tables %ld KiB before, %ld after\n", op_names[op],
			 failures, way == WAY_MEMCG ? "limits were hit" : "allocations failed",
			 before, after);
}

static void touch_slot(void)
{
	READ_ONCE(*(u64 *)TEST_BASE);
	GUEST_SYNC(0);
}

/* Without nested paging, what L2 touches is mapped by a root of its own, of the TDP MMU. */
static void l1_touches_too(void *data)
{
	touch_slot();
	run_l2(data, touch_slot);
}

static void stop_tracing(void)
{
	write_file(PAGE_ALLOC "/enable", "0");
	rmdir(INSTANCE);
}

/* Trace the pages that this thread allocates. */
static bool start_tracing(void)
{
	char filter[64];

	snprintf(filter, sizeof(filter), "common_pid == %d && order == 0", gettid());
	rmdir(INSTANCE);
	if (mkdir(INSTANCE, 0700))
		return false;
	atexit(stop_tracing);
	return write_file(PAGE_ALLOC "/filter", filter) && write_file(PAGE_ALLOC "/enable", "1");
}

/*
 * Two roots map one huge page each of a slot for which page tables are allocated
 * ahead: for both together, and not once more for the second.
 */
static void test_two_roots(void)
{
	struct kvm_vcpu *vcpu;
	unsigned int i, nr;
	struct kvm_vm *vm;
	void *ahead;

	if (!splits || nested || !kvm_cpu_has(X86_FEATURE_SVM)) {
		ksft_test_result_skip("two roots: no eager splits, or L2 has shadow pages\n");
		return;
	}
	ahead = mmap(NULL, AHEAD_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB | MAP_HUGE_2MB,
		     -1, 0);
	TEST_ASSERT(ahead != MAP_FAILED, "Cannot map the slot, errno %d", errno);
	*(u64 *)ahead = 1;

	vm = vm_create_with_one_vcpu(&vcpu, l1_touches_too);
	vcpu_args_set(vcpu, 1, vcpu_alloc_nested(vm));
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, AHEAD_SIZE, ahead);
	virt_map_level(vm, TEST_BASE, TEST_BASE, SZ_2M, PG_LEVEL_2M);
	for (i = 1; i <= 2; i++) {
		run_until_ucall(vcpu, UCALL_SYNC);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), i);
	}

	if (!start_tracing()) {
		ksft_test_result_skip("two roots: allocations can't be traced\n");
	} else {
		vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_BASE,
					  AHEAD_SIZE, ahead);
		nr = count_in_trace(INSTANCE "/trace", " mm_page_alloc: ");
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
		/* Two tables are needed, and the bitmap and whatever else are pages, too. */
		ksft_test_result(nr >= 2 && nr < AHEAD + AHEAD / 2,
				 "two roots: %u pages were allocated to split one in each\n", nr);
	}
	kvm_vm_free(vm);
	munmap(ahead, AHEAD_SIZE);
}

int main(int argc, char *argv[])
{
	enum way first = WAY_NTH, last = WAY_MEMCG, way;
	enum op op;
	int opt;

	while ((opt = getopt(argc, argv, "2nv")) != -1) {
		switch (opt) {
		case '2':
			nested = true;
			break;
		case 'n':
			first = WAY_NONE;
			last = WAY_NONE;
			break;
		case 'v':
			verbose = '2';
			last = WAY_NTH;
			break;
		default:
			printf("usage: %s [-2] [-n] [-v]\n"
			       " -2: have a nested guest write\n"
			       " -n: let nothing fail, on any kernel\n"
			       " -v: log the call trace of each failure\n", argv[0]);
			exit(KSFT_FAIL);
		}
	}
	if (nested) {
		TEST_REQUIRE(kvm_cpu_has_tdp());
		TEST_REQUIRE(!access("/sys/kernel/debug/kvm", R_OK));
	}
	can_pre_fault = kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY);
	tdp_mmu = get_kvm_param_bool("tdp_mmu") && can_pre_fault;
	splits = tdp_mmu && get_kvm_param_bool("eager_page_split");

	mem = mmap(NULL, TEST_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "Not enough free huge pages");
	memset(mem, 0, TEST_SIZE);
	bitmap = bitmap_zalloc(TEST_PAGES);
	if (first == WAY_NTH)
		set_up_injection();

	ksft_print_header();
	ksft_set_plan(NR_OPS * (last - first + 1) + 1);
	test_two_roots();
	for (way = first; way <= last; way++) {
		if (way == WAY_MEMCG)
			memcg = memcg_enter("mmu_enomem_test");
		for (op = 0; op < NR_OPS; op++)
			run(op, way);
	}
	if (last == WAY_MEMCG)
		memcg_leave(&memcg);
	ksft_finished();
}
