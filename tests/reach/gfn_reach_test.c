// SPDX-License-Identifier: GPL-2.0
/*
 * Memslots that the root of the page tables does not reach
 *
 * Where memslots may lie is bounded by the host's MAXPHYADDR.  What page tables
 * can map is bounded by their levels, too: four translate 48 bits.  This test has
 * a slot that both reach, LOW, and one that only MAXPHYADDR does, HIGH, and checks
 * that whatever is done to one of them leaves the other alone:
 *
 *  - toggling dirty logging, collecting and clearing the log, splitting, recovery
 *    of huge pages, unmapping, aging, pre-faulting, and deleting the slot,
 *  - writes of the guest to either.
 *
 * The slot left alone has the mappings (statistics), the dirty log, the age and the
 * content that it had.  HIGH never has mappings at all: KVM_PRE_FAULT_MEMORY says
 * ENOENT, and what the guest does there is emulated.
 *
 * The statistics come first, with no vCPU running.  If one is wrong the test ends at
 * once, as the guest may be mapping anything by then.
 */
#include <errno.h>
#include <fcntl.h>
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
#include "test_util.h"
#include "ucall_common.h"

#define REACH			BIT_ULL(48)
#define LOW_GPA			SZ_1G
#define HIGH_GPA		(REACH + LOW_GPA)
#define HIGH_GVA		(REACH >> 8)
#define STRADDLE_GPA		(REACH - SZ_2M)

#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)
/* The first half of LOW is mapped, the second is not. */
#define NR_PAGES		(2 * PAGES_PER_2M)
#define NR_MAPPED		PAGES_PER_2M
#define SLOT_SIZE		(NR_PAGES * PAGE_SIZE)

/* What backs the slots. */
static const struct arrangement {
	const char *name;
	bool low_huge;
	bool high_huge;
} arrangements[] = {
	{ "LOW small, HIGH huge", false, true },
	{ "LOW huge, HIGH small", true, false },
	{ "both huge", true, true },
	{ "both small", false, false },
};

struct region {
	const char *name;
	u32 slot;
	u64 gpa;
	gva_t gva;
	bool huge;
	bool logged;
	u8 *hva;
	u64 value[NR_PAGES];
};

struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	enum log_mode mode;
	struct region low;
	struct region high;
	u64 generation;
};

struct stats {
	struct page_stats pages;
	struct mmu_stats mmu;
};

/* Request to and answer from the guest, shared through guest memory. */
static struct guest_request {
	bool write;
	u64 gva;
	u64 first;
	u64 end;
	u64 stride;
	u64 base;
	u64 sum;
} request;

/* Whether the guest can make an address that the root does not reach. */
static bool guest_has_high;

static void guest_code(void)
{
	struct guest_request *req = &request;
	u64 page, sum;
	u64 *ptr;

	for (;;) {
		sum = 0;
		for (page = req->first; page < req->end; page += req->stride) {
			ptr = (u64 *)(req->gva + page * PAGE_SIZE);
			if (req->write)
				WRITE_ONCE(*ptr, req->base + page);
			else
				sum += READ_ONCE(*ptr);
		}
		req->sum = sum;
		GUEST_SYNC(0);
	}
}

static void run_guest(struct test_vm *t)
{
	struct ucall uc;

	sync_global_to_guest(t->vm, request);
	vcpu_run(t->vcpu);
	switch (get_ucall(t->vcpu, &uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit: %s",
			  exit_reason_str(t->vcpu->run->exit_reason));
	}
	sync_global_from_guest(t->vm, request);
}

static void guest_write(struct test_vm *t, struct region *r, u64 first, u64 end, u64 stride)
{
	u64 page;

	request = (struct guest_request) {
		.write = true,
		.gva = r->gva,
		.first = first,
		.end = end,
		.stride = stride,
		.base = ++t->generation << 32 | r->slot << 16,
	};
	for (page = first; page < end; page += stride)
		r->value[page] = request.base + page;
	run_guest(t);
}

static void guest_read(struct test_vm *t, struct region *r, u64 first, u64 end, u64 stride)
{
	u64 page, sum = 0;

	request = (struct guest_request) {
		.gva = r->gva,
		.first = first,
		.end = end,
		.stride = stride,
	};
	for (page = first; page < end; page += stride)
		sum += r->value[page];
	run_guest(t);
	TEST_ASSERT(request.sum == sum, "The guest reads something else in %s", r->name);
}

static void host_write(struct region *r)
{
	u64 page;

	for (page = 0; page < NR_PAGES; page++) {
		r->value[page] = (u64)r->slot << 16 | page;
		*(u64 *)(r->hva + page * PAGE_SIZE) = r->value[page];
	}
}

