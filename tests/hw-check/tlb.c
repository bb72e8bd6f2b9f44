// SPDX-License-Identifier: GPL-2.0
/*
 * What the TLB and the page walker of this machine do, in a guest's own page tables and in
 * those of KVM: what an emulator cannot show.
 *
 *   tlb MiB SECONDS [bits]
 *
 * MiB is the memory that is logged (even, 4 to 1024), SECONDS how long each of the
 * races between a vCPU and KVM goes on; "bits" says that kvm.dirty_log is dirty_bits, and has
 * the log probed only, and that it is in D bits. Prints lines of five fields, with tabs between:
 *
 *   must   NAME  N  OF  TEXT     what the architecture or KVM promises: N has to be OF
 *   seen   NAME  N  OF  TEXT     what this processor does, in N of OF cases
 *   value  NAME  N  UNIT  TEXT   a figure
 *   skip   NAME  0  0  TEXT      what cannot be seen here, and why
 *
 * Exits with 1 if a promise is broken, and with 2 if it could not be carried out.
 */
#define _GNU_SOURCE
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
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "../vm.h"
#include "tlb.h"

#define HUGE_PAGE	(2 * MIB)
#define OWN_SLOT	0
#define DATA_SLOT	1

/* The guest's program, as the build has linked it. */
asm(".section .rodata\n"
	"program: .incbin \"" TLB_GUEST "\"\n"
	"program_end:\n"
	".previous\n");
extern const char program[], program_end[];

static size_t size;
static long seconds;
static int kvm, vm, vcpu, by_bits, broken;
static struct kvm_run *run;
static char *own, *data, *copy;
static unsigned long *bitmap;
static volatile struct tlb_shared *shared;

static unsigned long nr_pages(void)
{
	return size / PAGE;
}

/* --- results */

static void must(const char *name, unsigned long n, unsigned long of, const char *text)
{
	printf("must\t%s\t%lu\t%lu\t%s\n", name, n, of, text);
	broken |= n != of;
}

static void seen(const char *name, unsigned long n, unsigned long of, const char *text)
{
	printf("seen\t%s\t%lu\t%lu\t%s\n", name, n, of, text);
}

static void value(const char *name, double n, const char *unit, const char *text)
{
	printf("value\t%s\t%.1f\t%s\t%s\n", name, n, unit, text);
}

static void skip(const char *name, const char *text)
{
	printf("skip\t%s\t0\t0\t%s\n", name, text);
}

/* --- the VM */

static void set_slot(int slot, unsigned long gpa, void *hva, size_t bytes, int flags)
{
	if (set_memslot(vm, slot, gpa, hva, bytes, flags))
		err(2, "KVM_SET_USER_MEMORY_REGION");
}

static void set_logging(int on)
{
	set_slot(DATA_SLOT, DATA_GPA, data, size, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static void get_log(void)
{
	struct kvm_dirty_log log = { .slot = DATA_SLOT, .dirty_bitmap = bitmap };

	if (ioctl(vm, KVM_GET_DIRTY_LOG, &log))
		err(2, "KVM_GET_DIRTY_LOG");
}

static void clear_log(void)
{
	struct kvm_clear_dirty_log log = {
		.slot = DATA_SLOT,
		.num_pages = nr_pages(),
		.dirty_bitmap = bitmap,
	};

	if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log))
		err(2, "KVM_CLEAR_DIRTY_LOG");
}

