// SPDX-License-Identifier: GPL-2.0
/*
 * Everybody who changes a VM's page tables, at once
 *
 * vCPUs write to four memslots, and read back what they wrote.  Meanwhile, each
 * in a thread of its own,
 *
 *  - dirty logging of the first is switched on and off (split, promote),
 *  - the log of the second is collected and cleared, and the pages in it are
 *    copied, as for a migration (split, write-protect),
 *  - the host's mapping of the third is changed, taken away, and made huge again
 *    (MMU notifiers), and its pages are made idle (aging, which takes no lock),
 *  - the fourth is deleted, added elsewhere and moved back (all page tables are
 *    zapped), so that writes to it are MMIO at times.
 *
 * That is done twice: with logs whose bits are clear at first, where enabling
 * splits huge pages, and with such whose bits are set, where clearing does.
 *
 * In the end the copy of the second has to be the same as its memory: no write
 * was lost.  Apart from that it is for the kernel's own checks to complain: this
 * test is what to run where there are lockdep, KASAN or KCSAN.
 *
 * With -2 it is guests of the guest that write, each at addresses of its own, so
 * that the slots are mapped by shadow pages, and each frame more than once.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "nested_l1.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define MAX_VCPUS	8
#define STRIDE		3

enum slot {
	SLOT_TOGGLED = 1,
	SLOT_CLEARED,
	SLOT_REMAPPED,
	SLOT_MOVED,
	NR_SLOTS,
};

/* Far enough apart that a slot can be moved up by its size. */
#define BASE(slot)	((8ul + (slot)) * SZ_1G)

/* With -2, the addresses of a vCPU are so far above those of the one before it. */
#define ALIAS_STRIDE	(64ul * SZ_1G)

static const u64 sizes[NR_SLOTS] = {
	[SLOT_TOGGLED]	= 16 * SZ_1M,
	[SLOT_CLEARED]	= 16 * SZ_1M,
	[SLOT_REMAPPED]	= 4 * SZ_1M,
	[SLOT_MOVED]	= 2 * SZ_1M,
};

#define CLEARED_PAGES	(16 * SZ_1M / PAGE_SIZE)

struct guest_cpu {
	u64 stop;
	u64 rounds;
} __aligned(PAGE_SIZE);

static struct guest_cpu guest_cpus[MAX_VCPUS];
static u64 nr_vcpus = 2;

static bool initially_set, nested;
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[MAX_VCPUS];
static u8 *mem[NR_SLOTS];
static bool stop;

/* Copies of the first word of each page, and the log that says which to copy. */
static u64 copy[CLEARED_PAGES];
static DECLARE_BITMAP(dirty, CLEARED_PAGES);
static DECLARE_BITMAP(all, 16 * SZ_1M / PAGE_SIZE);

/* A vCPU has pages of its own, so it knows what is in them. */
static void guest_check(u64 index, u64 base, u64 size, u64 round)
{
	u64 page, value, *word;

	for (page = index; page < size / PAGE_SIZE; page += nr_vcpus * STRIDE) {
		word = (u64 *)(base + (page + nr_vcpus * (round % STRIDE)) % (size / PAGE_SIZE) *
			       PAGE_SIZE);
		value = round << 32 | page;
		WRITE_ONCE(*word, value);
		GUEST_ASSERT_EQ(READ_ONCE(*word), value);
	}
}