static void assert_memory(struct region *r, const char *when)
{
	u64 page, now;

	for (page = 0; page < NR_PAGES; page++) {
		now = *(u64 *)(r->hva + page * PAGE_SIZE);
		TEST_ASSERT(now == r->value[page], "%s: page %lu of %s has 0x%lx, not 0x%lx",
			    when, page, r->name, now, r->value[page]);
	}
}

static struct stats get_stats(struct kvm_vm *vm)
{
	return (struct stats) { .pages = get_page_stats(vm), .mmu = get_mmu_stats(vm) };
}

static void assert_stats(struct kvm_vm *vm, struct stats want, const char *when)
{
	struct stats now = get_stats(vm);

	assert_page_stats(now.pages, want.pages, when);
	TEST_ASSERT(!memcmp(&now.mmu, &want.mmu, sizeof(now.mmu)),
		    "%s: eager splits, splits in faults and recovered pages are %lu, %lu, %lu, should be %lu, %lu, %lu",
		    when, now.mmu.eager_splits, now.mmu.fault_splits, now.mmu.promotions,
		    want.mmu.eager_splits, want.mmu.fault_splits, want.mmu.promotions);
}

static void set_logging(struct test_vm *t, struct region *r, bool log)
{
	vm_set_user_memory_region(t->vm, r->slot, log ? KVM_MEM_LOG_DIRTY_PAGES : 0, r->gpa,
				  SLOT_SIZE, r->hva);
	r->logged = log;
}

static void collect(struct test_vm *t, struct region *r, unsigned long *bitmap)
{
	kvm_vm_get_dirty_log(t->vm, r->slot, bitmap);
	if (t->mode != LOG_LEGACY)
		kvm_vm_clear_dirty_log(t->vm, r->slot, bitmap, 0, NR_PAGES);
}

static void drain(struct test_vm *t, struct region *r)
{
	unsigned long bitmap[BITS_TO_LONGS(NR_PAGES)];

	collect(t, r, bitmap);
}

/* The log of a slot has just these pages. */
static void assert_log(struct test_vm *t, struct region *r, u64 first, u64 end, u64 stride,
		       const char *when)
{
	unsigned long bitmap[BITS_TO_LONGS(NR_PAGES)];
	u64 page;

	collect(t, r, bitmap);
	for (page = 0; page < NR_PAGES; page++) {
		bool want = page >= first && page < end && !((page - first) % stride);

		TEST_ASSERT(test_bit(page, bitmap) == want, "%s: page %lu is%s in the log of %s",
			    when, page, want ? " not" : "", r->name);
	}
}

static int prefault(struct test_vm *t, u64 gpa, u64 size, u64 *left)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int r, err;

	do {
		r = __vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range);
		err = errno;
	} while (r < 0 && err == EINTR);
	*left = range.size;
	return r < 0 ? err : 0;
}

static void unmap(struct region *r)
{
	TEST_ASSERT(!madvise(r->hva, SLOT_SIZE, MADV_DONTNEED), "madvise: %s",
		    strerror(errno));
	host_write(r);
}

/*
 * What can be done to a slot without a vCPU.  HIGH is not to have any mappings, before
 * and after; what is done to LOW is to show in the statistics.
 */
static void exercise(struct test_vm *t, struct region *r, bool has_mappings)
{
	struct stats before = get_stats(t->vm);
	bool logged = r->logged;

#define CHECK(what)									\
	do {										\
		if (!has_mappings)							\
			assert_stats(t->vm, before, what " of a slot out of reach");	\
	} while (0)

	set_logging(t, r, true);
	CHECK("Start of logging");
	drain(t, r);
	CHECK("Collection of the log");
	drain(t, r);
	set_logging(t, r, false);
	CHECK("End of logging");
	unmap(r);
	CHECK("Unmapping");
	if (logged) {
		set_logging(t, r, true);
		drain(t, r);
	}
	if (!has_mappings) {
		u64 left;
		int err = prefault(t, r->gpa, SLOT_SIZE, &left);

		TEST_ASSERT(err == ENOENT && left == SLOT_SIZE,
			    "Pre-faulting what is out of reach: errno %d, %lu bytes left",
			    err, left);
		CHECK("Pre-faulting");
	}
#undef CHECK
}

static u64 nr_faults(struct test_vm *t)
{
	return vcpu_get_stat(t->vcpu, pf_taken);
}

