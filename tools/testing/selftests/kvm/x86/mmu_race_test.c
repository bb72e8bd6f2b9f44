// SPDX-License-Identifier: GPL-2.0
/*
 * Everybody who changes a VM's page tables, at once
 *
 * vCPUs write to four memslots and read back what they wrote.  Meanwhile, each in a thread of
 * its own,
 *
 *  - dirty logging of the first slot is toggled (split, promote),
 *  - the log of the second is read and cleared, and its dirty pages are copied, as in a
 *    migration (split, write-protect); by two threads, each for half of the memory, if it is
 *    KVM_CLEAR_DIRTY_LOG that clears the bits,
 *  - the host's mapping of the third is changed, unmapped and made huge again (MMU notifiers),
 *    and its pages are marked idle (aging, which takes no lock),
 *  - the fourth is deleted, created elsewhere and moved back (all page tables are zapped), so
 *    that writes to it are MMIO at times,
 *  - the pages of all four, and of SMM, are split, kept small and recovered by userspace, if
 *    KVM has KVM_SPLIT_HUGE_PAGES.
 *
 * Every fourth time, a process of its own toggles or reads the log, and is killed in the
 * middle; except in KVM_RESET_DIRTY_RINGS, which forgets pages when a signal arrives (-k kills
 * it there, too, to test a fix).
 *
 * The vCPUs also call functions in the first and the third slot.  With kvm.nx_huge_pages, that
 * splits huge pages, which KVM's worker recovers every kvm.nx_huge_pages_recovery_period_ms.
 * And they enter SMM, which has memslots of its own for the memory of the first two slots, and
 * writes to all of it; those slots are logged, toggled and read as well.
 *
 * Repeat for each kind of dirty log: bits that KVM_GET_DIRTY_LOG clears; bits that
 * KVM_CLEAR_DIRTY_LOG clears, and that are initially clear, so that enabling splits huge pages,
 * or initially set, so that clearing splits them; and the dirty ring.
 *
 * In the end, the copy of the second slot must equal its memory: no write was lost.  Everything
 * else is left to the kernel's own checks: run this test with lockdep, KASAN or KCSAN.
 *
 * With -2, the writers are nested guests, each at addresses of its own, so that the slots are
 * mapped by shadow pages, and each frame more than once.  One more vCPU writes to the same
 * frames from L1, and SMM isn't entered.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <asm/kvm_split.h>
#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "apic.h"
#include "dirty_log_copy.h"
#include "kvm_util.h"
#include "nested_l1.h"
#include "processor.h"
#include "run_vcpu.h"
#include "smm.h"
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

/* Which word of a page is whose. */
#define WORD_VCPU	0
#define WORD_L1		1
#define WORD_SMM	2
/* Here the pages that vCPUs call have a RET. */
#define CODE_OFFSET	(7 * PAGE_SIZE + PAGE_SIZE / 2)
#define RET_OPCODE	0xc3

/*
 * SMM sees the first slot and the second, one after the other, where addresses of 32
 * bits reach; and has a part of its memory for each vCPU.
 */
#define SMM_SLOT(slot)	(1 << 16 | (16 + (slot)))
#define SMM_BASE(slot)	(SZ_1G + ((slot) - SLOT_TOGGLED) * 16ul * SZ_1M)
#define SMRAM_BASE	(16ul * SZ_1M)
/* It writes to one page of so many, and so does L1. */
#define SMM_STRIDE	8
#define L1_STRIDE	5

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

/* With -2 there is one more, which stays in L1. */
static struct guest_cpu guest_cpus[MAX_VCPUS + 1];
static u64 nr_vcpus = 2;

static bool nested, has_smm, kill_resets;
static unsigned int nr_all_vcpus;
static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[MAX_VCPUS + 1];
static u8 *mem[NR_SLOTS];
static bool stop;
/* The fourth slot stays, so that no page tables are zapped. */
static bool stay;

/* The second is that of the other half, where it is CLEAR that takes the bits. */
static struct dirty_log_copy log, other_half;
static DECLARE_BITMAP(all, 16 * SZ_1M / PAGE_SIZE);

