// SPDX-License-Identifier: GPL-2.0
/*
 * What each ioctl that concerns the page tables costs its caller, by itself.
 *
 *   mmu_bench MiB [late|late-1g|wall|log|stats|free]
 *
 * One VM, one vCPU, one memslot of MiB megabytes. KVM_PRE_FAULT_MEMORY maps the
 * slot, and the guest, where it runs at all, writes one byte of each page; in the
 * operations called nested-*, it is a guest of the guest that does (AMD only). Each
 * line of the output is "OPERATION NANOSECONDS", the CPU time of this thread
 * during the operation; under QEMU's -icount shift=0 a nanosecond is an
 * instruction. An operation concerns the whole slot.
 *
 * With "late" the number is how long a thread of higher priority, which wakes up
 * in the middle of the operation, waits at most for the CPU: how long KVM does
 * not yield. Both threads have to be on one CPU, with SCHED_FIFO. With
 * "late-1g" it is that for a memslot of 1 GiB pages. With "wall" it is the time on the
 * clock, on a real processor, and behind it is what that has counted: " COUNTER=N" each.
 * With "log" the operations are those of logging that differ by kvm.dirty_log, with "stats" those
 * that tell what kvm.mmu_lock_stats costs. With "free" it is the freeing of
 * page tables.
 *
 * Errors end the program with a message and status 1; nothing is retried.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <asm/kvm_split.h>
#include <linux/kvm.h>

#include "../flat_mode.h"
#include "../vm.h"
#include "pmu.h"

#define PAGE		4096ul
#define MIB		(1ul << 20)
#define HUGE_PAGE	(2 * MIB)
/* Where the guest finds its code, and the slot that is measured. */
#define CODE_GPA	0x10000ul
#define SLOT_GPA	(1ul << 30)
/* In L2: all of these are the slot's first huge page. */
#define ALIAS_GPA	(3ul << 30)
#define CODE_SLOT	0
#define SLOT		1

/* The code's slot, in pages. What is behind the code is for L1 and L2. */
enum { CODE, VMCB, L1_PML4, L1_PDPT, L1_PD, NPT_PML4, NPT_PDPT, NPT_PD, CODE_PAGES = NPT_PD + 4 };

/* Where behind its beginning the code is that reads. */
#define READ_ALL	16

static size_t size;
static int kvm, vm, vcpu, aliases;
static void *code, *mem;
static struct kvm_run *run;
static unsigned long *bitmap;
/* Whether age() knows the frames of mem. */
static int frames_known;

/*
 * The plugin of tests/bench/run.sh (tests/bench/count.c) sees these two, of which
 * hardware and KVM see no-ops. The last byte tells it what they mean.
 */
static inline void mark_begin(void)
{
	asm volatile(".byte 0x0f, 0x1f, 0x80; .long 0x4b560001" : : : "memory");
}

static inline void mark_end(void)
{
	asm volatile(".byte 0x0f, 0x1f, 0x80; .long 0x4b560002" : : : "memory");
}

/* The modules are loaded, so the plugin can be told where their functions are. */
static inline void mark_functions(void)
{
	asm volatile(".byte 0x0f, 0x1f, 0x80; .long 0x4b560003" : : : "memory");
}

/* Whether the clock is the wall's, and the processor's counters are read. */
static int wall;

static long now(void)
{
	struct timespec ts;

	if (clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &ts))
		err(1, "clock_gettime");
	return ts.tv_sec * 1000000000l + ts.tv_nsec;
}

/* The thread that wakes up every so often, and how late it was at worst. */
#define WAKEUP_NS	100000

static int late;
static pthread_t watcher;
static volatile int watching;
static long worst;