/* Not static, for l2_guest_entry. */
void guest_code(u64 index);
void guest_code(u64 index)
{
	u64 alias = nested ? index * ALIAS_STRIDE : 0;
	u64 remapped = BASE(SLOT_REMAPPED) + alias;
	struct guest_cpu *self = &guest_cpus[index];
	u64 round, offset;

	for (round = 1; !READ_ONCE(self->stop); round++) {
		guest_check(index, BASE(SLOT_TOGGLED) + alias, sizes[SLOT_TOGGLED], round);
		guest_check(index, BASE(SLOT_CLEARED) + alias, sizes[SLOT_CLEARED], round);
		/* The host makes the first half read-only, and throws the second away. */
		for (offset = index * PAGE_SIZE; offset < sizes[SLOT_REMAPPED];
		     offset += 16 * PAGE_SIZE) {
			READ_ONCE(*(u64 *)(remapped + offset));
			if (offset >= sizes[SLOT_REMAPPED] / 2)
				WRITE_ONCE(*(u64 *)(remapped + offset), round);
		}
		WRITE_ONCE(*(u64 *)(BASE(SLOT_MOVED) + alias + index * PAGE_SIZE), round);
		WRITE_ONCE(self->rounds, round);
	}
	GUEST_DONE();
}

/* L2 starts here, with the index of its vCPU on the stack. */
extern char l2_guest_entry[];
asm("l2_guest_entry:\n\t"
	"mov (%rsp), %rdi\n\t"
	"call guest_code\n\t"
	"ud2\n");

static void l1_guest_code(void *data, u64 index)
{
	if (this_cpu_has(X86_FEATURE_VMX))
		*(u64 *)((struct vmx_pages *)data)->stack = index;
	else
		*(u64 *)((struct svm_test_data *)data)->stack = index;
	run_l2(data, l2_guest_entry);
}

static void *run_vcpu(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	struct ucall uc;

	for (;;) {
		vcpu_run(vcpu);
		/* The fourth slot is not there just now. */
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
			continue;
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_DONE:
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected exit: %s",
				  exit_reason_str(vcpu->run->exit_reason));
		}
	}
}

static void set_slot(enum slot slot, u32 flags, u64 base, u64 size)
{
	vm_set_user_memory_region(vm, slot, flags, base, size, mem[slot]);
}

static void toggle(void)
{
	u64 base = BASE(SLOT_TOGGLED), size = sizes[SLOT_TOGGLED];

	set_slot(SLOT_TOGGLED, KVM_MEM_LOG_DIRTY_PAGES, base, size);
	if (initially_set)
		kvm_vm_clear_dirty_log(vm, SLOT_TOGGLED, all, 0, size / PAGE_SIZE);
	set_slot(SLOT_TOGGLED, 0, base, size);
}

static void collect(void)
{
	u64 first, page, chunk = 1024;

	kvm_vm_get_dirty_log(vm, SLOT_CLEARED, dirty);
	for (first = 0; first < CLEARED_PAGES; first += chunk)
		kvm_vm_clear_dirty_log(vm, SLOT_CLEARED, dirty + first / BITS_PER_LONG,
				       first, chunk);
	/* After clearing, so that a write that comes now is in the log again. */
	for (page = 0; page < CLEARED_PAGES; page++) {
		if (test_bit(page, dirty))
			copy[page] = READ_ONCE(*(u64 *)(mem[SLOT_CLEARED] + page * PAGE_SIZE));
	}
}

static void remap(void)
{
	u8 *at = mem[SLOT_REMAPPED];
	u64 size = sizes[SLOT_REMAPPED];

	TEST_ASSERT(!mprotect(at, size / 2, PROT_READ), "mprotect failed");
	TEST_ASSERT(!mprotect(at, size / 2, PROT_READ | PROT_WRITE), "mprotect failed");
	kvm_madvise(at + size / 2, size / 2, MADV_DONTNEED);
	/* May find no memory in one piece, or somebody else at work. */
	madvise(at, size, MADV_COLLAPSE);
}