/* Writes EBX to one page in SMM_STRIDE, from ESI to EDI; in real mode, with segments of 4 GiB. */
static const u8 smi_handler[] = {
	0x67, 0x66, 0x89, 0x1e,					/* mov %ebx, (%esi) */
	0x66, 0x81, 0xc6, 0x00, SMM_STRIDE << 4, 0x00, 0x00,	/* add $(SMM_STRIDE << 12), %esi */
	0x66, 0x39, 0xfe,					/* cmp %edi, %esi */
	0x72, 0xf0,						/* jb smi_handler */
	0x0f, 0xaa,						/* rsm */
};

/* A vCPU has pages of its own, so it knows what is in them. */
static void guest_check(u64 index, u64 base, u64 size, u64 round)
{
	u64 page, value, *word;

	for (page = index; page < size / PAGE_SIZE; page += nr_vcpus * STRIDE) {
		word = (u64 *)(base + (page + nr_vcpus * (round % STRIDE)) % (size / PAGE_SIZE) *
			       PAGE_SIZE);
		value = round << 32 | page;
		WRITE_ONCE(word[WORD_VCPU], value);
		GUEST_ASSERT_EQ(READ_ONCE(word[WORD_VCPU]), value);
	}
}

static void guest_call(u64 base, u64 size)
{
	u64 at;

	for (at = base + CODE_OFFSET; at < base + size; at += SZ_2M)
		((void (*)(void))at)();
}

/* Has SMM write @round to all pages of this vCPU, and looks whether it has done so. */
static void guest_smi(u64 index, u64 round)
{
	u64 first = (index + round * nr_vcpus) % SMM_STRIDE * PAGE_SIZE + WORD_SMM * sizeof(u64);
	enum slot slot;

	asm volatile("wrmsr" :: "c" (APIC_BASE_MSR + (APIC_ICR >> 4)), "d" (0),
		     "a" (APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_SMI), "b" ((u32)round),
		     "S" ((u32)(SMM_BASE(SLOT_TOGGLED) + first)),
		     "D" ((u32)(SMM_BASE(SLOT_CLEARED) + sizes[SLOT_CLEARED])) : "memory");

	for (slot = SLOT_TOGGLED; slot <= SLOT_CLEARED; slot++)
		GUEST_ASSERT_EQ(READ_ONCE(*(u32 *)(BASE(slot) + first)), (u32)round);
}