static void *watch(void *arg)
{
	struct timespec next, ts;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (watching) {
		long ns;

		next.tv_nsec += WAKEUP_NS;
		if (next.tv_nsec >= 1000000000l) {
			next.tv_nsec -= 1000000000l;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		clock_gettime(CLOCK_MONOTONIC, &ts);
		ns = (ts.tv_sec - next.tv_sec) * 1000000000l + ts.tv_nsec - next.tv_nsec;
		if (ns > worst)
			worst = ns;
		/* What was missed is missed. */
		if (ns > WAKEUP_NS)
			next = ts;
	}
	return arg;
}

static void watch_begin(void)
{
	struct sched_param param = { .sched_priority = 2 };
	pthread_attr_t attr;

	worst = 0;
	watching = 1;
	if (pthread_attr_init(&attr) || pthread_attr_setschedpolicy(&attr, SCHED_FIFO) ||
	    pthread_attr_setschedparam(&attr, &param) ||
	    pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED) ||
	    pthread_create(&watcher, &attr, watch, NULL))
		errx(1, "no thread with SCHED_FIFO");
}

static long watch_end(void)
{
	watching = 0;
	if (pthread_join(watcher, NULL))
		errx(1, "pthread_join");
	return worst;
}

/* Times an expression that returns what a system call returns. */
#define TIME(name, call) do {						\
	long start_, end_;						\
	int ret_;							\
									\
	if (late) {							\
		watch_begin();						\
		ret_ = (call);						\
		start_ = 0;						\
		end_ = watch_end();					\
	} else {							\
		if (wall)						\
			pmu_begin();					\
		start_ = now();						\
		mark_begin();						\
		ret_ = (call);						\
		mark_end();						\
		end_ = now();						\
		if (wall)						\
			pmu_end();					\
	}								\
	if (ret_ < 0)							\
		err(1, "%s", name);					\
	printf("%s %ld", name, end_ - start_);				\
	if (wall)							\
		pmu_print();						\
	putchar('\n');							\
} while (0)

static int set_logging(int on)
{
	return set_memslot(vm, SLOT, SLOT_GPA, mem, size, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

/* Maps the slot as the guest's reads would. */
static int populate(void)
{
	struct kvm_pre_fault_memory range = { .gpa = SLOT_GPA, .size = size };
	int ret;

	do
		ret = ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	while (range.size && (!ret || errno == EINTR || errno == EAGAIN));
	return ret;
}

/*
 * Has a fault elsewhere fill the vCPU's caches of page tables. What that costs depends on what the
 * page allocator has at hand, and on nothing else.
 *
 * Also, KVM has the host mark each page as accessed that it maps. For one of hugetlb the host looks
 * for it among those that this CPU has not put on the LRU lists yet: 19 to 187 instructions, by how
 * many these happen to be. mlock() puts all of them there.
 */
static void fill_caches(void)
{
	struct kvm_pre_fault_memory range = { .gpa = CODE_GPA, .size = PAGE };

	if (ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range))
		err(1, "KVM_PRE_FAULT_MEMORY of the code");
	if (mlock(code, PAGE) || munlock(code, PAGE))
		err(1, "mlock");
}

static int get_log(void)
{
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };

	return ioctl(vm, KVM_GET_DIRTY_LOG, &log);
}

static int clear_log(void)
{
	struct kvm_clear_dirty_log log = {
		.slot = SLOT,
		.num_pages = size / PAGE,
		.dirty_bitmap = bitmap,
	};

	return ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log);
}

/* All bits must be set: the operations that follow are meant for that. */
static void check_all_dirty(const char *when)
{
	size_t i;

	for (i = 0; i < size / PAGE / 64; i++)
		if (bitmap[i] != ~0ul)
			errx(1, "%s: word %zu of the dirty log is %#lx, not all ones",
			     when, i, bitmap[i]);
}

static void run_guest(struct kvm_regs *regs)
{
	if (ioctl(vcpu, KVM_SET_REGS, regs))
		err(1, "KVM_SET_REGS");
	do {
		if (ioctl(vcpu, KVM_RUN, 0) && errno != EINTR)
			err(1, "KVM_RUN");
	} while (run->exit_reason == KVM_EXIT_INTR);
	if (run->exit_reason != KVM_EXIT_HLT)
		errx(1, "the guest exited with reason %u (%u) at %#llx", run->exit_reason,
		     run->internal.suberror, (unsigned long long)regs->rip);
}