/* Nothing that is done to HIGH may concern what LOW has, logged or not. */
static void test_low_is_left_alone(struct test_vm *t)
{
	struct region *low = &t->low, *high = &t->high;
	struct stats before;
	u64 faults;

	/* Once for what the guest needs beside LOW, and once for the count of faults. */
	guest_write(t, low, 0, NR_MAPPED, 1);
	guest_write(t, low, 0, NR_MAPPED, 1);
	before = get_stats(t->vm);
	faults = nr_faults(t);
	exercise(t, high, false);
	guest_write(t, low, 0, NR_MAPPED, 1);
	TEST_ASSERT(nr_faults(t) == faults, "Writing to LOW takes %lu faults",
		    nr_faults(t) - faults);
	assert_stats(t->vm, before, "HIGH was used");
	assert_memory(low, "HIGH was used");

	set_logging(t, low, true);
	drain(t, low);
	exercise(t, high, false);
	assert_log(t, low, 0, 0, 1, "HIGH was used");
	guest_write(t, low, 1, NR_MAPPED, 3);
	exercise(t, high, false);
	assert_log(t, low, 1, NR_MAPPED, 3, "The guest has written to LOW");
	/* Every second page is writable then, and in the log. */
	guest_write(t, low, 0, NR_MAPPED, 2);
	exercise(t, high, false);
	guest_write(t, low, 0, NR_MAPPED, 2);
	assert_log(t, low, 0, NR_MAPPED, 2, "The guest has written to LOW");
	assert_memory(low, "LOW was written to");
	assert_memory(high, "LOW was written to");
	set_logging(t, low, false);
}

/* The same the other way round. */
static void test_high_is_left_alone(struct test_vm *t)
{
	struct region *low = &t->low, *high = &t->high;
	u64 left;

	set_logging(t, high, true);
	drain(t, high);
	exercise(t, low, true);
	TEST_ASSERT_EQ(prefault(t, low->gpa, NR_MAPPED * PAGE_SIZE, &left), 0);
	set_logging(t, low, true);
	drain(t, low);
	guest_write(t, low, 0, NR_MAPPED, 1);
	assert_log(t, low, 0, NR_MAPPED, 1, "The guest has written to LOW");
	set_logging(t, low, false);
	assert_log(t, high, 0, 0, 1, "LOW was used");
	assert_memory(high, "LOW was used");
	assert_memory(low, "LOW was used");
	set_logging(t, high, false);
}

/*
 * What the guest writes to HIGH is in HIGH, and in its log.  LOW has no mapping there; or
 * one that is write-protected, so that the CPU asks.  (An emulated CPU may not look at all
 * bits of an address, and so not ask if there is a mapping that allows the access.)
 */
static void test_guest_writes_high(struct test_vm *t)
{
	struct region *low = &t->low, *high = &t->high;
	struct stats before;
	u64 emulated;

	set_logging(t, low, true);
	set_logging(t, high, true);
	drain(t, low);
	/* Once for the guest's page tables. */
	guest_write(t, high, 2, NR_PAGES, NR_MAPPED);
	drain(t, high);
	before = get_stats(t->vm);
	emulated = vcpu_get_stat(t->vcpu, pf_emulate);

	guest_write(t, high, NR_MAPPED + 3, NR_PAGES, 7);
	assert_log(t, high, NR_MAPPED + 3, NR_PAGES, 7, "The guest has written to HIGH");
	assert_memory(high, "HIGH was written to");
	guest_read(t, high, NR_MAPPED, NR_PAGES, 1);
	TEST_ASSERT(vcpu_get_stat(t->vcpu, pf_emulate) - emulated >= NR_PAGES - NR_MAPPED,
		    "Accesses of HIGH were not emulated");
	assert_stats(t->vm, before, "The guest has used HIGH");
	assert_log(t, low, 0, 0, 1, "The guest has used HIGH");

	guest_write(t, high, 2, NR_MAPPED, 5);
	assert_log(t, high, 2, NR_MAPPED, 5, "The guest has written to HIGH");
	assert_log(t, low, 0, 0, 1, "The guest has written to HIGH");
	assert_stats(t->vm, before, "The guest has written to HIGH");
	assert_memory(high, "HIGH was written to");
	assert_memory(low, "HIGH was written to");

	guest_write(t, low, 2, NR_MAPPED, 5);
	assert_log(t, low, 2, NR_MAPPED, 5, "The guest has written to LOW");
	assert_log(t, high, 0, 0, 1, "The guest has written to LOW");
	assert_memory(high, "LOW was written to");

	set_logging(t, low, false);
	set_logging(t, high, false);
	assert_memory(low, "Logging has ended");
}

