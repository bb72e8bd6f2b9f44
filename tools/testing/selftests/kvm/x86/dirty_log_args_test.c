// SPDX-License-Identifier: GPL-2.0
/*
 * Arguments of the dirty logging ioctls, good and bad
 *
 * Call the ioctls that set up, read and clear the dirty log, and those that change what
 * is logged, with boundary and random values for every argument, while the guest writes
 * in between.  Each call leaves a record: the call, its return value, errno, and either
 * a hash of what it returned (a range, the dirty ring) or the bitmap itself.  The
 * sequence depends only on the seed.
 *
 * With -f FILE, write the records to FILE or, if FILE exists, compare each call with it.
 * That compares two implementations:
 *
 *   load one; dirty_log_args_test -f FILE; load the other; the same again
 *
 * All records must match, with one exception.  Upstream maps a pre-faulted page of a
 * logged slot writable and sets its bit; the Rust MMU maps it write-protected and sets
 * the bit on the first write.  So when Rust runs second, bits of pages that were
 * pre-faulted but not written may be missing, and a run of the default length has some
 * of them.  A VM with a dirty ring doesn't pre-fault logged slots.
 *
 * On its own, the test shows that nothing crashes, that a slot's log contains every page
 * that the guest wrote since the log was last cleared, and that every error that can be
 * provoked was provoked: see want_errors[].
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "test_util.h"

/* Where the slots of the test lie in the guest; mapped by its page tables. */
#define WINDOW_GPA		(8ul * SZ_1G)
#define WINDOW_SIZE		(64ul * SZ_1M)

/* The memory behind them: 2MiB hugetlb pages, and as much in 4KiB pages. */
#define POOL_HVA		0x100000000000ul
#define POOL_HUGE_SIZE		(32ul * SZ_1M)
#define POOL_SIZE		(2 * POOL_HUGE_SIZE)

/* One page of bitmap for user space to give, followed by nothing. */
#define BITMAP_HVA		0x110000000000ul
#define BITMAP_SIZE		PAGE_SIZE
#define READ_ONLY_HVA		(BITMAP_HVA + 4 * PAGE_SIZE)
/* What is in it before a call. */
#define UNTOUCHED		0xa5

/* Logging this much takes too much memory for what it shows. */
#define MAX_LOGGED_SIZE		(64ul * SZ_1G)

#define SZ_1T			(1024ul * SZ_1G)

#define SYNC_PORT		0x80
#define NR_WRITES		24
#define NR_SLOTS		4
/* Ids at the limit of those that KVM takes: 0x7ffb and the two after it. */
#define HIGH_SLOT		0x7ffb
#define NR_HIGH_SLOTS		3
#define RING_SIZE		SZ_16K
#define CALLS_PER_VM		500
#define MAX_REPORTS		10

/* A descriptor of which the number is the same in each run. */
#define FILE_FD			900

enum op {
	OP_SET_REGION,
	OP_SET_REGION2,
	OP_GET,
	OP_CLEAR,
	OP_RESET_RINGS,
	OP_PRE_FAULT,
	OP_ENABLE_CAP,
	OP_RUN,
	NR_OPS,
};

static const char * const op_names[NR_OPS] = {
	[OP_SET_REGION]		= "KVM_SET_USER_MEMORY_REGION",
	[OP_SET_REGION2]	= "KVM_SET_USER_MEMORY_REGION2",
	[OP_GET]		= "KVM_GET_DIRTY_LOG",
	[OP_CLEAR]		= "KVM_CLEAR_DIRTY_LOG",
	[OP_RESET_RINGS]	= "KVM_RESET_DIRTY_RINGS",
	[OP_PRE_FAULT]		= "KVM_PRE_FAULT_MEMORY",
	[OP_ENABLE_CAP]		= "KVM_ENABLE_CAP",
	[OP_RUN]		= "KVM_RUN",
};

struct record {
	u32 op;
	s32 ret;
	u64 err;
	u64 hash;
};