/* Has the guest write a byte every stride bytes, count of them. */
static int write_bytes(unsigned long first, unsigned long count, unsigned long stride)
{
	run_guest(&(struct kvm_regs) {
		.rip = CODE_GPA,
		.rax = first,
		.rcx = count,
		.rdx = stride,
		.rflags = 2,
	});
	return 0;
}

/* Has it write a byte of each page of the slot. */
static int dirty_all(void)
{
	return write_bytes(SLOT_GPA, size / PAGE, PAGE);
}

/* Has it read a byte of each page of the slot. */
static int read_only(void)
{
	run_guest(&(struct kvm_regs) {
		.rip = CODE_GPA + READ_ALL,
		.rax = SLOT_GPA,
		.rcx = size / PAGE,
		.rdx = PAGE,
		.rflags = 2,
	});
	return 0;
}

/* Has it do that, and then write to each hundredth page. */
static int read_all(void)
{
	read_only();
	return write_bytes(SLOT_GPA, size / PAGE / 100, 100 * PAGE);
}

/*
 * What the log looks like in the later rounds of a migration: the guest writes to few
 * pages of many. Writes and returns how many.
 */
static unsigned long dirty_four(void)
{
	unsigned long n = (size + 16 * MIB - 1) / (16 * MIB);

	write_bytes(SLOT_GPA, n, 16 * MIB);
	return n;
}

static unsigned long dirty_tenth(void)
{
	unsigned long n = (size / HUGE_PAGE + 9) / 10;

	write_bytes(SLOT_GPA, n, 10 * HUGE_PAGE);
	return n;
}

/* The same pages each time. */
static unsigned long dirty_random(void)
{
	unsigned long pages = size / PAGE, n = pages / 100, i;
	uint64_t random = 1;

	for (i = 0; i < n; i++) {
		/* Knuth's MMIX; its period is 2^64, so pages are seldom met twice. */
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		write_bytes(SLOT_GPA + (random >> 33) % pages * PAGE, 1, PAGE);
	}
	return n;
}

static const struct {
	const char *name;
	unsigned long (*dirty)(void);
} sparse[] = {
	{ "four", dirty_four }, { "tenth", dirty_tenth }, { "random", dirty_random },
};

#define SPARSE	(sizeof(sparse) / sizeof(sparse[0]))

/* At least most of what was written, for a page may be written twice; and no more. */
static void check_dirty(unsigned long written, const char *when)
{
	unsigned long n = 0;
	size_t i;

	for (i = 0; i < size / PAGE / 64; i++)
		n += __builtin_popcountl(bitmap[i]);
	if (n > written || n < written - written / 50)
		errx(1, "%s: %lu pages were written, and %lu are in the log", when, written, n);
}

static void make_vm(void)
{
	/*
	 * 1: mov %al,(%eax); add %edx,%eax; loop 1b; hlt; and for L1, vmrun %rax
	 * 1: mov (%eax),%bl; add %edx,%eax; loop 1b; hlt
	 */
	static const uint8_t write_all[] = {
		0x88, 0x00, 0x01, 0xd0, 0xe2, 0xfa, 0xf4, 0x0f, 0x01, 0xd8,
		[READ_ALL] = 0x8a, 0x18, 0x01, 0xd0, 0xe2, 0xfa, 0xf4,
	};

	vm = open_vm(kvm, &vcpu, &run, 1);
	memcpy(code, write_all, sizeof(write_all));
	if (set_memslot(vm, CODE_SLOT, CODE_GPA, code, CODE_PAGES * PAGE, 0))
		err(1, "the code's memslot");
	if (set_logging(0))
		err(1, "the memslot");
	set_flat_mode(vcpu);
}

/*
 * Takes the vCPU from L2 to where set_flat_mode() has put it. The shadow pages of L2 stay,
 * until a memslot is deleted, whichever.
 */
