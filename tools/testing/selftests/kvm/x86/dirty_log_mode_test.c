// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_CAP_X86_DIRTY_LOG_MODE: how a VM finds the pages that its guest writes
 *
 * A VM that chooses D bits must use them, whatever kvm.dirty_log says, from the next memslot
 * that starts logging, even if another memslot, e.g. that of a display, is logged all the
 * time.  A VM that chooses write protection must not use them.  Either way, the log must
 * contain every page that was written.
 *
 * A VM that uses D bits and then chooses write protection keeps D bits until none of its
 * memslots is logged, even if another memslot starts logging in between.
 *
 * Manual protection may be toggled at any time, even while another thread starts logging a
 * memslot.  The log must then still contain the writes to memory that has been unmapped from
 * the guest.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"
#include "withheld_page.h"

/* Memslots 1 and 2, one after the other. */
#define NR_SLOTS	2
#define SLOT_SIZE	SZ_2M
#define SLOT_PAGES	(SLOT_SIZE / PAGE_SIZE)
#define TEST_BASE	(8ul * SZ_1G)

static struct guest_request {
	u64 gpa;
	u64 stride;
} request;

struct test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	void *mem;
};

static void guest_code(void)
{
	u64 at;

	for (;;) {
		for (at = 0; at < SLOT_SIZE; at += READ_ONCE(request.stride))
			WRITE_ONCE(*(u64 *)(READ_ONCE(request.gpa) + at), at);
		GUEST_SYNC(0);
	}
}

static void set_logging(struct test *t, int slot, bool logged)
{
	vm_set_user_memory_region(t->vm, slot, logged ? KVM_MEM_LOG_DIRTY_PAGES : 0,
				  TEST_BASE + (slot - 1) * SLOT_SIZE, SLOT_SIZE,
				  t->mem + (slot - 1) * SLOT_SIZE);
}

/* The guest writes to every @stride-th page of a slot. */
static void write_pages(struct test *t, int slot, unsigned int stride)
{
	request.gpa = TEST_BASE + (slot - 1) * SLOT_SIZE;
	request.stride = stride * PAGE_SIZE;
	sync_global_to_guest(t->vm, request);
	run_until_ucall(t->vcpu, UCALL_SYNC);
}

/* How many pages of a slot are in the log. Those that @stride says must be. */
static unsigned int get_log(struct test *t, int slot, unsigned int stride)
{
	DECLARE_BITMAP(log, SLOT_PAGES) = {};
	unsigned int page, n = 0;

	kvm_vm_get_dirty_log(t->vm, slot, log);
	for (page = 0; page < SLOT_PAGES; page++) {
		n += test_bit(page, log);
		TEST_ASSERT(!stride || page % stride || test_bit(page, log),
			    "Slot %d: page %u was written, and is not in the log", slot, page);
	}
	return n;
}

static void create(struct test *t, int mode)
{
	int slot;

	t->mem = kvm_mmap(NR_SLOTS * SLOT_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_madvise(t->mem, NR_SLOTS * SLOT_SIZE, MADV_NOHUGEPAGE);
	t->vm = vm_create_with_one_vcpu(&t->vcpu, guest_code);
	if (mode >= 0)
		vm_enable_cap(t->vm, KVM_CAP_X86_DIRTY_LOG_MODE, mode);
	virt_map(t->vm, TEST_BASE, TEST_BASE, NR_SLOTS * SLOT_PAGES);
	for (slot = 1; slot <= NR_SLOTS; slot++) {
		set_logging(t, slot, false);
		write_pages(t, slot, 1);
	}
}

static void destroy(struct test *t)
{
	kvm_vm_free(t->vm);
	kvm_munmap(t->mem, NR_SLOTS * SLOT_SIZE);
}

static bool by_dirty_bits(struct test *t)
{
	return vm_get_stat(t->vm, mmu_dirty_tables);
}

static void test_values(bool has_cap)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_DIRTY_LOG_MODE };
	struct kvm_vm *vm = vm_create_barebones();
	int valid = vm_check_cap(vm, KVM_CAP_X86_DIRTY_LOG_MODE);
	int mode, ret;

	TEST_ASSERT_EQ(!!valid, has_cap);
	for (mode = 0; mode < 34; mode++) {
		ret = __vm_enable_cap(vm, KVM_CAP_X86_DIRTY_LOG_MODE, mode);
		TEST_ASSERT(mode < 31 && valid & BIT(mode) ? !ret : ret == -1 && errno == EINVAL,
			    "Mode %d of %#x: returns %d, errno %d", mode, valid, ret, errno);
	}
	ret = __vm_enable_cap(vm, KVM_CAP_X86_DIRTY_LOG_MODE, 1ull << 32);
	TEST_ASSERT(ret == -1 && errno == EINVAL, "2^32 is no mode");
	for (mode = 1; mode < (int)ARRAY_SIZE(cap.args); mode++) {
		memset(cap.args, 0, sizeof(cap.args));
		cap.args[mode] = 1;
		ret = __vm_ioctl(vm, KVM_ENABLE_CAP, &cap);
		TEST_ASSERT(ret == -1 && errno == EINVAL, "args[%d] must be 0", mode);
	}
	kvm_vm_free(vm);
	ksft_test_result_pass("the capability takes the modes %#x, and nothing else\n", valid);
}