/* What a run of the default length must have met, success being 0. */
static const struct {
	enum op op;
	int err;
} want_errors[] = {
	{ OP_SET_REGION, 0 },
	{ OP_SET_REGION, EINVAL },
	{ OP_SET_REGION, EEXIST },
	{ OP_SET_REGION2, 0 },
	{ OP_SET_REGION2, EINVAL },
	{ OP_SET_REGION2, EEXIST },
	{ OP_GET, 0 },
	{ OP_GET, EINVAL },
	{ OP_GET, ENOENT },
	{ OP_GET, EFAULT },
	{ OP_GET, ENXIO },
	{ OP_CLEAR, 0 },
	{ OP_CLEAR, EINVAL },
	{ OP_CLEAR, ENOENT },
	{ OP_CLEAR, EFAULT },
	{ OP_CLEAR, ENXIO },
	{ OP_RESET_RINGS, 0 },
	{ OP_RESET_RINGS, EINVAL },
	{ OP_PRE_FAULT, 0 },
	{ OP_PRE_FAULT, EINVAL },
	{ OP_PRE_FAULT, ENOENT },
	{ OP_PRE_FAULT, EFAULT },
	{ OP_ENABLE_CAP, 0 },
	{ OP_ENABLE_CAP, EINVAL },
	{ OP_ENABLE_CAP, E2BIG },
	{ OP_RUN, 0 },
	{ OP_RUN, EFAULT },
};

/* The counts of each call and errno; an errno is below 134. */
static unsigned long counts[NR_OPS][134];

/* A slot of the VM, as far as the calls that succeeded tell. */
struct slot {
	u64 size;
	u64 gpa;
	u64 hva;
	u32 flags;
	/* Pages that the guest has written since the log was last cleared. */
	u8 written[WINDOW_SIZE / PAGE_SIZE / 8];
	/* Pages that may have been pre-faulted since then. */
	u8 prefaulted[BITMAP_SIZE];
};

static struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct kvm_regs entry;
	struct kvm_dirty_gfn *ring;
	/* Slots of both address spaces. */
	struct slot slots[2][1 + NR_SLOTS + NR_HIGH_SLOTS];
	/* The argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
	u64 manual_protect;
	/* The log may have holes, see enable_cap(). */
	bool inexact;
} t;

static struct guest_request {
	u64 nr;
	u64 gpas[NR_WRITES];
} request;

static FILE *file;
static bool comparing;
/* Whether what was recorded may have bits that are missing now. */
static bool fewer_bits;
static unsigned long nr_calls, nr_differences, nr_checked, nr_missing;
static u64 state;

static u64 rand64(void)
{
	/* xorshift64* */
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dull;
}

static u64 below(u64 n)
{
	return (rand64() >> 11) % n;
}

static bool chance(unsigned int percent)
{
	return below(100) < percent;
}

/* A value that a check may have forgotten, often near @around. */
static u64 boundary(u64 around)
{
	static const u64 values[] = {
		0, 1, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097,
		0x7ffe, 0x7fff, 0x8000, 0xffff, 0x10000,
		SZ_2M - PAGE_SIZE, SZ_2M, SZ_2M + PAGE_SIZE, SZ_1G,
		0x7fffffff, 0x80000000, 0xfee00000, 0xffffffc0, 0xffffffff,
		0x100000000, 0x7ffffffffffff000, 0x8000000000000000,
		1ul << 40, 1ul << 46, (1ul << 47) - PAGE_SIZE, 1ul << 47,
		(1ul << 52) - PAGE_SIZE, 1ul << 52, 0xffffffff80000000,
		0xfffffffffffff000, 0xffffffffffffffc0, 0xffffffffffffffff,
	};

	switch (below(4)) {
	case 0:
		return around + below(129) - 64;
	case 1:
		return around + (below(5) - 2) * PAGE_SIZE;
	case 2:
		return values[below(ARRAY_SIZE(values))];
	default:
		return rand64() >> below(64);
	}
}

static u64 hash_words(u64 hash, const void *data, size_t size)
{
	const u64 *word = data;

	for (; size; size -= sizeof(*word))
		hash = (hash ^ *word++) * 0x100000001b3ull;
	return hash;
}