static void leave_nested(void)
{
	struct kvm_nested_state state = {
		.flags = KVM_STATE_NESTED_GIF_SET,
		.format = KVM_STATE_NESTED_FORMAT_SVM,
		.size = sizeof(state),
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_SET_NESTED_STATE, &state))
		err(1, "KVM_SET_NESTED_STATE");
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.cr0 &= ~(1ul << 31);
	sregs.cr4 = 0;
	/* LME, LMA */
	sregs.efer &= ~(1ul << 8 | 1ul << 10);
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(1, "32-bit mode");
	set_flat_mode(vcpu);
}

/* 64-bit mode, with SVM on. */
static void set_long_mode(void)
{
	struct kvm_sregs sregs;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 128 * sizeof(cpuid->entries[0]));
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(msrs->entries[0]));

	if (!cpuid || !msrs)
		err(1, "memory");
	cpuid->nent = 128;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(vcpu, KVM_SET_CPUID2, cpuid))
		err(1, "CPUID");
	free(cpuid);
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.cs.l = 1;
	sregs.cs.db = 0;
	sregs.cr0 |= 1ul << 31;
	sregs.cr3 = CODE_GPA + L1_PML4 * PAGE;
	sregs.cr4 |= 1ul << 5;
	/* LME, LMA, SVME */
	sregs.efer |= 1 << 8 | 1 << 10 | 1 << 12;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(1, "64-bit mode with SVM");
	/* VM_HSAVE_PA, without which there is no VMRUN; KVM does not use the page. */
	msrs->nmsrs = 1;
	msrs->entries[0].index = 0xc0010117;
	msrs->entries[0].data = CODE_GPA + VMCB * PAGE;
	if (ioctl(vcpu, KVM_SET_MSRS, msrs) != 1)
		err(1, "VM_HSAVE_PA");
	free(msrs);
}

/* An entry of a page table in the code's slot. */
static void set_entry(int page, unsigned long index, unsigned long entry)
{
	((uint64_t *)(code + page * PAGE))[index] = entry;
}

/* What L1 maps: its first 2 MiB for itself; for L2 that, the slot, and the aliases. */
static void make_tables(void)
{
	/* P, W, U, A, D; and the page size */
	const unsigned long table = 0x67, huge = 0xe7;
	unsigned long gpa;
	int i;

	set_entry(L1_PML4, 0, (CODE_GPA + L1_PDPT * PAGE) | table);
	set_entry(L1_PDPT, 0, (CODE_GPA + L1_PD * PAGE) | table);
	set_entry(L1_PD, 0, huge);
	set_entry(NPT_PML4, 0, (CODE_GPA + NPT_PDPT * PAGE) | table);
	for (i = 0; i < 4; i++)
		set_entry(NPT_PDPT, i, (CODE_GPA + (NPT_PD + i) * PAGE) | table);
	set_entry(NPT_PD, 0, huge);
	/* The entries of the four tables are those of one array. */
	for (gpa = SLOT_GPA; gpa < SLOT_GPA + size; gpa += HUGE_PAGE)
		set_entry(NPT_PD, gpa / HUGE_PAGE, gpa | huge);
	for (i = 0; i < aliases; i++)
		set_entry(NPT_PD, ALIAS_GPA / HUGE_PAGE + i, SLOT_GPA | huge);
}

/* A field of the VMCB, by its offset. */
#define vmcb_set(type, offset, value) \
	(*(type *)(code + VMCB * PAGE + (offset)) = (value))

