// SPDX-License-Identifier: GPL-2.0
/*
 * How long a vCPU's faults take in one memslot, while dirty logging is enabled,
 * cleared and disabled in another.
 *
 *   brownout MiB REPEATS
 *
 * The vCPU, on CPU 0, writes to one page after the other of a slot of which
 * nothing is mapped yet, and notes the TSC before and after each write. On CPU 1
 * this program changes the other slot, of MiB megabytes of 2 MiB hugetlb pages, all
 * mapped. A fault counts for each phase that it overlaps, by the TSC, or else for
 * idling. Output, a line for each repetition and phase, and one for all repetitions,
 * times in nanoseconds:
 *
 *   REPETITION|all PHASE DURATION FAULTS P50 P99 LONGEST
 *
 * A repetition may see no fault in a phase: all but the first number are 0 then.
 *
 * Errors end the program with a message and status 1. Status 3 is for what only a
 * bad processor can have done: the guest, of which every instruction is known,
 * exits for another reason than its HLT, or does not exit at all.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "../flat_mode.h"
#include "../vm.h"

#define PAGE		4096ul
#define MIB		(1ul << 20)
/* KVM_CLEAR_DIRTY_LOG is called for so many pages at a time: 1 GiB. */
#define CHUNK_PAGES	(1024 * MIB / PAGE)
/* More faults than a slow phase has time for. */
#define FAULTS		131072ul
#define IDLE_US		40000
/* The longest repetition takes a few seconds. */
#define WATCHDOG_S	60
#define BAD_PROCESSOR	3

/* The guest's memory: code, what it shares with this program, notes, two slots. */
#define CODE_GPA	0x10000ul
#define CONTROL_GPA	0x11000ul
#define NOTES_GPA	(256 * MIB)
#define FAULT_GPA	(512 * MIB)
#define SLOT_GPA	(2048 * MIB)

enum { CODE, CONTROL, NOTES, FAULT, SLOT };

enum phase { IDLE, ENABLE, DISABLE, CLEAR, PHASES };

static const char * const phases[] = {
	[IDLE] = "idle", [ENABLE] = "enable", [DISABLE] = "disable", [CLEAR] = "clear",
};

/* For the guest to read. */
struct control {
	uint32_t stop;
};

/* What the guest writes for each page: the TSC before and after. */
struct note {
	uint64_t begin, end;
};

/* When a phase began and ended, by the guest's TSC. */
struct span {
	enum phase phase;
	uint64_t begin, end;
};

/* Flat 32-bit mode: ebp control, edi notes, esi pages, ecx how many pages. */
asm(".pushsection .rodata\n"
	".code32\n"
	"guest_begin:\n"
	"1:	lfence\n"
	"	rdtsc\n"
	"	movl	%eax, (%edi)\n"
	"	movl	%edx, 4(%edi)\n"
	"	movb	%cl, (%esi)\n"
	"	lfence\n"
	"	rdtsc\n"
	"	movl	%eax, 8(%edi)\n"
	"	movl	%edx, 12(%edi)\n"
	"	addl	$16, %edi\n"
	"	addl	$4096, %esi\n"
	"	cmpl	$0, (%ebp)\n"
	"	loopz	1b\n"
	"	hlt\n"
	"guest_end:\n"
	".code64\n"
	".popsection\n");
extern const char guest_begin[], guest_end[];

static size_t size;
static int kvm, vm, vcpu;
static unsigned int tsc_khz;
static struct kvm_run *run;
static volatile struct control *control;
static struct note *notes;
static unsigned long done;
static void *code, *pages, *mem;
static unsigned long *bitmap;
/* The guest's TSC minus this machine's. */
static uint64_t tsc_offset;
static struct span spans[8];
static int nr_spans;

static uint64_t guest_tsc(void)
{
	uint32_t low, high;

	asm volatile("lfence; rdtsc" : "=a" (low), "=d" (high) : : "memory");
	return ((uint64_t)high << 32 | low) + tsc_offset;
}

static long to_ns(uint64_t ticks)
{
	return ticks * 1000000 / tsc_khz;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "CPU %d", cpu);
}