/* A 64-bit guest, two GiB of whose addresses are mapped one to one, by pages of 2 MiB. */
static void set_sregs(void)
{
	struct kvm_segment segment = {
		.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1,
	};
	uint64_t *entry = (uint64_t *)(own + PD_GPA), *gdt = (uint64_t *)(own + GDT_GPA);
	struct kvm_sregs sregs;
	unsigned long i;

	*(uint64_t *)(own + PML4_GPA) = PDPT_GPA | PTE_P | PTE_W | PTE_A;
	for (i = 0; i < 2; i++)
		((uint64_t *)(own + PDPT_GPA))[i] = (PD_GPA + i * PAGE) | PTE_P | PTE_W | PTE_A;
	for (i = 0; i < 2 * ENTRIES; i++)
		entry[i] = i * HUGE_PAGE | PTE_P | PTE_W | PTE_A | PTE_D | PTE_PS;
	gdt[1] = 0x00af9b000000ffff;
	gdt[2] = 0x00cf93000000ffff;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(2, "KVM_GET_SREGS");
	sregs.ds = segment;
	sregs.es = segment;
	sregs.ss = segment;
	segment.selector = 8;
	segment.type = 11;
	segment.db = 0;
	segment.l = 1;
	sregs.cs = segment;
	sregs.gdt.base = GDT_GPA;
	sregs.gdt.limit = 3 * 8 - 1;
	sregs.cr3 = PML4_GPA;
	/* PE, MP, ET, NE, WP and PG, caches on; PAE; LME and LMA. */
	sregs.cr0 = 0x80010033;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(2, "KVM_SET_SREGS");
}

/* The guest may use what the processor has. Returns whether that is pages of 1 GiB, too. */
static int set_cpuid(void)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));
	int gigantic = 0;
	unsigned int i;

	if (!cpuid)
		err(2, "memory");
	cpuid->nent = 256;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(vcpu, KVM_SET_CPUID2, cpuid))
		err(2, "CPUID");
	for (i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 0x80000001)
			gigantic = cpuid->entries[i].edx >> 26 & 1;
	free(cpuid);
	return gigantic;
}

static void make_vm(int manual)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET },
	};

	vm = open_vm(kvm, &vcpu, &run, 2);
	if (manual && ioctl(vm, KVM_ENABLE_CAP, &cap))
		err(2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	memset(own, 0, OWN_BYTES);
	memcpy(own + PROGRAM_GPA, program, program_end - program);
	set_slot(OWN_SLOT, 0, own, OWN_BYTES, 0);
	set_logging(0);
	shared->pages = nr_pages();
	shared->gigantic = set_cpuid();
	set_sregs();
}