/* What L2 begins with: 32-bit flat protected mode, no paging, at a HLT. */
static void make_vmcb(void)
{
	int seg;

	memset(code + VMCB * PAGE, 0, PAGE);
	/* Intercept VMRUN; an ASID; nested paging and its root. */
	vmcb_set(uint32_t, 0x010, 1);
	vmcb_set(uint32_t, 0x058, 1);
	vmcb_set(uint64_t, 0x090, 1);
	vmcb_set(uint64_t, 0x0b0, CODE_GPA + NPT_PML4 * PAGE);
	/* ES, CS, SS, DS */
	for (seg = 0; seg < 4; seg++) {
		vmcb_set(uint16_t, 0x400 + 16 * seg, seg == 1 ? 8 : 16);
		vmcb_set(uint16_t, 0x402 + 16 * seg, seg == 1 ? 0xc9b : 0xc93);
		vmcb_set(uint32_t, 0x404 + 16 * seg, ~0u);
	}
	/* EFER, CR0, DR7, DR6, RFLAGS, RIP, PAT */
	vmcb_set(uint64_t, 0x4d0, 1 << 12);
	vmcb_set(uint64_t, 0x558, 0x11);
	vmcb_set(uint64_t, 0x560, 0x400);
	vmcb_set(uint64_t, 0x568, 0xffff0ff0);
	vmcb_set(uint64_t, 0x570, 2);
	vmcb_set(uint64_t, 0x578, CODE_GPA + 6);
	vmcb_set(uint64_t, 0x668, 0x0007040600070406);
}

/*
 * A VM whose vCPU stands in L2, where it stays: KVM_SET_REGS sets L2's. If l1, L1
 * has the slot mapped as well.
 */
static void make_nested_vm(int l1)
{
	make_vm();
	make_tables();
	make_vmcb();
	set_long_mode();
	if (l1 && populate())
		err(1, "KVM_PRE_FAULT_MEMORY");
	run_guest(&(struct kvm_regs) {
		.rip = CODE_GPA + 7,
		.rax = CODE_GPA + VMCB * PAGE,
		.rflags = 2,
	});
}

static void manual_protect(int features)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args = { features },
	};

	if (ioctl(vm, KVM_ENABLE_CAP, &cap))
		err(1, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
}

static int close_vm(void)
{
	int ret;

	munmap(run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	ret = close(vcpu);
	return ret ?: close(vm);
}

static void *map_memory(int huge)
{
	void *p;

	p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB : 0), -1, 0);
	if (p == MAP_FAILED)
		err(1, "no %zu MiB of %s memory", size / MIB, huge ? "2 MiB hugetlb" : "4 KiB");
	if (!huge && madvise(p, size, MADV_NOHUGEPAGE) && errno != EINVAL)
		err(1, "MADV_NOHUGEPAGE");
	memset(p, 1, size);
	frames_known = 0;
	return p;
}

/*
 * Legacy mode: enabling protects, GET reaps. What is enabled again has been
 * recovered, and not been written since.
 */
static void bench_legacy(void)
{
	make_vm();
	fill_caches();
	TIME("map-2m", populate());
	TIME("enable", set_logging(1));
	dirty_all();
	TIME("get-all-dirty", get_log());
	check_all_dirty("get");
	TIME("get-clean", get_log());
	TIME("disable", set_logging(0));
	TIME("enable-again", set_logging(1));
	TIME("disable-again", set_logging(0));
	TIME("write-recovered", dirty_all());
	close_vm();
}

/* All bits set at first: CLEAR splits and protects. */
static void bench_manual(void)
{
	make_vm();
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	populate();
	TIME("enable-initially-set", set_logging(1));
	memset(bitmap, 0xff, size / PAGE / 8);
	TIME("clear-first", clear_log());
	dirty_all();
	get_log();
	check_all_dirty("before the second clear");
	TIME("clear-all-dirty", clear_log());
	set_logging(0);
	close_vm();
}

/* Longer than the grace periods that it takes to free page tables. */
#define FREE_US	200000

/* The tables that huge pages have replaced are freed, while this thread sleeps. */
static void bench_free(void)
{
	make_vm();
	populate();
	set_logging(1);
	usleep(FREE_US);
	set_logging(0);
	TIME("free-recovered", usleep(FREE_US));
	close_vm();
}

/* A thread of the VMM's, before the log begins, and after it; the Rust MMU only. */
static int split_ahead(unsigned long page_size, unsigned long flags)
{
	struct kvm_split_huge_pages request = {
		.gpa = SLOT_GPA, .size = size, .page_size = page_size, .flags = flags,
	};
	int ret;

	do
		ret = ioctl(vm, KVM_SPLIT_HUGE_PAGES, &request);
	while (request.size && (!ret || errno == EINTR));
	return ret;
}