/* Note what a call did.  The arguments are for the report of a difference. */
static void record(enum op op, int ret, int err, u64 hash, u64 a, u64 b, u64 c, u64 d)
{
	struct record now = {
		.op = op,
		.ret = ret,
		.err = ret < 0 ? err : 0,
		.hash = t.ring ? hash_words(hash, t.ring, RING_SIZE) : hash,
	}, then;

	nr_calls++;
	TEST_ASSERT(now.err < ARRAY_SIZE(counts[0]), "%s: errno %d", op_names[op], err);
	counts[op][now.err]++;

	if (!file)
		return;
	if (!comparing) {
		TEST_ASSERT(fwrite(&now, sizeof(now), 1, file) == 1, "Cannot write the records");
		return;
	}
	TEST_ASSERT(fread(&then, sizeof(then), 1, file) == 1,
		    "Only %lu calls were recorded: other options?", nr_calls - 1);
	if (!memcmp(&now, &then, sizeof(now)))
		return;
	if (nr_differences++ >= MAX_REPORTS)
		return;
	ksft_print_msg("call %lu: %s(%lx, %lx, %lx, %lx) returned %d errno %lu hash %lx\n",
		       nr_calls, op_names[op], a, b, c, d, now.ret, now.err, now.hash);
	ksft_print_msg("  recorded: %s returned %d errno %lu hash %lx\n",
		       then.op < NR_OPS ? op_names[then.op] : "?",
		       then.ret, then.err, then.hash);
}

/*
 * Note which bitmap a call gave back, for a log of @slot or, if that is NULL, for
 * none; it begins at the byte @first.  What follows the last byte that the call has
 * changed is left out.
 */
static void record_bitmap(const u8 *bitmap, const struct slot *slot, u64 first)
{
	static const char difference[] =
		"call %lu: pages from %u: log %#x, was %#x, written %#x, pre-faulted %#x\n";
	static u8 then[BITMAP_SIZE];
	u32 size = BITMAP_SIZE, recorded;
	unsigned int i;

	if (!file)
		return;
	while (size && bitmap[size - 1] == UNTOUCHED)
		size--;
	if (!comparing) {
		TEST_ASSERT(fwrite(&size, sizeof(size), 1, file) == 1 &&
			    fwrite(bitmap, 1, size, file) == size, "Cannot write a bitmap");
		return;
	}

	memset(then, UNTOUCHED, sizeof(then));
	TEST_ASSERT(fread(&recorded, sizeof(recorded), 1, file) == 1 &&
		    recorded <= sizeof(then) && fread(then, 1, recorded, file) == recorded,
		    "No bitmap was recorded: other options?");
	for (i = 0; i < sizeof(then); i++) {
		u8 missing = then[i] & ~bitmap[i], written = 0, prefaulted = 0;

		if (bitmap[i] == then[i])
			continue;
		if (slot && i >= first) {
			prefaulted = slot->prefaulted[i - first];
			if (i - first < sizeof(slot->written))
				written = slot->written[i - first];
		}
		if (fewer_bits && !(bitmap[i] & ~then[i]) &&
		    !(missing & ~prefaulted) && !(missing & written)) {
			nr_missing += __builtin_popcount(missing);
			continue;
		}
		if (nr_differences++ < MAX_REPORTS)
			ksft_print_msg(difference, nr_calls, 8 * i, bitmap[i], then[i], written,
				       prefaulted);
		break;
	}
}

static void guest_code(void)
{
	u64 i;

	for (;;) {
		for (i = 0; i < READ_ONCE(request.nr); i++)
			WRITE_ONCE(*(u64 *)request.gpas[i], i);
		asm volatile("outb %%al, %0" :: "i"(SYNC_PORT), "a"(0) : "memory");
	}
}

static struct slot *find_slot(u32 id)
{
	u16 as_id = id >> 16, low = id;

	if (low >= HIGH_SLOT && low < HIGH_SLOT + NR_HIGH_SLOTS)
		low = low - HIGH_SLOT + NR_SLOTS + 1;
	else if (low > NR_SLOTS)
		return NULL;
	return as_id < 2 && low ? &t.slots[as_id][low] : NULL;
}

static u32 random_slot_id(void)
{
	static const u32 ids[] = {
		0x7ffb, 0x7ffc, 0x7ffd, 0x7fff, 0x8000, 0xffff, 0x20001,
		0x10007, 0x17ffd, 0xffff0001, 0x7fff0001, 0x80000001, 0xffffffff,
	};

	if (chance(90))
		return (1 + below(NR_SLOTS)) | (chance(15) ? 0x10000 : 0);
	return ids[below(ARRAY_SIZE(ids))];
}