/* Not static, for l2_guest_entry. */
void guest_code(u64 index);
void guest_code(u64 index)
{
	u64 alias = nested ? index * ALIAS_STRIDE : 0;
	u64 remapped = BASE(SLOT_REMAPPED) + alias;
	struct guest_cpu *self = &guest_cpus[index];
	u64 round, offset;

	if (has_smm)
		x2apic_enable();
	for (round = 1; !READ_ONCE(self->stop); round++) {
		guest_check(index, BASE(SLOT_TOGGLED) + alias, sizes[SLOT_TOGGLED], round);
		guest_check(index, BASE(SLOT_CLEARED) + alias, sizes[SLOT_CLEARED], round);
		guest_call(BASE(SLOT_TOGGLED) + alias, sizes[SLOT_TOGGLED]);
		guest_call(remapped, sizes[SLOT_REMAPPED] / 2);
		if (has_smm)
			guest_smi(index, round);
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

/* Writes to what the others write to in L2; its addresses are those of the first of them. */
static void l1_writer_code(u64 index)
{
	struct guest_cpu *self = &guest_cpus[index];
	u64 round, page, *word;
	enum slot slot;

	for (round = 1; !READ_ONCE(self->stop); round++) {
		for (slot = SLOT_TOGGLED; slot <= SLOT_CLEARED; slot++) {
			for (page = round % L1_STRIDE; page < sizes[slot] / PAGE_SIZE;
			     page += L1_STRIDE) {
				word = (u64 *)(BASE(slot) + page * PAGE_SIZE);
				WRITE_ONCE(word[WORD_L1], round);
				GUEST_ASSERT_EQ(READ_ONCE(word[WORD_L1]), round);
			}
		}
		WRITE_ONCE(self->rounds, round);
	}
	GUEST_DONE();
}

static void *run_vcpu(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	for (;;) {
		vcpu_run(vcpu);
		/* The fourth slot is not there just now. */
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
			continue;
		/* Until it is collected. */
		if (vcpu->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			usleep(100);
			continue;
		}
		assert_ucall(vcpu, UCALL_DONE);
		return NULL;
	}
}

static void set_slot(enum slot slot, u32 flags, u64 base, u64 size)
{
	vm_set_user_memory_region(vm, slot, flags, base, size, mem[slot]);
}

/* What a party has a process do that is killed, or does itself. */
struct task {
	int (*once)(void *arg);
	void *arg;
	char stack[SZ_64K] __aligned(16);
	unsigned int rounds;
};

/* Returns whether the task was done; otherwise its process was killed. */
static bool do_or_die(struct task *task)
{
	unsigned int round = task->rounds++;
	int pid, status;

	if (round % 4 != 3) {
		TEST_ASSERT(!task->once(task->arg), "errno %d", errno);
		return true;
	}
	pid = clone(task->once, task->stack + sizeof(task->stack), CLONE_VM | SIGCHLD, task->arg);
	TEST_ASSERT(pid > 0, __KVM_SYSCALL_ERROR("clone()", pid));
	/* The later, the rarer. */
	usleep(1 << round / 4 % 13);
	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, __KVM_SYSCALL_ERROR("waitpid()", -1));
	return WIFEXITED(status);
}

/* The memory of the first slot, and where it is; in the other address space it is SMM's. */
static const struct view {
	u32 slot;
	u64 base;
} views[] = {
	{ SLOT_TOGGLED, BASE(SLOT_TOGGLED) },
	{ SMM_SLOT(SLOT_TOGGLED), SMM_BASE(SLOT_TOGGLED) },
};

static int set_log(const struct view *view, bool enable)
{
	return __vm_set_user_memory_region(vm, view->slot, enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
					   view->base, sizes[SLOT_TOGGLED], mem[SLOT_TOGGLED]);
}

static int toggle_once(void *arg)
{
	const struct view *view = arg;
	struct kvm_clear_dirty_log clear = {
		.slot = view->slot,
		.num_pages = sizes[SLOT_TOGGLED] / PAGE_SIZE,
		.dirty_bitmap = all,
	};

	if (set_log(view, true) ||
	    (log.kind == LOG_CLEAR_SET && __vm_ioctl(vm, KVM_CLEAR_DIRTY_LOG, &clear)))
		return 1;
	return set_log(view, false) ? 1 : 0;
}

static void toggle(void)
{
	static struct task task = { .once = toggle_once };
	static unsigned int rounds;
	const struct view *view = &views[has_smm && rounds++ % 2];

	task.arg = (void *)view;
	if (!do_or_die(&task))
		TEST_ASSERT(!set_log(view, false), "errno %d", errno);
	/* NX huge pages are recovered where there is no log. */
	usleep(1000);
}

static int take_once(void *unused)
{
	return log_take(&log) ? 1 : 0;
}

static void collect(void)
{
	static struct task task = { .once = take_once };

	log_prepare(&log);
	if (log.kind == LOG_RING && !kill_resets)
		TEST_ASSERT(!take_once(NULL), "errno %d", errno);
	else
		do_or_die(&task);
	log_copy(&log);
}

static int take_other_half_once(void *unused)
{
	return log_take(&other_half) ? 1 : 0;
}

static void collect_other_half(void)
{
	static struct task task = { .once = take_other_half_once };

	if (!other_half.copy) {
		usleep(10000);
		return;
	}
	log_prepare(&other_half);
	do_or_die(&task);
	log_copy(&other_half);
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

	if (READ_ONCE(stay)) {
		usleep(10000);
		return;
	}
	set_slot(SLOT_MOVED, 0, base, 0);
	set_slot(SLOT_MOVED, 0, base + size, size);
	set_slot(SLOT_MOVED, 0, base, size);
	/* Let the guest get on a little between two zaps. */
	usleep(10000);
}

static void split(void)
{
	static const u64 flags[] = { 0, KVM_SPLIT_FLAG_KEEP, KVM_SPLIT_FLAG_RECOVER };
	static unsigned int rounds;
	unsigned int round = rounds++;
	struct kvm_split_huge_pages request = {
		.gpa = has_smm && round / 3 % 2 ? 0 : BASE(SLOT_TOGGLED),
		.size = 8ul * SZ_1G,
		.page_size = round % 3 < 2 ? PAGE_SIZE : 0,
		.flags = flags[round % 3],
		.budget = 3 * SZ_2M,
		.address_space = has_smm && round / 3 % 2,
	};

	if (!kvm_has_cap(KVM_CAP_SPLIT_HUGE_PAGES)) {
		usleep(10000);
		return;
	}
	while (request.size) {
		if (!__vm_ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request))
			continue;
		/* It is logged: go on behind it. Or it is being moved. */
		TEST_ASSERT(errno == EBUSY || errno == EAGAIN, "errno %d", errno);
		request.gpa += SZ_2M;
		request.size -= SZ_2M;
	}
	usleep(1000);
}