/* Makes the pages idle that /proc/self/pagemap shows, a word of the bitmap at a time. */
static void age(void)
{
	static int pagemap = -1, bitmap = -1;
	u64 page, entry, word, ones = ~0ull;

	if (pagemap < 0) {
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		bitmap = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	}
	for (page = 0; page < sizes[SLOT_REMAPPED] / PAGE_SIZE && bitmap >= 0; page += 64) {
		word = (u64)mem[SLOT_REMAPPED] / PAGE_SIZE + page;
		if (pread(pagemap, &entry, 8, word * 8) != 8 || !(entry >> 63))
			continue;
		word = (entry & GENMASK_ULL(54, 0)) / 64;
		/* Writing clears the accessed state, reading looks at it. */
		if (pwrite(bitmap, &ones, 8, word * 8) != 8 ||
		    pread(bitmap, &entry, 8, word * 8) != 8)
			break;
	}
}

static void move(void)
{
	u64 base = BASE(SLOT_MOVED), size = sizes[SLOT_MOVED];

	set_slot(SLOT_MOVED, 0, base, 0);
	set_slot(SLOT_MOVED, 0, base + size, size);
	set_slot(SLOT_MOVED, 0, base, size);
	/* Let the guest get on a little between two zaps. */
	usleep(10000);
}

static struct party {
	const char *name;
	void (*once)(void);
	pthread_t thread;
	u64 rounds;
} parties[] = {
	{ "toggle",	toggle },
	{ "collect",	collect },
	{ "remap",	remap },
	{ "age",	age },
	{ "move",	move },
};

static void *run_party(void *arg)
{
	struct party *party = arg;

	while (!READ_ONCE(stop)) {
		party->once();
		WRITE_ONCE(party->rounds, party->rounds + 1);
	}
	return NULL;
}

static struct guest_cpu *host_view(unsigned int i)
{
	return addr_gva2hva(vm, (gva_t)&guest_cpus[i]);
}

/* Whether everybody has had a turn. */
static bool all_have_run(void)
{
	unsigned int i;

	for (i = 0; i < nr_vcpus; i++) {
		if (!READ_ONCE(host_view(i)->rounds))
			return false;
	}
	for (i = 0; i < ARRAY_SIZE(parties); i++) {
		if (!READ_ONCE(parties[i].rounds))
			return false;
	}
	return true;
}

static u8 *map_slot(enum slot slot, int flags)
{
	u8 *at;

	at = mmap(NULL, sizes[slot] + SZ_2M, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TEST_ASSERT(at != MAP_FAILED, "No memory");
	at = align_ptr_up(at, SZ_2M);
	if (!flags)
		return at;
	at = mmap(at, sizes[slot], PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0);
	__TEST_REQUIRE(at != MAP_FAILED, "Not enough free huge pages");
	return at;
}

/* Has L1 map the slots for L2, for each vCPU at its addresses. */
static void map_nested(void)
{
	enum slot slot;
	unsigned int i;
	u64 at, offset;
	gva_t data;

	vm_enable_tdp(vm);
	for (i = 0; i < nr_vcpus; i++) {
		data = vcpu_alloc_nested(vm);
		vcpu_args_set(vcpus[i], 2, data, (u64)i);
		for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++) {
			at = BASE(slot) + i * ALIAS_STRIDE;
			virt_map_level(vm, at, at, sizes[slot], PG_LEVEL_2M);
		}
	}

	/* All that L2 uses of it is allocated by now. */
	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < nr_vcpus; i++) {
		for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++) {
			at = BASE(slot) + i * ALIAS_STRIDE;
			for (offset = 0; offset < sizes[slot]; offset += SZ_2M)
				__virt_pg_map(vm, &vm->stage2_mmu, at + offset,
					      BASE(slot) + offset, PG_LEVEL_2M);
		}
	}
}