static void bench_ahead(void)
{
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SPLIT_HUGE_PAGES) <= 0)
		return;
	make_vm();
	populate();
	TIME("ahead-split", split_ahead(PAGE, KVM_SPLIT_FLAG_KEEP));
	TIME("ahead-again", split_ahead(PAGE, KVM_SPLIT_FLAG_KEEP));
	TIME("ahead-enable", set_logging(1));
	dirty_all();
	TIME("ahead-disable", set_logging(0));
	TIME("ahead-recover", split_ahead(0, KVM_SPLIT_FLAG_RECOVER));
	close_vm();
}

static void bench_sparse(void)
{
	unsigned long written;
	char name[32];
	size_t i;

	make_vm();
	populate();
	set_logging(1);
	for (i = 0; i < SPARSE; i++) {
		written = sparse[i].dirty();
		snprintf(name, sizeof(name), "get-%s", sparse[i].name);
		TIME(name, get_log());
		check_dirty(written, name);
	}
	close_vm();

	make_vm();
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	populate();
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	clear_log();
	for (i = 0; i < SPARSE; i++) {
		written = sparse[i].dirty();
		snprintf(name, sizeof(name), "get-manual-%s", sparse[i].name);
		TIME(name, get_log());
		check_dirty(written, name);
		snprintf(name, sizeof(name), "clear-%s", sparse[i].name);
		TIME(name, clear_log());
	}
	memset(bitmap, 0, size / PAGE / 8);
	TIME("clear-empty", clear_log());
	close_vm();
}

/*
 * What a migration costs the guest and the thread that migrates: legacy mode, and then
 * manual mode. Everything has been written before the log begins.
 */
static void bench_log(int huge)
{
	unsigned long written;

	mem = map_memory(huge);
	make_vm();
	populate();
	dirty_all();
	TIME(huge ? "log-enable" : "log-enable-4k", set_logging(1));
	TIME(huge ? "log-write-first" : "log-write-first-4k", dirty_all());
	get_log();
	check_all_dirty("get");
	TIME(huge ? "log-write" : "log-write-4k", dirty_all());
	TIME(huge ? "log-get" : "log-get-4k", get_log());
	check_all_dirty("get, again");
	TIME(huge ? "log-get-clean" : "log-get-clean-4k", get_log());
	check_dirty(0, "get, clean");
	TIME(huge ? "log-disable" : "log-disable-4k", set_logging(0));
	TIME(huge ? "log-write-after" : "log-write-after-4k", dirty_all());
	close_vm();
	if (!huge) {
		munmap(mem, size);
		return;
	}

	make_vm();
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	populate();
	dirty_all();
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	TIME("log-clear-first", clear_log());
	dirty_all();
	TIME("log-get-manual", get_log());
	check_all_dirty("before the second clear");
	TIME("log-clear", clear_log());
	/* The first round after all was written is not like those that follow. */
	dirty_tenth();
	get_log();
	clear_log();
	written = dirty_tenth();
	TIME("log-get-tenth", get_log());
	check_dirty(written, "a tenth");
	TIME("log-clear-tenth", clear_log());
	TIME("log-get-none", get_log());
	check_dirty(0, "nothing");
	TIME("log-clear-none", clear_log());
	TIME("log-read", read_all());
	TIME("log-get-read", get_log());
	check_dirty(size / PAGE / 100, "reading");
	TIME("log-clear-read", clear_log());
	TIME("log-read-only", read_only());
	TIME("log-get-read-only", get_log());
	check_dirty(0, "reading only");
	TIME("log-clear-read-only", clear_log());
	close_vm();
	munmap(mem, size);
}

/* Clears a word of the log over and over: each time mmu_lock is held once. */
static int clear_word(unsigned int times)
{
	struct kvm_clear_dirty_log log = {
		.slot = SLOT,
		.num_pages = 64,
		.dirty_bitmap = bitmap,
	};

	while (times--)
		if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log))
			return -1;
	return 0;
}