static struct party {
	const char *name;
	void (*once)(void);
	pthread_t thread;
	u64 rounds;
} parties[] = {
	{ "toggle",	toggle },
	{ "collect",	collect },
	{ "collect, other half", collect_other_half },
	{ "remap",	remap },
	{ "age",	age },
	{ "move",	move },
	{ "split",	split },
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

static u64 rounds_of(unsigned int i)
{
	return i < nr_all_vcpus ? READ_ONCE(host_view(i)->rounds) :
				  READ_ONCE(parties[i - nr_all_vcpus].rounds);
}

/* Goes on for some seconds; longer on a slow machine: each shall have met the others. */
static void let_all_run(unsigned int seconds)
{
	u64 before[ARRAY_SIZE(vcpus) + ARRAY_SIZE(parties)];
	unsigned int i, all = nr_all_vcpus + ARRAY_SIZE(parties);

	for (i = 0; i < all; i++)
		before[i] = rounds_of(i);
	sleep(seconds);
	for (i = 0; i < all; i++) {
		while (rounds_of(i) == before[i])
			usleep(10000);
	}
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

/* Has SMM map the first two slots, the second of which is logged. */
static void map_smm(void)
{
	unsigned int i;
	u64 smbase;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, SMRAM_BASE, SMRAM_MEMSLOT,
				    nr_vcpus * SMRAM_PAGES, 0);
	for (i = 0; i < nr_vcpus; i++) {
		smbase = SMRAM_BASE + i * SMRAM_SIZE;
		memcpy(addr_gpa2hva(vm, smbase) + 0x8000, smi_handler, sizeof(smi_handler));
		vcpu_set_msr(vcpus[i], MSR_IA32_SMBASE, smbase);
	}
	vm_set_user_memory_region(vm, SMM_SLOT(SLOT_TOGGLED), 0, SMM_BASE(SLOT_TOGGLED),
				  sizes[SLOT_TOGGLED], mem[SLOT_TOGGLED]);
	vm_set_user_memory_region(vm, SMM_SLOT(SLOT_CLEARED), KVM_MEM_LOG_DIRTY_PAGES,
				  SMM_BASE(SLOT_CLEARED), sizes[SLOT_CLEARED], mem[SLOT_CLEARED]);
}

static void map_slots(void)
{
	enum slot slot;
	u64 offset;

	for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++) {
		mem[slot] = map_slot(slot, slot <= SLOT_CLEARED ? MAP_HUGETLB | MAP_HUGE_2MB : 0);
		kvm_madvise(mem[slot], sizes[slot],
			    slot <= SLOT_CLEARED ? MADV_NORMAL : MADV_HUGEPAGE);
		memset(mem[slot], 0, sizes[slot]);
		for (offset = CODE_OFFSET; offset < sizes[slot]; offset += SZ_2M)
			mem[slot][offset] = RET_OPCODE;
		set_slot(slot, slot == SLOT_CLEARED ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			 BASE(slot), sizes[slot]);
		if (!nested)
			virt_map_level(vm, BASE(slot), BASE(slot), sizes[slot], PG_LEVEL_2M);
	}
}

static void create_vm(enum log_kind kind)
{
	unsigned int i;
	void *code;

	vm = __vm_create(VM_SHAPE_DEFAULT, nr_all_vcpus, nested ? 1024 : 0);
	choose_log_kind(vm, kind);
	for (i = 0; i < nr_all_vcpus; i++) {
		code = nested ? (void *)l1_guest_code : (void *)guest_code;
		vcpus[i] = vm_vcpu_add(vm, i, i < nr_vcpus ? code : (void *)l1_writer_code);
		if (!nested || i >= nr_vcpus)
			vcpu_args_set(vcpus[i], 1, (u64)i);
	}

	map_slots();
	if (nested)
		map_nested();
	if (has_smm)
		map_smm();
	sync_global_to_guest(vm, nr_vcpus);
	sync_global_to_guest(vm, nested);
	sync_global_to_guest(vm, has_smm);

	log = (struct dirty_log_copy) {
		.vm = vm,
		.kind = kind,
		.mem = mem[SLOT_CLEARED],
		.npages = CLEARED_PAGES,
		.slot_npages = CLEARED_PAGES,
		.slots = { SLOT_CLEARED, SMM_SLOT(SLOT_CLEARED) },
		.nr_slots = has_smm ? 2 : 1,
		.vcpus = vcpus,
		.nr_vcpus = nr_all_vcpus,
	};
	copy_begin(&log);
	if (kind == LOG_CLEAR || kind == LOG_CLEAR_SET)
		copy_share(&log, &other_half, CLEARED_PAGES / 2);
}