static void *map_memory(size_t bytes, int flags)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags,
		       -1, 0);

	if (p == MAP_FAILED)
		err(1, "no %zu MiB of memory", bytes / MIB);
	if (!flags && madvise(p, bytes, MADV_NOHUGEPAGE) && errno != EINVAL)
		err(1, "MADV_NOHUGEPAGE");
	memset(p, 0, bytes);
	return p;
}

static void set_slot(int slot, unsigned long gpa, void *hva, size_t bytes, int flags)
{
	if (set_memslot(vm, slot, gpa, hva, bytes, flags))
		err(1, "slot %d", slot);
}

static void set_logging(int on)
{
	set_slot(SLOT, SLOT_GPA, mem, size, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static void populate(unsigned long gpa, size_t bytes)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = bytes };

	while (range.size)
		if (ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range) && errno != EINTR && errno != EAGAIN)
			err(1, "KVM_PRE_FAULT_MEMORY");
}

static void set_registers(void)
{
	struct kvm_regs regs = {
		.rip = CODE_GPA, .rbp = CONTROL_GPA, .rdi = NOTES_GPA, .rsi = FAULT_GPA,
		.rcx = FAULTS, .rflags = 2,
	};

	set_flat_mode(vcpu);
	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "KVM_SET_REGS");
}

static void make_vm(int features)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args = { features },
	};
	struct kvm_device_attr offset = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)&tsc_offset,
	};

	vm = open_vm(kvm, &vcpu, &run, 1);
	if (features && ioctl(vm, KVM_ENABLE_CAP, &cap))
		err(1, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	tsc_khz = ioctl(vcpu, KVM_GET_TSC_KHZ, 0);
	if ((int)tsc_khz <= 0)
		err(1, "KVM_GET_TSC_KHZ");
	if (ioctl(vcpu, KVM_GET_DEVICE_ATTR, &offset))
		err(1, "KVM_VCPU_TSC_OFFSET");

	set_slot(CODE, CODE_GPA, code, PAGE, 0);
	set_slot(CONTROL, CONTROL_GPA, (void *)control, PAGE, 0);
	set_slot(NOTES, NOTES_GPA, notes, FAULTS * sizeof(*notes), 0);
	set_slot(FAULT, FAULT_GPA, pages, FAULTS * PAGE, 0);
	set_logging(0);
	set_registers();
	populate(CODE_GPA, PAGE);
	populate(CONTROL_GPA, PAGE);
	populate(NOTES_GPA, FAULTS * sizeof(*notes));
	populate(SLOT_GPA, size);
}

static void close_vm(void)
{
	munmap(run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vcpu);
	close(vm);
}

/* The vCPU: faults until it has to stop. */
static void *take_faults(void *arg)
{
	struct kvm_regs regs;

	stay_on(0);
	do {
		if (ioctl(vcpu, KVM_RUN, 0) && errno != EINTR)
			err(1, "KVM_RUN");
	} while (run->exit_reason == KVM_EXIT_INTR);
	if (run->exit_reason != KVM_EXIT_HLT)
		errx(BAD_PROCESSOR, "the guest exited with reason %u, and it cannot have",
		     run->exit_reason);

	if (ioctl(vcpu, KVM_GET_REGS, &regs))
		err(1, "KVM_GET_REGS");
	done = FAULTS - regs.rcx;
	if (!regs.rcx)
		errx(1, "%lu pages to fault on were not enough", FAULTS);
	return arg;
}

static void begin(enum phase phase)
{
	spans[nr_spans].phase = phase;
	spans[nr_spans].begin = guest_tsc();
}

static void end(void)
{
	spans[nr_spans++].end = guest_tsc();
}

static void idle(void)
{
	begin(IDLE);
	usleep(IDLE_US);
	end();
}

static void clear_log(void)
{
	struct kvm_clear_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };

	for (; log.first_page < size / PAGE; log.first_page += CHUNK_PAGES) {
		log.num_pages = size / PAGE - log.first_page;
		if (log.num_pages > CHUNK_PAGES)
			log.num_pages = CHUNK_PAGES;
		if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log))
			err(1, "KVM_CLEAR_DIRTY_LOG");
	}
}

/* Enabling splits; what follows is the same slot, all of it small and clean. */
static void legacy(void)
{
	begin(ENABLE);
	set_logging(1);
	end();
	idle();
	begin(DISABLE);
	set_logging(0);
	end();
}