static void close_vm(void)
{
	munmap(run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	if (close(vcpu) || close(vm))
		err(2, "closing the VM");
}

static void run_guest(enum tlb_op op)
{
	struct kvm_regs regs = { .rip = PROGRAM_GPA, .rsp = STACK_GPA - 8, .rflags = 2 };

	shared->op = op;
	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		err(2, "KVM_SET_REGS");
	do {
		if (ioctl(vcpu, KVM_RUN, 0) && errno != EINTR)
			err(2, "KVM_RUN");
	} while (run->exit_reason == KVM_EXIT_INTR);
	if (shared->fault[0])
		errx(2, "exception %lu in the guest, rip %#lx code %#lx cr2 %#lx",
		     shared->fault[0] - 1, shared->fault[1], shared->fault[2], shared->fault[3]);
	if (run->exit_reason != KVM_EXIT_HLT)
		errx(2, "the guest exited with reason %u (%u)", run->exit_reason,
		     run->internal.suberror);
}

/* --- the guest's own tables */

static void probe_tables(void)
{
	unsigned long i;

	make_vm(0);
	run_guest(OP_TABLES);
	for (i = 0; i < shared->nr_results; i++) {
		volatile struct tlb_result *r = &shared->results[i];

		(r->kind == MUST ? must : seen)(own + r->name, r->n, r->of, own + r->text);
	}
	if (!shared->gigantic)
		skip("1g", "the processor has no pages of 1 GiB");
	close_vm();
}

/* --- KVM's tables: one at a time */

static double touch_ticks(void)
{
	double best = 0;
	int i;

	/* The first time, pages may have to be mapped. */
	for (i = 0; i < 6; i++) {
		run_guest(OP_TOUCH);
		if (i && (!best || shared->ticks < best))
			best = shared->ticks;
	}
	return best / nr_pages();
}

/* Marks about one page of eight, others each time. */
static void mark_pages(unsigned int round)
{
	uint64_t random = round + 1;
	unsigned long i;

	for (i = 0; i < nr_pages() / 8; i++) {
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		shared->mask[i] = 1u << (random >> 61);
	}
}

static unsigned long count_log(int marked)
{
	unsigned long n = 0, i;

	for (i = 0; i < nr_pages(); i++)
		if (bitmap[i / 64] >> i % 64 & 1)
			n += (shared->mask[i / 8] >> i % 8 & 1) == marked;
	return n;
}

/* That GET has looked for D bits: by faults, there would be nothing new in what is probed. */
static void must_be_bits(const char *name)
{
	FILE *file = fopen("/sys/kernel/debug/kvm/mmu_dirty_tables", "r");
	unsigned long tables;

	if (!file || fscanf(file, "%lu", &tables) != 1)
		skip(name, "debugfs does not tell whether GET has looked for D bits");
	else
		must(name, tables > 0, 1, "GET has looked for D bits");
	if (file)
		fclose(file);
}

/* What dirty logging sees of a vCPU whose TLB is warm when the log is read. */
static void probe_log(int manual)
{
	unsigned long missed = 0, extra = 0, written = 0, i;
	int round, rounds = 24;
	double huge, split;

	make_vm(manual);
	memset((void *)shared->mask, 0xff, nr_pages() / 8);
	run_guest(OP_WRITE);
	huge = touch_ticks();
	set_logging(1);
	if (manual) {
		memset(bitmap, 0xff, nr_pages() / 8);
		clear_log();
	}
	split = touch_ticks();
	for (round = 0; round < rounds; round++) {
		mark_pages(round);
		run_guest(OP_WRITE);
		get_log();
		written += nr_pages() / 8;
		missed += nr_pages() / 8 - count_log(1);
		extra += count_log(0);
		if (manual)
			clear_log();
	}
	must(manual ? "log-clear-missed" : "log-get-missed", written - missed, written,
	     manual ? "a write after CLEAR is in the log, whatever the TLB holds"
		    : "a write after GET is in the log, whatever the TLB holds");
	must(manual ? "log-clear-extra" : "log-get-extra", extra, 0,
	     "and no page that was not written");
	if (by_bits)
		must_be_bits(manual ? "log-clear-bits" : "log-get-bits");
	set_logging(0);
	if (!manual) {
		value("touch-huge", huge, "ticks",
		      "of the TSC to read a byte of a page, mapped as the host has it");
		value("touch-split", split, "ticks", "while dirty logging has it split");
		value("touch-recovered", touch_ticks(), "ticks", "when it is recovered");
		/* All of them: by a TLB that has the small pages. */
		memset((void *)shared->mask, 0xff, nr_pages() / 8);
		run_guest(OP_WRITE);
		for (i = 0, missed = 0; i < nr_pages(); i++)
			missed += ((uint64_t *)(data + i * PAGE))[2] == 0;
		must("recovered-written", nr_pages() - missed, nr_pages(),
		     "pages are written through what is recovered");
	}
	close_vm();
}

/*
 * Aging clears A without a flush. How many pages that the guest touches afterwards does
 * the host take for idle?
 */
static void probe_aging(void)
{
	uint64_t frames[ENTRIES], word;
	unsigned long i, idle = 0;
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	int bits = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);

	if (bits < 0) {
		skip("aged", "the kernel has no page_idle (CONFIG_IDLE_PAGE_TRACKING)");
		return;
	}
	make_vm(0);
	run_guest(OP_TOUCH);
	if (pagemap < 0 || pread(pagemap, frames, sizeof(frames), (uintptr_t)data / PAGE * 8) !=
	    sizeof(frames))
		err(2, "pagemap");
	for (i = 0; i < ENTRIES; i++) {
		frames[i] &= (1ull << 55) - 1;
		word = 1ull << frames[i] % 64;
		if (pwrite(bits, &word, 8, frames[i] / 64 * 8) != 8)
			err(2, "page_idle");
	}
	run_guest(OP_TOUCH);
	for (i = 0; i < ENTRIES; i++) {
		if (pread(bits, &word, 8, frames[i] / 64 * 8) != 8)
			err(2, "page_idle");
		idle += word >> frames[i] % 64 & 1;
	}
	seen("aged", idle, ENTRIES, "a page counts as idle though it was read after it was aged");
	close_vm();
	close(bits);
	close(pagemap);
}