static void run(enum log_kind kind, unsigned int seconds)
{
	pthread_t threads[ARRAY_SIZE(vcpus)];
	enum slot slot;
	unsigned int i;
	u64 lost;

	memset(guest_cpus, 0, sizeof(guest_cpus));
	WRITE_ONCE(stop, false);
	WRITE_ONCE(stay, false);
	create_vm(kind);

	for (i = 0; i < nr_all_vcpus; i++)
		kvm_pthread_create(&threads[i], NULL, run_vcpu, vcpus[i]);
	for (i = 0; i < ARRAY_SIZE(parties); i++) {
		parties[i].rounds = 0;
		kvm_pthread_create(&parties[i].thread, NULL, run_party, &parties[i]);
	}

	let_all_run(seconds);
	/* Zapping all page tables hides a page that was left unprotected, so go on without. */
	WRITE_ONCE(stay, true);
	let_all_run(1);

	WRITE_ONCE(stop, true);
	for (i = 0; i < ARRAY_SIZE(parties); i++)
		kvm_pthread_join(parties[i].thread, NULL);
	if (other_half.copy) {
		copy_unshare(&log, &other_half);
		other_half = (struct dirty_log_copy) {};
	}
	for (i = 0; i < nr_all_vcpus; i++)
		WRITE_ONCE(host_view(i)->stop, 1);
	for (i = 0; i < nr_all_vcpus; i++) {
		/* Its ring may be full. */
		while (pthread_tryjoin_np(threads[i], NULL)) {
			collect_log(&log);
			usleep(1000);
		}
		ksft_print_msg("vCPU %u: %lu rounds\n", i, host_view(i)->rounds);
	}
	for (i = 0; i < ARRAY_SIZE(parties); i++)
		ksft_print_msg("%s: %lu rounds\n", parties[i].name, parties[i].rounds);

	/* The vCPUs stand still: what is not copied after this was never logged. */
	collect_log(&log);
	lost = count_lost(&log);
	ksft_test_result(!lost, "%s: %lu of %lu pages differ from their copies\n",
			 log_names[kind], lost, (u64)CLEARED_PAGES);

	copy_end(&log);
	kvm_vm_free(vm);
	for (slot = SLOT_TOGGLED; slot < NR_SLOTS; slot++)
		kvm_munmap(mem[slot], sizes[slot]);
}

int main(int argc, char *argv[])
{
	unsigned int seconds = 5;
	enum log_kind kind;
	int opt, kinds = 0;

	while ((opt = getopt(argc, argv, "2kn:t:")) != -1) {
		switch (opt) {
		case '2':
			nested = true;
			break;
		case 'k':
			kill_resets = true;
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
			printf("usage: %s [-2] [-k] [-n vcpus] [-t seconds]\n", argv[0]);
			exit(KSFT_FAIL);
		}
	}
	if (nested)
		TEST_REQUIRE(kvm_cpu_has_tdp());
	has_smm = !nested && kvm_has_cap(KVM_CAP_X86_SMM);
	nr_all_vcpus = nr_vcpus + nested;
	bitmap_fill(all, 16 * SZ_1M / PAGE_SIZE);

	for (kind = 0; kind < NR_LOG_KINDS; kind++)
		kinds += has_log_kind(kind);
	ksft_print_header();
	ksft_set_plan(kinds);
	ksft_print_msg("NX huge pages: %s, SMM: %s\n",
		       get_kvm_param_bool("nx_huge_pages") ? "yes" : "no", has_smm ? "yes" : "no");
	for (kind = 0; kind < NR_LOG_KINDS; kind++) {
		if (has_log_kind(kind))
			run(kind, seconds);
	}
	ksft_finished();
}