static void create_vm(void)
{
	enum slot slot;
	unsigned int i;

	vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, nr_vcpus, nested ? 1024 : 0,
				    nested ? (void *)l1_guest_code : (void *)guest_code,
				    vcpus);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
		      (initially_set ? KVM_DIRTY_LOG_INITIALLY_SET : 0));

	for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++) {
		mem[slot] = map_slot(slot, slot <= SLOT_CLEARED ? MAP_HUGETLB | MAP_HUGE_2MB : 0);
		kvm_madvise(mem[slot], sizes[slot],
			    slot <= SLOT_CLEARED ? MADV_NORMAL : MADV_HUGEPAGE);
		memset(mem[slot], 0, sizes[slot]);
		set_slot(slot, slot == SLOT_CLEARED ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			 BASE(slot), sizes[slot]);
		if (!nested)
			virt_map_level(vm, BASE(slot), BASE(slot), sizes[slot], PG_LEVEL_2M);
	}
	if (nested)
		map_nested();
	for (i = 0; i < nr_vcpus && !nested; i++)
		vcpu_args_set(vcpus[i], 1, (u64)i);
	sync_global_to_guest(vm, nr_vcpus);
	sync_global_to_guest(vm, nested);
}

static void run(unsigned int seconds)
{
	pthread_t threads[MAX_VCPUS];
	u64 page, lost = 0, now;
	enum slot slot;
	unsigned int i;

	memset(guest_cpus, 0, sizeof(guest_cpus));
	memset(copy, 0, sizeof(copy));
	WRITE_ONCE(stop, false);
	create_vm();

	for (i = 0; i < nr_vcpus; i++)
		kvm_pthread_create(&threads[i], NULL, run_vcpu, vcpus[i]);
	for (i = 0; i < ARRAY_SIZE(parties); i++) {
		parties[i].rounds = 0;
		kvm_pthread_create(&parties[i].thread, NULL, run_party, &parties[i]);
	}

	/* However slow the machine is: each shall have met the others. */
	for (i = 0; i < seconds || !all_have_run(); i++)
		sleep(1);

	WRITE_ONCE(stop, true);
	for (i = 0; i < ARRAY_SIZE(parties); i++)
		kvm_pthread_join(parties[i].thread, NULL);
	for (i = 0; i < nr_vcpus; i++)
		WRITE_ONCE(host_view(i)->stop, 1);
	for (i = 0; i < nr_vcpus; i++) {
		kvm_pthread_join(threads[i], NULL);
		ksft_print_msg("vCPU %u: %lu rounds\n", i, host_view(i)->rounds);
	}
	for (i = 0; i < ARRAY_SIZE(parties); i++)
		ksft_print_msg("%s: %lu rounds\n", parties[i].name, parties[i].rounds);

	/* The vCPUs stand still: what is not copied after this was never logged. */
	collect();
	for (page = 0; page < CLEARED_PAGES; page++) {
		now = *(u64 *)(mem[SLOT_CLEARED] + page * PAGE_SIZE);
		if (copy[page] == now)
			continue;
		if (!lost++)
			ksft_print_msg("page 0x%lx: 0x%lx in memory, 0x%lx in the copy\n",
				       page, now, copy[page]);
	}
	ksft_test_result(!lost, "bits %s at first: %lu of %lu pages differ from their copies\n",
			 initially_set ? "set" : "clear", lost, (u64)CLEARED_PAGES);

	kvm_vm_free(vm);
	for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++)
		kvm_munmap(mem[slot], sizes[slot]);
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 5;
	int opt;

	while ((opt = getopt(argc, argv, "2n:t:")) != -1) {
		switch (opt) {
		case '2':
			nested = true;
			break;
		case 'n':
			nr_vcpus = atoi_positive("vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= MAX_VCPUS && !(nr_vcpus & (nr_vcpus - 1)),
				    "The vCPUs have to be a power of 2, up to %d", MAX_VCPUS);
			break;
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		default:
			printf("usage: %s [-2] [-n vcpus] [-t seconds]\n", argv[0]);
			exit(KSFT_FAIL);
		}
	}
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	if (nested)
		TEST_REQUIRE(kvm_cpu_has_tdp());
	bitmap_fill(all, 16 * SZ_1M / PAGE_SIZE);

	ksft_print_header();
	ksft_set_plan(2);
	run(seconds);
	initially_set = true;
	run(seconds);
	ksft_finished();
}