/* --- KVM's tables: races */

/* Two processors of those that this program may use; one, if there is no other. */
static int cpu_of(int n)
{
	cpu_set_t set;
	int cpu, last = 0;

	if (sched_getaffinity(0, sizeof(set), &set))
		err(2, "sched_getaffinity");
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &set)) {
			last = cpu;
			if (!n--)
				break;
		}
	return last;
}

static void *run_thread(void *op)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu_of(1), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(2, "sched_setaffinity");
	run_guest((enum tlb_op)(uintptr_t)op);
	return NULL;
}

static pthread_t thread;
static struct timespec end;

static void start_guest(enum tlb_op op)
{
	shared->stop = 0;
	shared->done = 0;
	if (pthread_create(&thread, NULL, run_thread, (void *)(uintptr_t)op))
		errx(2, "no thread");
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += seconds;
}

static void stop_guest(void)
{
	shared->stop = 1;
	if (pthread_join(thread, NULL))
		errx(2, "pthread_join");
}

static int time_left(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec);
}

static unsigned long copy_dirty(void)
{
	unsigned long n = 0, i;

	for (i = 0; i < nr_pages(); i++)
		if (bitmap[i / 64] >> i % 64 & 1) {
			memcpy(copy + i * PAGE, data + i * PAGE, PAGE);
			n++;
		}
	return n;
}

/* Waits until the guest has written the first page, but not for long. Returns whether it has. */
static int count_goes_on(int alone)
{
	volatile uint64_t *count = (uint64_t *)data + 4;
	uint64_t before = *count;
	int spins;

	for (spins = 0; spins < 100000 && *count == before; spins++)
		if (alone)
			sched_yield();
	return *count != before;
}

/*
 * The guest writes one page all the while. When the log has been read, whatever it writes
 * next has to be in the next log: by then no CPU may write by what it had cached before.
 */
static void race_flush(int manual)
{
	int alone = cpu_of(1) == cpu_of(0);
	unsigned long writes = 0, missed = 0;

	make_vm(manual);
	set_logging(1);
	if (manual) {
		memset(bitmap, 0xff, nr_pages() / 8);
		clear_log();
	}
	start_guest(OP_COUNT);
	while (time_left()) {
		get_log();
		if (manual)
			clear_log();
		if (!count_goes_on(alone))
			continue;
		get_log();
		writes++;
		missed += !(bitmap[0] & 1);
	}
	stop_guest();
	if (!writes)
		errx(2, "the guest has written nothing, so this shows nothing");
	must(manual ? "race-flush-clear" : "race-flush-get", writes - missed, writes,
	     manual ? "a write at once after CLEAR, on another CPU, is in the log"
		    : "a write at once after GET, on another CPU, is in the log");
	close_vm();
}

/*
 * Migrations to a copy, one after the other, of a guest that writes all the while. At the
 * end of each the guest is stopped, and the copy has to be like the memory.
 */