static void test_mode(int mode)
{
	struct test t;
	unsigned int n;

	create(&t, mode);
	set_logging(&t, 1, true);
	write_pages(&t, 1, 3);
	n = get_log(&t, 1, 3);
	ksft_test_result(n == DIV_ROUND_UP(SLOT_PAGES, 3) &&
			 by_dirty_bits(&t) == (mode == KVM_X86_DIRTY_LOG_DIRTY_BITS),
			 "mode %d: %u pages are logged, and %sby D bits\n", mode, n,
			 by_dirty_bits(&t) ? "" : "not ");
	destroy(&t);
}

static void test_trace(void)
{
	const char *enable = TRACEFS "/events/kvmmmu/kvm_mmu_harvest_dirty_bits/enable";
	char text[128];
	struct test t;
	bool found;

	if (!write_file(enable, "1")) {
		ksft_test_result_skip("trace: cannot enable the tracepoint\n");
		return;
	}
	write_file(TRACEFS "/trace", "");
	create(&t, KVM_X86_DIRTY_LOG_DIRTY_BITS);
	set_logging(&t, 2, true);
	write_pages(&t, 2, 4);
	get_log(&t, 2, 4);
	snprintf(text, sizeof(text),
		 "kvm_mmu_harvest_dirty_bits: as_id 0 gfns %llx-%llx tables 1 pages %llu",
		 TEST_BASE / PAGE_SIZE + SLOT_PAGES, TEST_BASE / PAGE_SIZE + 2 * SLOT_PAGES,
		 SLOT_PAGES / 4);
	found = count_in_trace(TRACEFS "/trace", text);
	write_file(enable, "0");
	ksft_test_result(found, "the trace has \"%s\"\n", text);
	destroy(&t);
}

/* After a GET that has found writes, the next one looks once more, and later ones don't. */
static void test_clean(void)
{
	u64 tables[3], clean[3];
	struct test t;
	int i;

	create(&t, KVM_X86_DIRTY_LOG_DIRTY_BITS);
	set_logging(&t, 1, true);
	write_pages(&t, 1, 4);
	get_log(&t, 1, 4);
	for (i = 0; i < 3; i++) {
		if (i)
			TEST_ASSERT_EQ(get_log(&t, 1, 0), 0);
		tables[i] = vm_get_stat(t.vm, mmu_dirty_tables);
		clean[i] = vm_get_stat(t.vm, mmu_dirty_clean_tables);
	}
	ksft_test_result(clean[1] == clean[0] + 1 && tables[1] == tables[0] + 1 &&
			 clean[2] == clean[1] && tables[2] == tables[1],
			 "a table is read in vain once (tables %lu, %lu, %lu, in vain %lu, %lu, %lu)\n",
			 tables[0], tables[1], tables[2], clean[0], clean[1], clean[2]);
	destroy(&t);
}

/* A display's memslot is always logged, and must not decide how the others are. */
static void test_display(void)
{
	unsigned int n[NR_SLOTS];
	bool before, after;
	struct test t;

	create(&t, KVM_X86_DIRTY_LOG_WRITE_PROTECT);
	set_logging(&t, 1, true);
	write_pages(&t, 1, 2);
	get_log(&t, 1, 2);
	before = by_dirty_bits(&t);

	vm_enable_cap(t.vm, KVM_CAP_X86_DIRTY_LOG_MODE, KVM_X86_DIRTY_LOG_DIRTY_BITS);
	set_logging(&t, 2, true);
	write_pages(&t, 1, 5);
	write_pages(&t, 2, 7);
	kvm_madvise(t.mem, NR_SLOTS * SLOT_SIZE / 2, MADV_DONTNEED);
	n[0] = get_log(&t, 1, 5);
	n[1] = get_log(&t, 2, 7);
	after = by_dirty_bits(&t);
	ksft_test_result(!before && after && n[0] == DIV_ROUND_UP(SLOT_PAGES, 5) &&
			 n[1] == DIV_ROUND_UP(SLOT_PAGES, 7),
			 "D bits are %s, with a memslot that was logged before (%u and %u pages)\n",
			 after ? "used" : "not used", n[0], n[1]);
	destroy(&t);
}

/* How many tables GET looks at for D bits, of a slot of which every third page is written. */
static u64 tables_of_get(struct test *t, int slot)
{
	u64 before = vm_get_stat(t->vm, mmu_dirty_tables);
	unsigned int n;

	write_pages(t, slot, 3);
	n = get_log(t, slot, 3);
	TEST_ASSERT_EQ(n, DIV_ROUND_UP(SLOT_PAGES, 3));
	return vm_get_stat(t->vm, mmu_dirty_tables) - before;
}