/* Clearing splits. */
static void manual(void)
{
	set_logging(1);
	memset(bitmap, 0xff, size / PAGE / 8);
	begin(CLEAR);
	clear_log();
	end();
	idle();
}

static int compare(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

/* Of the repetition under way from "first" on, before that those of the others. */
static struct {
	/* Room for all faults of the two VMs of each repetition. */
	long *latencies, duration, total;
	size_t nr, first;
} results[PHASES];

static void add(enum phase phase, const struct note *note)
{
	results[phase].latencies[results[phase].nr++] = to_ns(note->end - note->begin);
}

static void collect(void)
{
	for (int i = 0; i < nr_spans; i++)
		results[spans[i].phase].duration += to_ns(spans[i].end - spans[i].begin);

	for (size_t n = 0; n < done; n++) {
		const struct note *note = &notes[n];
		bool idling = false, busy = false;

		if (note->end < note->begin)
			errx(1, "note %zu ends before it begins", n);
		for (int i = 0; i < nr_spans; i++) {
			if (note->end < spans[i].begin || note->begin > spans[i].end)
				continue;
			if (spans[i].phase == IDLE) {
				idling = true;
			} else {
				add(spans[i].phase, note);
				busy = true;
			}
		}
		if (idling && !busy)
			add(IDLE, note);
	}
}

static void measure(void (*change)(void), int features)
{
	pthread_t thread;

	nr_spans = 0;
	control->stop = 0;
	make_vm(features);
	alarm(WATCHDOG_S);
	if (pthread_create(&thread, NULL, take_faults, NULL))
		errx(1, "no thread");
	/* Under way. */
	usleep(IDLE_US);
	idle();
	change();
	control->stop = 1;
	pthread_join(thread, NULL);
	alarm(0);
	collect();
	close_vm();
}

static void print_line(const char *repetition, enum phase phase, long duration, long *latencies,
		       size_t n)
{
	qsort(latencies, n, sizeof(*latencies), compare);
	printf("%s %s %ld %zu %ld %ld %ld\n", repetition, phases[phase], duration, n,
	       n ? latencies[n / 2] : 0, n ? latencies[n - 1 - n / 100] : 0,
	       n ? latencies[n - 1] : 0);
	fflush(stdout);
}

static void report(int repetition)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", repetition);
	for (int i = 0; i < PHASES; i++) {
		print_line(name, i, results[i].duration, results[i].latencies + results[i].first,
			   results[i].nr - results[i].first);
		results[i].first = results[i].nr;
		results[i].total += results[i].duration;
		results[i].duration = 0;
	}
}

static void report_all(int repeats)
{
	for (int i = 0; i < PHASES; i++) {
		if (!results[i].nr)
			errx(1, "no fault during '%s'", phases[i]);
		print_line("all", i, results[i].total / repeats, results[i].latencies,
			   results[i].nr);
	}
}

static void hangs(int sig)
{
	static const char message[] = "brownout: the guest does not stop, or KVM hangs\n";

	if (write(STDERR_FILENO, message, sizeof(message) - 1) > 0)
		_exit(BAD_PROCESSOR);
	_exit(sig);
}

int main(int argc, char **argv)
{
	int repeats;

	if (argc != 3 || atol(argv[1]) < 2 || atol(argv[1]) % 2 || atol(argv[1]) > 2048 ||
	    atoi(argv[2]) < 1)
		errx(1, "usage: brownout MiB REPEATS (MiB even, at most 2048)");
	size = atol(argv[1]) * MIB;
	repeats = atoi(argv[2]);

	signal(SIGALRM, hangs);
	stay_on(1);
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		err(1, "/dev/kvm");
	code = map_memory(PAGE, 0);
	memcpy(code, guest_begin, guest_end - guest_begin);
	control = map_memory(PAGE, 0);
	notes = map_memory(FAULTS * sizeof(*notes), 0);
	pages = map_memory(FAULTS * PAGE, 0);
	mem = map_memory(size, MAP_HUGETLB);
	bitmap = map_memory(size / PAGE / 8, 0);
	for (int phase = 0; phase < PHASES; phase++)
		results[phase].latencies = map_memory(2 * repeats * FAULTS *
							 sizeof(long), 0);

	for (int i = 1; i <= repeats; i++) {
		measure(legacy, 0);
		measure(manual, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
		report(i);
	}
	report_all(repeats);
	return 0;
}