static u64 pfn_of(void *hva)
{
	u64 entry;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	TEST_ASSERT(fd >= 0, "Cannot open /proc/self/pagemap: %s", strerror(errno));
	TEST_ASSERT_EQ(pread(fd, &entry, 8, (u64)hva / PAGE_SIZE * 8), 8);
	close(fd);
	TEST_ASSERT(entry & BIT_ULL(63), "A page is not there");
	__TEST_REQUIRE(entry & GENMASK_ULL(54, 0), "Looking up PFNs requires CAP_SYS_ADMIN");
	return entry & GENMASK_ULL(54, 0);
}

static void mark_idle(int fd, u64 pfn)
{
	u64 bits = BIT_ULL(pfn % 64);

	TEST_ASSERT_EQ(pwrite(fd, &bits, 8, pfn / 64 * 8), 8);
}

static bool is_idle(int fd, u64 pfn)
{
	u64 bits;

	TEST_ASSERT_EQ(pread(fd, &bits, 8, pfn / 64 * 8), 8);
	return bits & BIT_ULL(pfn % 64);
}

/* Each slot has an age of its own.  Huge pages of hugetlbfs have none. */
static void test_aging(struct test_vm *t)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	u64 low[2], high[2];
	int i;

	if (fd < 0) {
		ksft_print_msg("no /sys/kernel/mm/page_idle: aging is not tested\n");
		return;
	}

	/* Not the pages that were allocated last: these may not be in an LRU yet. */
	for (i = 0; i < 2; i++) {
		low[i] = pfn_of(t->low.hva + (5 + i) * PAGE_SIZE);
		high[i] = pfn_of(t->high.hva + (5 + i) * PAGE_SIZE);
	}

	mark_idle(fd, low[0]);
	TEST_ASSERT(is_idle(fd, low[0]), "A page of LOW that nobody uses isn't old");
	mark_idle(fd, high[0]);
	guest_read(t, &t->low, 5, 6, 1);
	TEST_ASSERT(is_idle(fd, high[0]), "Reading LOW makes HIGH young");
	TEST_ASSERT(!is_idle(fd, low[0]), "Reading LOW doesn't make it young");

	mark_idle(fd, low[1]);
	guest_read(t, &t->low, 6, 7, 1);
	mark_idle(fd, high[1]);
	TEST_ASSERT(!is_idle(fd, low[1]), "Making HIGH old makes LOW old");
	close(fd);
}

/* Deleting a slot, if that only zaps its own mappings. */
static void test_delete(struct test_vm *t)
{
	struct stats before = get_stats(t->vm);
	struct region *high = &t->high;

	vm_set_user_memory_region(t->vm, high->slot, 0, high->gpa, 0, high->hva);
	assert_stats(t->vm, before, "Deleting a slot out of reach");
	set_logging(t, high, false);
	assert_stats(t->vm, before, "Making a slot out of reach");
}

/* A slot of which the root reaches the first half. */
static void test_straddle(struct test_vm *t)
{
	struct stats before = get_stats(t->vm), mapped = before, now;
	u32 slot = t->high.slot + 1;
	u64 left;
	u8 *hva;

	hva = kvm_mmap(SLOT_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1);
	memset(hva, 1, SLOT_SIZE);
	vm_set_user_memory_region(t->vm, slot, 0, STRADDLE_GPA, SLOT_SIZE, hva);

	TEST_ASSERT_EQ(prefault(t, STRADDLE_GPA, SLOT_SIZE, &left), 0);
	TEST_ASSERT_EQ(left, (u64)SZ_2M);
	TEST_ASSERT_EQ(prefault(t, REACH, left, &left), ENOENT);
	mapped.pages.pages_2m++;
	assert_stats(t->vm, mapped, "A slot that is half in reach is pre-faulted");

	vm_set_user_memory_region(t->vm, slot, KVM_MEM_LOG_DIRTY_PAGES, STRADDLE_GPA,
				  SLOT_SIZE, hva);
	if (t->mode == LOG_INITIALLY_SET) {
		unsigned long bitmap[BITS_TO_LONGS(NR_PAGES)];

		memset(bitmap, 0xff, sizeof(bitmap));
		kvm_vm_clear_dirty_log(t->vm, slot, bitmap, 0, NR_PAGES);
	}
	now = get_stats(t->vm);
	if (get_kvm_param_bool("eager_page_split") && get_kvm_param_bool("tdp_mmu"))
		TEST_ASSERT(now.pages.pages_2m == before.pages.pages_2m &&
			    now.pages.pages_4k == before.pages.pages_4k + PAGES_PER_2M,
			    "Logged, half a slot has %lu huge pages and %lu small ones",
			    now.pages.pages_2m, now.pages.pages_4k);
	vm_set_user_memory_region(t->vm, slot, 0, STRADDLE_GPA, SLOT_SIZE, hva);
	now = get_stats(t->vm);
	/* Shadow pages are zapped, and mapped by the next fault. */
	if (get_kvm_param_bool("tdp_mmu"))
		TEST_ASSERT(now.pages.pages_2m == mapped.pages.pages_2m &&
			    now.pages.pages_4k == mapped.pages.pages_4k,
			    "Recovered, half a slot has %lu huge pages and %lu small ones",
			    now.pages.pages_2m, now.pages.pages_4k);

	kvm_munmap(hva, SLOT_SIZE);
	now = get_stats(t->vm);
	TEST_ASSERT(now.pages.pages_2m == before.pages.pages_2m &&
		    now.pages.pages_4k == before.pages.pages_4k,
		    "Unmapped, half a slot has %lu huge pages and %lu small ones",
		    now.pages.pages_2m, now.pages.pages_4k);
}