/* The leaves of a slot that is logged by D bits are writable, so faults cannot take over. */
static void test_back(void)
{
	u64 both[NR_SLOTS], one, after;
	struct test t;

	create(&t, KVM_X86_DIRTY_LOG_DIRTY_BITS);
	set_logging(&t, 1, true);
	write_pages(&t, 1, 1);
	get_log(&t, 1, 1);

	vm_enable_cap(t.vm, KVM_CAP_X86_DIRTY_LOG_MODE, KVM_X86_DIRTY_LOG_WRITE_PROTECT);
	set_logging(&t, 2, true);
	both[0] = tables_of_get(&t, 1);
	both[1] = tables_of_get(&t, 2);
	set_logging(&t, 1, false);
	one = tables_of_get(&t, 2);
	set_logging(&t, 2, false);
	set_logging(&t, 1, true);
	after = tables_of_get(&t, 1);
	ksft_test_result(both[0] && both[1] && one && !after,
			 "from D bits to faults when no memslot is logged (tables looked at: %lu, %lu, %lu; %lu)\n",
			 both[0], both[1], one, after);
	destroy(&t);
}

static void *pre_fault_page(void *arg)
{
	struct kvm_pre_fault_memory range = { .gpa = TEST_BASE + SLOT_SIZE, .size = PAGE_SIZE };
	struct test *t = arg;

	TEST_ASSERT(!__vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range),
		    "Cannot pre-fault a page, errno %d", errno);
	return NULL;
}

static pid_t starter;

static void *start_logging(void *arg)
{
	WRITE_ONCE(starter, gettid());
	set_logging(arg, 1, true);
	return NULL;
}

/* Whether a thread waits for something that no signal ends. */
static bool is_waiting(pid_t tid)
{
	char path[64], state = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
		state = 0;
	fclose(f);
	return state == 'D';
}

/*
 * Toggle manual protection after KVM has decided how logging starts, and before it starts: KVM
 * waits for a vCPU that is pre-faulting a page in the meantime.  What is logged then is
 * anybody's guess, but D bits must be carried into the log later.
 */
static void test_race(void)
{
	struct uffdio_zeropage zero = { .range.len = PAGE_SIZE };
	DECLARE_BITMAP(all, SLOT_PAGES);
	pthread_t pre_faulter, thread;
	struct test t;
	int uffd;

	bitmap_fill(all, SLOT_PAGES);
	create(&t, KVM_X86_DIRTY_LOG_DIRTY_BITS);
	uffd = kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY) ? withhold_page(t.mem + SLOT_SIZE) : -1;
	if (uffd < 0) {
		ksft_test_result_skip("race: no pre-faulting or no userfaultfd\n");
		destroy(&t);
		return;
	}

	kvm_pthread_create(&pre_faulter, NULL, pre_fault_page, &t);
	wait_for_withheld_page(uffd);
	kvm_pthread_create(&thread, NULL, start_logging, &t);
	while (!READ_ONCE(starter) || !is_waiting(starter))
		usleep(1000);
	vm_enable_cap(t.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	zero.range.start = (u64)t.mem + SLOT_SIZE;
	TEST_ASSERT(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero), "Cannot resolve, errno %d", errno);
	kvm_pthread_join(pre_faulter, NULL);
	kvm_pthread_join(thread, NULL);
	close(uffd);

	vm_enable_cap(t.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	kvm_vm_clear_dirty_log(t.vm, 1, all, 0, SLOT_PAGES);
	write_pages(&t, 1, 4);
	kvm_madvise(t.mem, SLOT_SIZE, MADV_DONTNEED);
	get_log(&t, 1, 4);
	ksft_test_result_pass("manual protection is toggled while logging starts\n");
	destroy(&t);
}

int main(void)
{
	bool has_cap = has_mmu_stats();
	struct kvm_vm *vm = vm_create_barebones();
	int valid = vm_check_cap(vm, KVM_CAP_X86_DIRTY_LOG_MODE);

	kvm_vm_free(vm);
	ksft_print_header();
	ksft_set_plan(8);
	test_values(has_cap);
	if (valid & BIT(KVM_X86_DIRTY_LOG_DIRTY_BITS)) {
		test_mode(KVM_X86_DIRTY_LOG_WRITE_PROTECT);
		test_mode(KVM_X86_DIRTY_LOG_DIRTY_BITS);
		test_trace();
		test_clean();
		test_display();
		test_back();
		test_race();
	} else {
		ksft_test_result_skip("write protection: this VM has no choice\n");
		ksft_test_result_skip("D bits: this VM has no choice\n");
		ksft_test_result_skip("trace: this VM has no choice\n");
		ksft_test_result_skip("clean: this VM has no choice\n");
		ksft_test_result_skip("display: this VM has no choice\n");
		ksft_test_result_skip("back: this VM has no choice\n");
		ksft_test_result_skip("race: this VM has no choice\n");
	}
	ksft_finished();
}
