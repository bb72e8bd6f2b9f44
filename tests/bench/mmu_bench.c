// SPDX-License-Identifier: GPL-2.0
/*
 * What each ioctl that concerns the page tables costs its caller, by itself.
 *
 *   mmu_bench MiB [late]
 *
 * One VM, one vCPU, one memslot of MiB megabytes. KVM_PRE_FAULT_MEMORY maps the
 * slot, and the guest, where it runs at all, writes one byte of each page. Each
 * line of the output is "OPERATION NANOSECONDS", the CPU time of this thread
 * during the operation; under QEMU's -icount shift=0 a nanosecond is an
 * instruction. An operation concerns the whole slot.
 *
 * With "late" the number is how long a thread of higher priority, which wakes up
 * in the middle of the operation, waits at most for the CPU: how long KVM does
 * not give way. Both threads have to be on one CPU, with SCHED_FIFO.
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

#include <linux/kvm.h>

#define PAGE		4096ul
#define MIB		(1ul << 20)
#define HUGE_PAGE	(2 * MIB)
/* Where the guest finds its code, and the slot that is measured. */
#define CODE_GPA	0x10000ul
#define SLOT_GPA	(1ul << 30)
#define CODE_SLOT	0
#define SLOT		1

static size_t size;
static int kvm, vm, vcpu;
static void *code, *mem;
static struct kvm_run *run;
static unsigned long *bitmap;

/*
 * The plugin of scripts/bench.sh (tests/bench/count.c) sees these two, of which
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

static long now(void)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts))
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
		start_ = now();						\
		mark_begin();						\
		ret_ = (call);						\
		mark_end();						\
		end_ = now();						\
	}								\
	if (ret_ < 0)							\
		err(1, "%s", name);					\
	printf("%s %ld\n", name, end_ - start_);			\
} while (0)

static int set_slot(int slot, unsigned long gpa, void *hva, size_t bytes, int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int set_logging(int on)
{
	return set_slot(SLOT, SLOT_GPA, mem, size, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
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

/* Runs the guest: it writes a byte of each page of the slot, and halts. */
static int dirty_all(void)
{
	struct kvm_regs regs = {
		.rip = CODE_GPA,
		.rax = SLOT_GPA,
		.rcx = size / PAGE,
		.rflags = 2,
	};

	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "KVM_SET_REGS");
	do {
		if (ioctl(vcpu, KVM_RUN, 0) && errno != EINTR)
			err(1, "KVM_RUN");
	} while (run->exit_reason == KVM_EXIT_INTR);
	if (run->exit_reason != KVM_EXIT_HLT)
		errx(1, "the guest exited with reason %u", run->exit_reason);
	return 0;
}

/* 32-bit flat protected mode, no paging. */
static void set_mode(void)
{
	struct kvm_segment data = {
		.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "KVM_GET_SREGS");
	sregs.ds = data;
	sregs.es = data;
	sregs.ss = data;
	sregs.cs = data;
	sregs.cs.selector = 8;
	sregs.cs.type = 11;
	sregs.cr0 |= 1;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(1, "KVM_SET_SREGS");
}

static void make_vm(void)
{
	/* 1: mov %al,(%eax); add $4096,%eax; loop 1b; hlt */
	static const uint8_t write_all[] = {
		0x88, 0x00, 0x05, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xf7, 0xf4,
	};

	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		err(1, "KVM_CREATE_VM");
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul))
		err(1, "KVM_SET_TSS_ADDR");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		err(1, "KVM_CREATE_VCPU");
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
		   vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");
	memcpy(code, write_all, sizeof(write_all));
	if (set_slot(CODE_SLOT, CODE_GPA, code, PAGE, 0))
		err(1, "the code's memslot");
	if (set_logging(0))
		err(1, "the memslot");
	set_mode();
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
	return p;
}

/*
 * Legacy mode: enabling protects, GET reaps. What is enabled again has been
 * promoted, and not been written since.
 */
static void bench_legacy(void)
{
	make_vm();
	TIME("map-2m", populate());
	TIME("enable", set_logging(1));
	dirty_all();
	TIME("get-all-dirty", get_log());
	check_all_dirty("get");
	TIME("get-clean", get_log());
	TIME("disable", set_logging(0));
	TIME("enable-again", set_logging(1));
	TIME("disable-again", set_logging(0));
	TIME("write-promoted", dirty_all());
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
		if (pread(pagemap, frames, pages * sizeof(*frames), (uintptr_t)mem / PAGE * 8) !=
		    (ssize_t)(pages * sizeof(*frames)))
			err(1, "pagemap");
	}
	for (i = 0; i < pages; i += 64) {
		uint64_t pfn = frames[i] & ((1ull << 55) - 1);

		if (pwrite(idle, &word, sizeof(word), pfn / 64 * 8) != sizeof(word))
			return -1;
	}
	return 0;
}

/* 4 KiB mappings: faults, aging, notifier, teardown. */
static void bench_small(void)
{
	mem = map_memory(0);
	make_vm();
	TIME("map-4k", populate());
	age();
	TIME("age-4k", age());
	TIME("zap-notifier-4k", mprotect(mem, size, PROT_READ));
	mprotect(mem, size, PROT_READ | PROT_WRITE);
	/* The host's mapping has to be writable again, before KVM looks. */
	memset(mem, 1, size);
	populate();
	TIME("teardown-4k", close_vm());
	munmap(mem, size);
}

int main(int argc, char **argv)
{
	late = argc == 3 && !strcmp(argv[2], "late");
	if (argc != 2 + late || atol(argv[1]) < 2 || atol(argv[1]) % 2 || atol(argv[1]) > 2048)
		errx(1, "usage: mmu_bench MiB [late] (MiB even, at most 2048)");
	size = atol(argv[1]) * MIB;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		err(1, "/dev/kvm");
	code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bitmap = malloc(size / PAGE / 8);
	if (code == MAP_FAILED || !bitmap)
		err(1, "memory");
	memset(bitmap, 0, size / PAGE / 8);

	mem = map_memory(1);
	bench_legacy();
	bench_manual();
	munmap(mem, size);
	/* It costs two orders more, and shows nothing new where there is more of it. */
	if (size <= 64 * MIB && !late)
		bench_small();
	return 0;
}