/* As many times as there are pages: a fault for each, a hold for each. */
static void bench_stats(void)
{
	mem = map_memory(0);
	make_vm();
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	TIME("stats-fault", dirty_all());
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	TIME("stats-hold", clear_word(size / PAGE));
	close_vm();
	munmap(mem, size);
}

/*
 * Marks the memory idle, through an MMU notifier that ages it (page_idle needs
 * the frame numbers, and one bit for each).
 */
static int age(void)
{
	static int pagemap = -1, idle = -1;
	static uint64_t *frames;
	size_t pages = size / PAGE, i;
	uint64_t word = ~0ull;

	if (idle < 0) {
		pagemap = open("/proc/self/pagemap", O_RDONLY);
		idle = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
		frames = malloc(pages * sizeof(*frames));
		if (pagemap < 0 || idle < 0 || !frames)
			err(1, "page_idle");
	}
	if (!frames_known) {
		if (pread(pagemap, frames, pages * sizeof(*frames), (uintptr_t)mem / PAGE * 8) !=
		    (ssize_t)(pages * sizeof(*frames)))
			err(1, "pagemap");
		frames_known = 1;
	}
	for (i = 0; i < pages; i += 64) {
		uint64_t pfn = frames[i] & ((1ull << 55) - 1);

		if (pwrite(idle, &word, sizeof(word), pfn / 64 * 8) != sizeof(word))
			return -1;
	}
	return 0;
}

/* The lab's kernel has page_idle, others need not. */
static int can_age(void)
{
	if (!wall || !access("/sys/kernel/mm/page_idle/bitmap", W_OK))
		return 1;
	puts("# aging is not measured: this kernel has no page_idle");
	return 0;
}

/* 4 KiB mappings: logging, faults, aging, notifier, teardown. */
static void bench_small(void)
{
	mem = map_memory(0);
	make_vm();
	populate();
	TIME("enable-4k", set_logging(1));
	TIME("disable-4k", set_logging(0));
	TIME("write-unlogged-4k", dirty_all());
	close_vm();

	make_vm();
	TIME("map-4k", populate());
	if (can_age()) {
		age();
		TIME("age-4k", age());
	}
	TIME("zap-notifier-4k", mprotect(mem, size, PROT_READ));
	mprotect(mem, size, PROT_READ | PROT_WRITE);
	/* The host's mapping has to be writable again, before KVM looks. */
	memset(mem, 1, size);
	populate();
	TIME("teardown-4k", close_vm());
	munmap(mem, size);
}

/* The slot is mapped by shadow pages only, as L1 itself does not use it. */
static void bench_nested(void)
{
	make_nested_vm(0);
	TIME("nested-map-2m", dirty_all());
	TIME("nested-enable", set_logging(1));
	dirty_all();
	TIME("nested-get-all-dirty", get_log());
	check_all_dirty("get, nested");
	TIME("nested-disable", set_logging(0));
	close_vm();

	make_nested_vm(1);
	dirty_all();
	TIME("nested-enable-both", set_logging(1));
	close_vm();

	make_nested_vm(0);
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	dirty_all();
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	TIME("nested-clear-first", clear_log());
	dirty_all();
	get_log();
	check_all_dirty("before the second clear, nested");
	TIME("nested-clear-all-dirty", clear_log());
	set_logging(0);
	close_vm();
}

/* L2 ran once, but nothing is left of it: a memslot was deleted since. */
static void bench_after_nested(void)
{
	make_nested_vm(0);
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	dirty_all();
	leave_nested();
	if (set_memslot(vm, SLOT + 1, ALIAS_GPA, mem, HUGE_PAGE, 0) ||
	    set_memslot(vm, SLOT + 1, ALIAS_GPA, mem, 0, 0))
		err(1, "another memslot");
	if (populate())
		err(1, "KVM_PRE_FAULT_MEMORY after L2");
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	TIME("nested-gone-clear-first", clear_log());
	dirty_all();
	get_log();
	check_all_dirty("before the second clear, after L2");
	TIME("nested-gone-clear-all-dirty", clear_log());
	set_logging(0);
	close_vm();
}