static void race_log(int manual)
{
	unsigned long migrations = 0, copied = 0, differ = 0, writes = 0, i;
	struct timespec until;
	int round;

	make_vm(manual);
	start_guest(OP_SCRIBBLE);
	until = end;
	do {
		set_logging(1);
		/* What is set at first is all; in the other mode, all has to be copied. */
		memset(bitmap, 0xff, nr_pages() / 8);
		if (manual) {
			get_log();
			clear_log();
		}
		copied += copy_dirty();
		for (round = 0; round < 8; round++) {
			get_log();
			if (manual)
				clear_log();
			copied += copy_dirty();
		}
		stop_guest();
		writes += shared->done;
		get_log();
		copied += copy_dirty();
		for (i = 0; i < nr_pages(); i++)
			differ += !!memcmp(copy + i * PAGE, data + i * PAGE, PAGE);
		migrations++;
		start_guest(OP_SCRIBBLE);
		end = until;
		/* Pages are recovered under it. */
		set_logging(0);
	} while (time_left());
	stop_guest();
	must(manual ? "race-clear" : "race-get", differ, 0,
	     manual ? "pages differ after migrations by CLEAR, the guest writing on another CPU"
		    : "pages differ after migrations by GET, the guest writing on another CPU");
	value(manual ? "race-clear-migrations" : "race-get-migrations", migrations, "migrations",
	      "to memory of this process");
	value(manual ? "race-clear-pages" : "race-get-pages", copied, "pages", "copied in them");
	value(manual ? "race-clear-writes" : "race-get-writes", writes, "writes",
	      "of the guest meanwhile");
	if (!writes)
		errx(2, "the guest has written nothing, so this shows nothing");
	close_vm();
}

/*
 * The host gives pages other frames, and the guest must not read the old ones when the
 * host has got back from that. The pages are small: what is given back is one.
 */
static void race_zap(void)
{
	unsigned long generation = 1, page, zaps = 0;
	char *huge = data, *small;
	uint64_t random = 7;

	small = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (small == MAP_FAILED)
		err(2, "memory");
	if (madvise(small, size, MADV_NOHUGEPAGE) && errno != EINVAL)
		err(2, "MADV_NOHUGEPAGE");
	data = small;
	make_vm(0);
	for (page = 0; page < ENTRIES; page++) {
		*(uint64_t *)(data + page * PAGE) = generation;
		shared->holds[page] = generation;
	}
	shared->stale = 0;
	start_guest(OP_WATCH);
	while (time_left()) {
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		page = (random >> 33) % ENTRIES;
		generation++;
		shared->holds[page] = 0;
		if (madvise(data + page * PAGE, PAGE, MADV_DONTNEED))
			err(2, "MADV_DONTNEED");
		*(volatile uint64_t *)(data + page * PAGE) = generation;
		shared->holds[page] = generation;
		zaps++;
	}
	stop_guest();
	if (!shared->done)
		errx(2, "the guest has read nothing, so this shows nothing");
	must("race-zap", shared->stale, 0, "pages read by a frame that KVM had unmapped");
	value("race-zap-pages", zaps, "pages", "unmapped under the guest");
	value("race-zap-reads", shared->done, "reads", "of the guest meanwhile");
	close_vm();
	munmap(small, size);
	data = huge;
}

static char *map_memory(size_t bytes, int flags)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags,
		       -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int main(int argc, char **argv)
{
	long mib;

	by_bits = argc == 4 && !strcmp(argv[3], "bits");
	mib = argc == 3 + by_bits ? atol(argv[1]) : 0;
	seconds = argc == 3 + by_bits ? atol(argv[2]) : 0;
	if (mib < 4 || mib > 1024 || mib % 2 || seconds < 1)
		errx(2, "usage: tlb MiB SECONDS [bits] (MiB even, 4 to 1024)");
	size = mib * MIB;
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		err(2, "/dev/kvm");
	own = map_memory(OWN_BYTES, 0);
	copy = map_memory(size, 0);
	bitmap = malloc(nr_pages() / 8);
	data = map_memory(size, MAP_HUGETLB);
	if (!own || !copy || !bitmap || !data)
		err(2, "no memory (%ld MiB in huge pages of 2 MiB, and as much again)", mib);
	shared = (struct tlb_shared *)(own + SHARED_GPA);
	if (!by_bits)
		probe_tables();
	probe_log(0);
	probe_log(1);
	if (!by_bits)
		probe_aging();
	if (cpu_of(1) == cpu_of(0))
		skip("another-cpu", "there is one CPU, so that races are between time slices");
	race_flush(0);
	race_flush(1);
	race_log(0);
	race_log(1);
	if (!by_bits)
		race_zap();
	return broken;
}