/* An address in user space for a bitmap of up to BITMAP_SIZE. */
static u64 random_buffer(void)
{
	static const u64 bad[] = {
		0, 1, PAGE_SIZE, READ_ONLY_HVA, BITMAP_HVA + BITMAP_SIZE,
		(1ul << 47) - PAGE_SIZE, 1ul << 47, 0xffff888000000000,
		0xfffffffffffffff8,
	};

	if (chance(80))
		return BITMAP_HVA;
	if (chance(50))
		return BITMAP_HVA + BITMAP_SIZE - below(256);
	return bad[below(ARRAY_SIZE(bad))];
}

static void log_begins(struct slot *slot)
{
	memset(slot->written, 0, sizeof(slot->written));
	memset(slot->prefaulted, 0, sizeof(slot->prefaulted));
}

static void set_region(void)
{
	struct kvm_userspace_memory_region2 region = {};
	enum op op = OP_SET_REGION + below(2);
	struct slot *slot;
	int ret, err;

	region.slot = random_slot_id();
	region.guest_memfd = chance(50) ? FILE_FD : -1;
	slot = find_slot(region.slot);

	if (slot && slot->size && chance(85)) {
		region.flags = slot->flags;
		region.guest_phys_addr = slot->gpa;
		region.memory_size = slot->size;
		region.userspace_addr = slot->hva;
		if (chance(70))
			region.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
		else if (chance(50))
			region.memory_size = 0;
		else
			region.guest_phys_addr += (below(5) - 2) * SZ_2M;
	} else {
		/* In step with the memory's huge pages, or not. */
		region.guest_phys_addr = WINDOW_GPA + below(28) * SZ_2M +
					 (chance(30) ? below(512) * PAGE_SIZE : 0);
		region.memory_size = (1 + below(4)) * SZ_2M -
				     (chance(30) ? below(512) * PAGE_SIZE : 0);
		region.userspace_addr = POOL_HVA + below(28) * SZ_2M +
					(chance(50) ? region.guest_phys_addr % SZ_2M : 0);
		region.flags = (chance(60) ? KVM_MEM_LOG_DIRTY_PAGES : 0) |
			       (chance(10) ? KVM_MEM_READONLY : 0);
	}

	while (chance(25)) {
		switch (below(5)) {
		case 0:
			region.flags = boundary(1u << below(32));
			break;
		case 1:
			region.guest_phys_addr = boundary(region.guest_phys_addr);
			break;
		case 2:
			region.memory_size = boundary(region.memory_size);
			break;
		case 3:
			region.userspace_addr = boundary(region.userspace_addr);
			break;
		case 4:
			region.guest_memfd_offset = boundary(0);
			break;
		}
	}
	/* The guest must not get at the memory of the test itself. */
	if (region.userspace_addr < 1ul << 47 &&
	    (region.userspace_addr < POOL_HVA || region.userspace_addr >= BITMAP_HVA))
		region.userspace_addr = POOL_HVA + region.userspace_addr % SZ_1T;
	if (region.memory_size > MAX_LOGGED_SIZE)
		region.flags &= ~KVM_MEM_LOG_DIRTY_PAGES;

	if (op == OP_SET_REGION)
		ret = ioctl(t.vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
	else
		ret = ioctl(t.vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
	err = errno;
	record(op, ret, err, 0, (u64)region.slot << 32 | region.flags, region.guest_phys_addr,
	       region.memory_size, region.userspace_addr);
	if (ret || !slot)
		return;

	/* The log begins anew, or ends. */
	if ((slot->flags ^ region.flags) & KVM_MEM_LOG_DIRTY_PAGES ||
	    !slot->size || !region.memory_size)
		log_begins(slot);
	slot->flags = region.memory_size ? region.flags : 0;
	slot->gpa = region.guest_phys_addr;
	slot->size = region.memory_size;
	slot->hva = region.userspace_addr;
}

static bool is_logged(const struct slot *slot)
{
	return slot && slot->size && slot->flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static void get_log(void)
{
	struct kvm_dirty_log log = { .slot = random_slot_id() };
	struct slot *slot = find_slot(log.slot);
	u8 *bitmap = (u8 *)BITMAP_HVA;
	unsigned int i;
	int ret, err;

	log.padding2 = random_buffer();
	log.padding1 = rand64();
	memset(bitmap, UNTOUCHED, BITMAP_SIZE);

	ret = __vm_ioctl(t.vm, KVM_GET_DIRTY_LOG, &log);
	err = errno;
	record(OP_GET, ret, err, 0, log.slot, log.padding2, slot ? slot->size : 0,
	       slot ? slot->flags : 0);
	record_bitmap(bitmap, slot, log.padding2 - BITMAP_HVA);

	if (!slot || (ret && err != EFAULT))
		return;
	TEST_ASSERT(is_logged(slot), "There is no log of slot 0x%x", log.slot);

	if (!ret && log.padding2 == BITMAP_HVA && !t.inexact) {
		for (i = 0; i < sizeof(slot->written); i++)
			TEST_ASSERT(!(slot->written[i] & ~bitmap[i]),
				    "Slot 0x%x, pages from %u: written 0x%x, logged 0x%x",
				    log.slot, 8 * i, slot->written[i], bitmap[i]);
		nr_checked++;
	}
	/* Whether user space could take the log or not, it is gone. */
	if (!t.manual_protect)
		log_begins(slot);
}

static void clear_log(void)
{
	struct kvm_clear_dirty_log log = { .slot = random_slot_id() };
	struct slot *slot = find_slot(log.slot);
	u64 npages = slot && slot->size ? slot->size / PAGE_SIZE : 1024;
	u64 *bitmap = (u64 *)BITMAP_HVA;
	unsigned int i, density = below(3);
	int ret, err;

	log.first_page = below(npages / 64 + 1) * 64;
	log.num_pages = npages - log.first_page;
	if (chance(70))
		log.num_pages = below(log.num_pages / 64 + 1) * 64;
	if (chance(20))
		log.first_page = boundary(log.first_page);
	if (chance(20))
		log.num_pages = boundary(log.num_pages);
	log.padding2 = random_buffer();

	for (i = 0; i < BITMAP_SIZE / sizeof(*bitmap); i++)
		bitmap[i] = density ? rand64() & (density > 1 ? rand64() : ~0ull) : ~0ull;

	ret = __vm_ioctl(t.vm, KVM_CLEAR_DIRTY_LOG, &log);
	err = errno;
	record(OP_CLEAR, ret, err, 0, log.slot, log.first_page, log.num_pages, log.padding2);

	if (ret || !slot)
		return;
	TEST_ASSERT(is_logged(slot) && log.first_page + log.num_pages <= npages,
		    "Cleared %u pages from %llu of slot 0x%x", log.num_pages,
		    log.first_page, log.slot);
	for (i = 0; i < log.num_pages; i++) {
		u64 page = log.first_page + i;

		if (page / 8 < sizeof(slot->written) &&
		    ((u8 *)log.padding2)[i / 8] & 1 << i % 8) {
			slot->written[page / 8] &= ~(1 << page % 8);
			slot->prefaulted[page / 8] &= ~(1 << page % 8);
		}
	}
}

static void reset_rings(void)
{
	unsigned int i;
	int ret, err;

	/*
	 * The ring is user space's to write, whatever it writes.  But entries
	 * that KVM has not filled must not be offered for reset: then KVM's own
	 * ring overtakes itself, and warns.
	 */
	for (i = 0; t.ring && i < RING_SIZE / sizeof(*t.ring); i++) {
		struct kvm_dirty_gfn *gfn = &t.ring[i];

		if (!(gfn->flags & KVM_DIRTY_GFN_F_DIRTY) || chance(20))
			continue;
		if (chance(20))
			gfn->slot = chance(70) ? random_slot_id() : boundary(0);
		if (chance(20))
			gfn->offset = chance(70) ? below(2048) : boundary(0);
		WRITE_ONCE(gfn->flags, KVM_DIRTY_GFN_F_RESET |
				       (chance(50) ? boundary(0) : KVM_DIRTY_GFN_F_DIRTY));
	}

	ret = __vm_ioctl(t.vm, KVM_RESET_DIRTY_RINGS, NULL);
	err = errno;
	record(OP_RESET_RINGS, ret, err, 0, 0, 0, 0, 0);
}

/* How much of the ring is in use. */
static unsigned int ring_entries(void)
{
	unsigned int i, nr = 0;

	for (i = 0; i < RING_SIZE / sizeof(*t.ring); i++)
		nr += !!t.ring[i].flags;
	return nr;
}

/* Note which pages of logged slots a range has; returns whether there are any. */
static bool mark_prefaulted(u64 gpa, u64 size)
{
	unsigned int id;
	bool any = false;
	u64 page;

	for (id = 1; id < ARRAY_SIZE(t.slots[0]); id++) {
		struct slot *slot = &t.slots[0][id];

		if (!is_logged(slot))
			continue;
		for (page = 0; page < slot->size / PAGE_SIZE; page++) {
			u64 at = slot->gpa + page * PAGE_SIZE;

			if (page / 8 >= sizeof(slot->prefaulted))
				break;
			if (at + PAGE_SIZE <= gpa || at - gpa >= size)
				continue;
			slot->prefaulted[page / 8] |= 1 << page % 8;
			any = true;
		}
	}
	return any;
}

static void pre_fault(void)
{
	struct kvm_pre_fault_memory range = {
		.gpa = WINDOW_GPA + below(WINDOW_SIZE / PAGE_SIZE) * PAGE_SIZE,
		.size = (1 + below(chance(20) ? 4096 : 64)) * PAGE_SIZE,
	};
	struct kvm_pre_fault_memory asked;
	int ret, err;

	while (chance(20)) {
		switch (below(3)) {
		case 0:
			range.gpa = boundary(range.gpa);
			break;
		case 1:
			range.size = boundary(range.size);
			break;
		case 2:
			range.flags = boundary(0);
			break;
		}
	}
	/* KVM lets this overflow the ring, and warns. */
	if (t.ring && !(range.size % PAGE_SIZE) && range.size > SZ_256K)
		range.size = SZ_256K;
	if (t.ring && ring_entries() > RING_SIZE / sizeof(*t.ring) / 2)
		return;
	if (mark_prefaulted(range.gpa, range.size) && t.ring)
		return;
	asked = range;

	/* What remains to do is left in the range, so going on is simple. */
	do {
		ret = __vcpu_ioctl(t.vcpu, KVM_PRE_FAULT_MEMORY, &range);
		err = errno;
	} while (ret && (err == EINTR || err == EAGAIN));
	record(OP_PRE_FAULT, ret, err, hash_words(0, &range, sizeof(range)),
	       asked.gpa, asked.size, asked.flags, 0);
}

static void enable_cap(void)
{
	static const u32 caps[] = {
		KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		KVM_CAP_MANUAL_DIRTY_LOG_PROTECT, KVM_CAP_DIRTY_LOG_RING,
		KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
		KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, KVM_CAP_PRE_FAULT_MEMORY,
	};
	struct kvm_enable_cap cap = { .cap = caps[below(ARRAY_SIZE(caps))] };
	int ret, err;

	if (chance(10))
		cap.flags = boundary(0);
	cap.args[0] = chance(70) ? below(4) : boundary(RING_SIZE);
	if (chance(10))
		cap.args[1 + below(3)] = boundary(0);
	/*
	 * A ring has no initial state.  Where logging begins without protecting
	 * anything all the same, what a ring gets is what happened to be
	 * protected before, which no contract says anything about.
	 */
	if (t.ring && cap.cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
		cap.args[0] &= ~KVM_DIRTY_LOG_INITIALLY_SET;

	ret = __vm_ioctl(t.vm, KVM_ENABLE_CAP, &cap);
	err = errno;
	record(OP_ENABLE_CAP, ret, err, 0, cap.cap, cap.flags, cap.args[0], cap.args[1]);
	if (ret || cap.cap != KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
		return;

	/*
	 * Slots that began with all bits set have writable huge pages, and only
	 * clearing in that mode protects those.  Thus a VM that leaves the mode
	 * while it logs loses writes, and has itself to blame.
	 */
	if (t.manual_protect & ~cap.args[0] & KVM_DIRTY_LOG_INITIALLY_SET)
		t.inexact = true;
	t.manual_protect = cap.args[0];
}

static void mark_written(u64 gpa)
{
	unsigned int id;

	for (id = 1; id <= NR_SLOTS; id++) {
		struct slot *slot = &t.slots[0][id];
		u64 page = (gpa - slot->gpa) / PAGE_SIZE;

		if (!is_logged(slot) || slot->flags & KVM_MEM_READONLY)
			continue;
		if (gpa >= slot->gpa && gpa - slot->gpa < slot->size &&
		    page / 8 < sizeof(slot->written))
			slot->written[page / 8] |= 1 << page % 8;
	}
}

static void run_guest(void)
{
	struct kvm_run *run = t.vcpu->run;
	unsigned int i, exits;
	u64 hash = 0, at;
	int ret, err;

	request.nr = below(NR_WRITES + 1);
	at = WINDOW_GPA + below(WINDOW_SIZE / PAGE_SIZE) * PAGE_SIZE;
	for (i = 0; i < request.nr; i++) {
		/* Around one place, or anywhere. */
		if (chance(50))
			at = WINDOW_GPA + below(WINDOW_SIZE / PAGE_SIZE) * PAGE_SIZE;
		else
			at = WINDOW_GPA + (at + PAGE_SIZE - WINDOW_GPA) % WINDOW_SIZE;
		request.gpas[i] = at + below(512) * sizeof(u64) % PAGE_SIZE;
	}
	sync_global_to_guest(t.vm, request);

	for (exits = 0;; exits++) {
		TEST_ASSERT(exits <= 2 * NR_WRITES, "The guest doesn't get anywhere");
		do {
			ret = __vcpu_run(t.vcpu);
			err = errno;
		} while (ret && err == EINTR);

		hash = hash_words(hash, &(u64){ ret ? -1ull : run->exit_reason }, sizeof(u64));
		if (ret || run->exit_reason != KVM_EXIT_MMIO)
			break;
		hash = hash_words(hash, &(u64){ run->mmio.phys_addr }, sizeof(u64));
	}

	if (!ret && run->exit_reason == KVM_EXIT_IO) {
		for (i = 0; i < request.nr; i++)
			mark_written(request.gpas[i]);
	} else {
		TEST_ASSERT(ret ? err == EFAULT :
			    run->exit_reason == KVM_EXIT_DIRTY_RING_FULL,
			    "The guest's run returned %d errno %d, exit reason %s",
			    ret, err, exit_reason_str(run->exit_reason));
		vcpu_regs_set(t.vcpu, &t.entry);
	}
	record(OP_RUN, ret, err, hash, request.nr, request.gpas[0], exits, run->exit_reason);
}

static void free_vm(void)
{
	if (t.ring)
		kvm_munmap(t.ring, RING_SIZE);
	if (t.vm)
		kvm_vm_free(t.vm);
	memset(&t, 0, sizeof(t));
}

static void new_vm(void)
{
	static const u64 modes[] = {
		0, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
		KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
	};
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING };
	bool ring = chance(20);
	int ret, err;

	free_vm();
	t.vm = vm_create(1);

	/* Too small, no power of two, too big; then right, once and twice. */
	if (ring) {
		u64 sizes[] = { 0, 1, 4095, 4096 - 512, RING_SIZE - 1, SZ_2M, SZ_1G,
				RING_SIZE, RING_SIZE };
		unsigned int i;

		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			cap.args[0] = sizes[i];
			ret = __vm_ioctl(t.vm, KVM_ENABLE_CAP, &cap);
			err = errno;
			record(OP_ENABLE_CAP, ret, err, 0, cap.cap, 0, cap.args[0], 0);
		}
	} else {
		t.manual_protect = modes[below(ARRAY_SIZE(modes))];
		cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
		cap.args[0] = t.manual_protect;
		ret = __vm_ioctl(t.vm, KVM_ENABLE_CAP, &cap);
		err = errno;
		record(OP_ENABLE_CAP, ret, err, 0, cap.cap, 0, cap.args[0], 0);
	}

	t.vcpu = vm_vcpu_add(t.vm, 0, guest_code);
	vcpu_regs_get(t.vcpu, &t.entry);
	if (ring)
		t.ring = __kvm_mmap(RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, t.vcpu->fd,
				    KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
	virt_map_level(t.vm, WINDOW_GPA, WINDOW_GPA, WINDOW_SIZE, PG_LEVEL_2M);
}

static void one_call(void)
{
	u64 n = below(100);

	if (n < 15)
		set_region();
	else if (n < 40)
		get_log();
	else if (n < 70)
		clear_log();
	else if (n < (t.ring ? 80 : 71))
		reset_rings();
	else if (n < 85)
		pre_fault();
	else if (n < 92)
		enable_cap();
	else
		run_guest();
}

static void *map_fixed(u64 hva, size_t size, int prot, int flags)
{
	void *mem = mmap((void *)hva, size, prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | flags, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

static void map_memory(void)
{
	void *mem;

	mem = map_fixed(POOL_HVA, POOL_HUGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_HUGETLB | MAP_HUGE_2MB);
	__TEST_REQUIRE(mem, "Not enough free huge pages of 2 MiB, %lu are needed",
		       POOL_HUGE_SIZE / SZ_2M);
	memset(mem, 0, POOL_HUGE_SIZE);

	mem = map_fixed(POOL_HVA + POOL_HUGE_SIZE, POOL_SIZE - POOL_HUGE_SIZE,
			PROT_READ | PROT_WRITE, 0);
	TEST_ASSERT(mem, "mmap() failed");
	/* Whether there are huge pages must not depend on what ran before. */
	kvm_madvise(mem, POOL_SIZE - POOL_HUGE_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 0, POOL_SIZE - POOL_HUGE_SIZE);

	TEST_ASSERT(map_fixed(BITMAP_HVA, BITMAP_SIZE, PROT_READ | PROT_WRITE, 0) &&
		    map_fixed(READ_ONLY_HVA, BITMAP_SIZE, PROT_READ, 0), "mmap() failed");
	TEST_ASSERT(dup2(open_path_or_exit("/dev/zero", O_RDONLY), FILE_FD) == FILE_FD,
		    "dup2() failed");
}

/* The record begins with which MMU it is of. */
static void open_file(const char *name)
{
	u64 rust = has_mmu_stats() && get_kvm_param_bool("tdp_mmu"), recorded;

	file = fopen(name, "rbe");
	comparing = file;
	if (!file)
		file = fopen(name, "wbe");
	TEST_ASSERT(file, "Cannot write '%s'", name);
	if (!comparing) {
		TEST_ASSERT(fwrite(&rust, sizeof(rust), 1, file) == 1, "Cannot write '%s'", name);
		return;
	}
	TEST_ASSERT(fread(&recorded, sizeof(recorded), 1, file) == 1, "'%s' is empty", name);
	fewer_bits = rust && !recorded;
}

static void report(bool is_default)
{
	unsigned int op, err, i;

	for (op = 0; op < NR_OPS; op++) {
		for (err = 0; err < ARRAY_SIZE(counts[op]); err++) {
			if (counts[op][err])
				ksft_print_msg("%-28s %-8s %7lu\n", op_names[op],
					       err ? strerrorname_np(err) : "ok",
					       counts[op][err]);
		}
	}
	ksft_print_msg("%lu logs had all that was written\n", nr_checked);

	for (i = 0; is_default && i < ARRAY_SIZE(want_errors); i++)
		TEST_ASSERT(counts[want_errors[i].op][want_errors[i].err],
			    "%s never returned %s", op_names[want_errors[i].op],
			    want_errors[i].err ? strerrorname_np(want_errors[i].err) : "0");

	if (comparing)
		ksft_print_msg("%lu of %lu calls differ from what was recorded\n",
			       nr_differences, nr_calls);
	if (fewer_bits)
		ksft_print_msg("%lu bits are missing of pages that were pre-faulted only\n",
			       nr_missing);
	TEST_ASSERT(!fewer_bits || !is_default || nr_missing,
		    "Pre-faulting sets bits, as upstream does");
	TEST_ASSERT(!nr_differences, "%lu of %lu calls differ from what was recorded",
		    nr_differences, nr_calls);
}

int main(int argc, char *argv[])
{
	unsigned long want = 120000, seed = 1, i;
	int opt;

	while ((opt = getopt(argc, argv, "hf:n:s:")) != -1) {
		switch (opt) {
		case 'f':
			open_file(optarg);
			break;
		case 'n':
			want = atoi_positive("Calls", optarg);
			break;
		case 's':
			seed = atoi_positive("Seed", optarg);
			break;
		case 'h':
		default:
			printf("usage: %s [-h] [-f file] [-n calls] [-s seed]\n"
			       " -f: write the record of each call to this file or, if it exists,\n"
			       "     compare with it\n"
			       " -n: how many calls (default: %lu)\n"
			       " -s: seed of the random numbers, not 0 (default: %lu)\n",
			       argv[0], want, seed);
			exit(opt == 'h' ? 0 : KSFT_FAIL);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_DIRTY_LOG_RING));
	map_memory();

	state = seed;
	for (i = 0; nr_calls < want; i++) {
		if (i % CALLS_PER_VM == 0)
			new_vm();
		one_call();
	}
	free_vm();

	TEST_ASSERT(!file || !fclose(file), "Cannot write the records");
	report(want >= 100000);
	return 0;
}