static void add_region(struct test_vm *t, struct region *r, const char *name, u32 slot,
		       u64 gpa, gva_t gva, bool huge)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	u64 page;

	*r = (struct region) {
		.name = name, .slot = slot, .gpa = gpa, .gva = gva, .huge = huge,
	};
	if (huge)
		flags |= MAP_HUGETLB | MAP_HUGE_2MB;
	r->hva = kvm_mmap(SLOT_SIZE, PROT_READ | PROT_WRITE, flags, -1);
	if (!huge)
		madvise(r->hva, SLOT_SIZE, MADV_NOHUGEPAGE);
	host_write(r);
	set_logging(t, r, false);
	if (gva) {
		for (page = 0; page < NR_PAGES; page++)
			virt_pg_map(t->vm, gva + page * PAGE_SIZE, gpa + page * PAGE_SIZE);
	}
}

static void run_case(const struct arrangement *a, enum log_mode mode)
{
	struct test_vm *t = calloc(1, sizeof(*t));
	u64 left;

	TEST_ASSERT(t, "No memory");
	t->mode = mode;
	t->vm = vm_create_with_one_vcpu(&t->vcpu, guest_code);
	/* libkvm's limit is what the page tables of most machines reach. */
	t->vm->max_gfn = (HIGH_GPA + SLOT_SIZE) / PAGE_SIZE;
	/* Where there are tables of five levels, a guest with less gets four. */
	if (!guest_has_high)
		vcpu_set_cpuid_property(t->vcpu, X86_PROPERTY_MAX_PHY_ADDR, 48);
	vm_enable_cap(t->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);
	if (log_modes[mode].caps)
		vm_enable_cap(t->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, log_modes[mode].caps);

	add_region(t, &t->low, "LOW", 1, LOW_GPA, LOW_GPA, a->low_huge);
	add_region(t, &t->high, "HIGH", 2, HIGH_GPA, guest_has_high ? HIGH_GVA : 0,
		   a->high_huge);
	TEST_ASSERT_EQ(prefault(t, LOW_GPA, NR_MAPPED * PAGE_SIZE, &left), 0);

	exercise(t, &t->high, false);
	test_delete(t);

	test_low_is_left_alone(t);
	test_high_is_left_alone(t);
	if (guest_has_high)
		test_guest_writes_high(t);
	if (!a->low_huge && !a->high_huge)
		test_aging(t);
	test_straddle(t);

	kvm_munmap(t->low.hva, SLOT_SIZE);
	kvm_munmap(t->high.hva, SLOT_SIZE);
	kvm_vm_free(t->vm);
	free(t);
}

int main(void)
{
	enum log_mode mode;
	unsigned int i;
	u8 reach;

	TEST_REQUIRE(kvm_is_tdp_enabled());
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL);
	__TEST_REQUIRE(kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR) > 48,
		       "MAXPHYADDR is %u: all memslots are in reach",
		       kvm_cpu_property(X86_PROPERTY_MAX_PHY_ADDR));
	reach = kvm_cpu_property(X86_PROPERTY_GUEST_MAX_PHY_ADDR);
	guest_has_high = reach == 48;

	ksft_print_header();
	if (!guest_has_high)
		ksft_print_msg("with %u bits the guest has no address out of reach to write to\n",
			       reach);
	ksft_set_plan(ARRAY_SIZE(arrangements) * NR_LOG_MODES);
	for (i = 0; i < ARRAY_SIZE(arrangements); i++) {
		for (mode = 0; mode < NR_LOG_MODES; mode++) {
			run_case(&arrangements[i], mode);
			ksft_test_result_pass("%s, %s\n", arrangements[i].name,
					      log_modes[mode].name);
		}
	}
	ksft_finished();
}