/* Legacy mode, with pages of 1 GiB, which are split and recovered in two steps. */
static void bench_1g(void)
{
	mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 30 << MAP_HUGE_SHIFT, -1, 0);
	if (mem == MAP_FAILED)
		err(1, "no %zu MiB of 1 GiB hugetlb memory", size / MIB);
	memset(mem, 1, size);
	make_vm();
	TIME("map-1g", populate());
	TIME("enable-1g", set_logging(1));
	TIME("disable-1g", set_logging(0));
	close_vm();
	munmap(mem, size);
}

static void bench_nested_small(void)
{
	mem = map_memory(0);
	make_nested_vm(0);
	TIME("nested-map-4k", dirty_all());
	TIME("nested-enable-4k", set_logging(1));
	set_logging(0);
	dirty_all();
	if (can_age()) {
		age();
		TIME("nested-age-4k", age());
	}
	TIME("nested-zap-notifier-4k", mprotect(mem, size, PROT_READ));
	mprotect(mem, size, PROT_READ | PROT_WRITE);
	memset(mem, 1, size);
	dirty_all();
	TIME("nested-teardown-4k", close_vm());
	munmap(mem, size);
}

static void bench_aliases(int n)
{
	char name[32];

	aliases = n;
	make_nested_vm(0);
	snprintf(name, sizeof(name), "alias-map-%d", n);
	TIME(name, write_bytes(ALIAS_GPA, n, HUGE_PAGE));
	snprintf(name, sizeof(name), "alias-split-%d", n);
	TIME(name, set_logging(1));
	/* Zaps the small leaves, so that the next write to each alias replaces its table. */
	set_logging(0);
	snprintf(name, sizeof(name), "alias-replace-%d", n);
	TIME(name, write_bytes(ALIAS_GPA, n, HUGE_PAGE));
	close_vm();
	aliases = 0;
}

static const char usage[] =
	"usage: mmu_bench MiB [late|late-1g|wall|log|stats|free]; MiB: even, <= 2048; 1g: n*1024";

int main(int argc, char **argv)
{
	int svm = !access("/sys/module/kvm_amd", F_OK);

	int gigantic = argc == 3 && !strcmp(argv[2], "late-1g");
	int log = argc == 3 && !strcmp(argv[2], "log");
	int stats = argc == 3 && !strcmp(argv[2], "stats");
	int only_free = argc == 3 && !strcmp(argv[2], "free");

	late = gigantic || (argc == 3 && !strcmp(argv[2], "late"));
	wall = argc == 3 && !strcmp(argv[2], "wall");
	if (argc != 2 + late + wall + log + stats + only_free || atol(argv[1]) < 2 ||
	    atol(argv[1]) % (gigantic ? 1024 : 2) || atol(argv[1]) > 2048)
		errx(1, "%s", usage);
	size = atol(argv[1]) * MIB;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		err(1, "/dev/kvm");
	code = mmap(NULL, CODE_PAGES * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bitmap = malloc(size / PAGE / 8);
	if (code == MAP_FAILED || !bitmap)
		err(1, "memory");
	memset(bitmap, 0, size / PAGE / 8);

	mark_functions();
	if (wall)
		pmu_open();
	if (gigantic) {
		bench_1g();
		return 0;
	}
	if (log) {
		bench_log(1);
		bench_log(0);
		return 0;
	}
	if (stats) {
		bench_stats();
		return 0;
	}
	mem = map_memory(1);
	if (only_free) {
		bench_free();
		return 0;
	}
	bench_legacy();
	bench_manual();
	if (!late)
		bench_ahead();
	if (!late)
		bench_sparse();
	/* It costs two orders more, and shows nothing new where there is more of it. */
	if (size <= 64 * MIB && !late && svm) {
		bench_nested();
		bench_after_nested();
		bench_aliases(1);
		bench_aliases(14);
		bench_aliases(200);
	}
	munmap(mem, size);
	if (size <= 64 * MIB && !late) {
		bench_small();
		if (svm)
			bench_nested_small();
	}
	return 0;
}
