// SPDX-License-Identifier: GPL-2.0
/*
 * The guest of the migration test. It is its own firmware (boot.S), needs no
 * operating system, and is up within milliseconds.
 *
 * Processor 0 writes pages at a fixed rate. Each page holds a sequence number
 * that grows by one with each write, words that follow from it, and a checksum;
 * a table elsewhere in memory holds the sequence number that each page should
 * have. Before a page is written it is checked, so a page (or a part of the
 * table) that was lost or torn on its way to another host is found by the next
 * write at the latest, or when the host asks to have all pages checked.
 *
 * Processor 1 is the stall meter. A timer wakes it at fixed times; it writes one
 * page of its own and notes how late after the time it was done. A time that is
 * missed is not left out: the next one is as late as it is; unless it is very late,
 * because the TSC has moved on while the guest stood still. The last of these
 * samples are kept one by one, so that the host can tell what it was doing.
 *
 * The host reads and writes struct control through /proc/PID/mem of QEMU. What
 * the host writes there while memory is migrated is not in the dirty log; but
 * processor 0 writes to that page at each of its ticks.
 */
/* The host looks, and writes, at any time. */
#define __shared	__volatile__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE_SIZE	4096ul

/* common.py has the layout of all this. */
#define CONTROL		0x200000ul
#define SEQUENCES	0x280000ul	/* a u32 for each page */
#define MAX_PAGES	((0x300000 - SEQUENCES) / sizeof(u32))
#define TIMELINE	0x300000ul
#define NR_WINDOWS	8192ul
#define HISTOGRAMS	0x380000ul
#define NR_PHASES	8
#define SUB_BITS	5		/* 32 buckets for each power of two */
#define NR_BUCKETS	(40 << SUB_BITS)
#define SAMPLES		0x390000ul
#define NR_SAMPLES	57344ul
#define SAMPLE_SHIFT	8
#define DATA		0x400000ul

#define MAGIC		0x6d69677261746521ul

enum command {
	CMD_RUN,
	CMD_QUIESCE,		/* touch nothing: tick and look for commands only */
	CMD_CHECK,		/* check all pages, then as CMD_QUIESCE */
	CMD_EJECT,		/* eject the memory device 0, then as CMD_QUIESCE */
};

struct cpu {
	u64 ticks;
	u64 tsc;
	u64 pages;		/* written */
	u64 max_late;
	u64 ack;		/* the last command that was obeyed */
};

struct control {
	u64 magic;		/* set when the guest is up */
	/* Set by the host. */
	u64 ram_size;
	u64 period[2];		/* of each processor, in TSC ticks */
	u64 batch;		/* pages that processor 0 writes in a tick */
	u64 window;		/* of the timeline, in TSC ticks */
	u64 command;
	u64 serial;		/* of the command */
	u64 phase;
	u64 ext_base;		/* memory that was plugged in */
	u64 ext_size;
	u64 execute;		/* also run code in the pages that are written */
	/* Set by the guest. */
	u64 checked;		/* pages found good by the last CMD_CHECK */
	u64 errors;
	u64 error[4];		/* the first: page, expected, found, TSC */
	u64 fault[4];		/* an exception: vector, rip, error code, cr2 */
	u64 start_tsc;
	u64 pad;
	struct cpu cpu[2];
	struct {
		u64 pages, ticks;
	} cost[NR_PHASES];	/* what writing pages took processor 0 */
	u64 max_late[NR_PHASES];
	u64 nr_samples;		/* of the meter, since the host has reset this */
};

/* When the meter was done, in units of 256 ticks after start_tsc; and how late that was. */
struct sample {
	u32 when, late;
};

struct window {
	u32 late;		/* the largest that ended in this window */
	u32 pages;
	u32 ticks;		/* spent writing them */
	u32 phase;
};

#define control ((__shared struct control *)CONTROL)
#define sequences ((__shared u32 *)SEQUENCES)
#define timeline ((__shared struct window *)TIMELINE)
#define samples ((__shared struct sample *)SAMPLES)
#define histograms ((__shared u32 (*)[NR_BUCKETS])HISTOGRAMS)

#define MSR_TSC_DEADLINE	0x6e0
#define MSR_APIC_BASE		0x1b
#define MSR_X2APIC_EOI		0x80b
#define MSR_X2APIC_SVR		0x80f
#define MSR_X2APIC_ICR		0x830
#define MSR_X2APIC_LVT_TIMER	0x832
#define TIMER_VECTOR		0x40

static u64 read_tsc(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) :: "memory");
	return (u64)high << 32 | low;
}

static void wrmsr(u32 msr, u64 value)
{
	asm volatile("wrmsr" :: "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static u64 rdmsr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}

static void port_write32(u16 port, u32 value)
{
	asm volatile("outl %0, %1" :: "a"(value), "d"(port));
}

static void port_write8(u16 port, u8 value)
{
	asm volatile("outb %0, %1" :: "a"(value), "d"(port));
}

/* --- interrupts and exceptions */

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

static void die(u64 vector, struct frame *frame, u64 code)
{
	u64 cr2;

	asm volatile("mov %%cr2, %0" : "=r"(cr2));
	control->fault[1] = frame->rip;
	control->fault[2] = code;
	control->fault[3] = cr2;
	control->fault[0] = vector + 1;
	for (;;)
		asm volatile("cli; hlt");
}

#define EXCEPTION(n)							\
static __attribute__((interrupt)) void exception_##n(struct frame *f)	\
{									\
	die(n, f, 0);							\
}

#define EXCEPTION_CODE(n)						\
static __attribute__((interrupt)) void exception_##n(struct frame *f, u64 code)	\
{									\
	die(n, f, code);						\
}

EXCEPTION(0)
EXCEPTION(2)
EXCEPTION(3)
EXCEPTION(6)
EXCEPTION(7)
EXCEPTION_CODE(8)
EXCEPTION_CODE(13)
EXCEPTION_CODE(14)
EXCEPTION(18)

static __attribute__((interrupt)) void timer(struct frame *f)
{
	wrmsr(MSR_X2APIC_EOI, 0);
}

static __attribute__((interrupt)) void spurious(struct frame *f)
{
}

static struct {
	u16 low, selector;
	u16 flags, middle;
	u32 high, zero;
} idt[256];

static void set_gate(unsigned int vector, const void *handler)
{
	u64 address = (u64)handler;

	idt[vector].low = address;
	idt[vector].selector = 0x18;
	idt[vector].flags = 0x8e00;
	idt[vector].middle = address >> 16;
	idt[vector].high = address >> 32;
}

static void init_cpu(void)
{
	/* The limit, and the address as four words. */
	u16 idtr[5] = { sizeof(idt) - 1, (u64)idt, (u64)idt >> 16 };

	asm volatile("lidt %0" :: "m"(idtr));
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 1 << 10 | 1 << 11);
	wrmsr(MSR_X2APIC_SVR, 0x1ff);
	wrmsr(MSR_X2APIC_LVT_TIMER, TIMER_VECTOR | 2 << 17);
}

/* Sleeps until @deadline, unless it is over already. */
static void sleep_until(u64 deadline)
{
	while (read_tsc() < deadline) {
		wrmsr(MSR_TSC_DEADLINE, deadline);
		asm volatile("sti; hlt; cli" ::: "memory");
	}
}

/* --- pages */

#define WORDS		8
#define CHECKSUM	511

static u64 nr_pages(void)
{
	return (control->ram_size - DATA) / PAGE_SIZE;
}

static u64 nr_ext_pages(void)
{
	return control->ext_size / PAGE_SIZE;
}

static __shared u64 *page_address(u64 page)
{
	u64 nr = nr_pages();

	if (page < nr)
		return (__shared u64 *)(DATA + page * PAGE_SIZE);
	return (__shared u64 *)(control->ext_base + (page - nr) * PAGE_SIZE);
}

static u64 word(u64 page, u32 sequence, unsigned int n)
{
	return (page << 40 ^ (u64)n << 32 ^ sequence) * 0x9e3779b97f4a7c15ul;
}

static void error(u64 page, u64 expected, u64 found)
{
	if (!control->errors++) {
		control->error[0] = page;
		control->error[1] = expected;
		control->error[2] = found;
		control->error[3] = read_tsc();
	}
}

static int check_page(u64 page, u32 sequence)
{
	__shared u64 *p = page_address(page);
	u64 sum = 0, want;
	unsigned int n;

	if (p[0] != sequence) {
		error(page, sequence, p[0]);
		return 0;
	}
	for (n = 1; n < WORDS; n++) {
		want = word(page, sequence, n);
		if (p[n * 64] != want) {
			error(page, want, p[n * 64]);
			return 0;
		}
		sum += want;
	}
	if (p[CHECKSUM] != sum) {
		error(page, sum, p[CHECKSUM]);
		return 0;
	}
	return 1;
}

static void write_page(u64 page)
{
	__shared u64 *p = page_address(page);
	u32 sequence = sequences[page];
	unsigned int n;
	u64 sum = 0, w;

	/* What is wrong is noted once, and is right from then on. */
	if (sequence)
		check_page(page, sequence);
	sequence++;
	p[0] = sequence;
	for (n = 1; n < WORDS; n++) {
		w = word(page, sequence, n);
		p[n * 64] = w;
		sum += w;
	}
	p[CHECKSUM] = sum;
	sequences[page] = sequence;
}

/* Calls a function in a page, in a word that is not checked. */
static void execute_page(u64 page)
{
	__shared u64 *code = page_address(page) + 1;

	/* RET */
	*code = 0xc3;
	((void (*)(void))(u64)code)();
}

static u64 next_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state >> 11;
}

/* --- the two processors */

static void record(u64 phase, u64 late)
{
	unsigned int bits = 64 - __builtin_clzl(late | 1), bucket = late;

	if (bits > SUB_BITS + 1)
		bucket = ((bits - SUB_BITS - 1) << SUB_BITS) + (late >> (bits - SUB_BITS - 1));
	if (bucket >= NR_BUCKETS)
		bucket = NR_BUCKETS - 1;
	histograms[phase][bucket]++;
	if (late > control->max_late[phase])
		control->max_late[phase] = late;
}

static __shared struct window *window_at(u64 tsc)
{
	u64 n = (tsc - control->start_tsc) / control->window;

	return &timeline[n % NR_WINDOWS];
}

/* Obeys the command, if it is new. Returns whether to go on with the work. */
static int obey(unsigned int cpu)
{
	u64 command = control->command, serial = control->serial, page;

	if (control->cpu[cpu].ack == serial)
		return command == CMD_RUN;

	if (!cpu && (command == CMD_CHECK || command == CMD_EJECT)) {
		if (control->cpu[1].ack != serial)
			return 0;
		if (command == CMD_CHECK) {
			u64 good = 0, nr = nr_pages() + nr_ext_pages();

			for (page = 0; page < nr; page++) {
				if (!sequences[page] || check_page(page, sequences[page]))
					good++;
			}
			control->checked = good;
		} else {
			/* The ACPI registers of memory hotplug: slot, then command. */
			for (page = nr_pages(); page < nr_pages() + nr_ext_pages(); page++)
				sequences[page] = 0;
			control->ext_size = 0;
			port_write32(0xa00, 0);
			port_write8(0xa14, 1 << 3);
		}
	}
	control->cpu[cpu].ack = serial;
	return command == CMD_RUN;
}

static void run(unsigned int cpu)
{
	u64 nr_own, deadline, start, now, late, phase, done, seed = 0x1234567 + cpu;
	__shared struct cpu *self = &control->cpu[cpu];
	__shared struct window *window;

	/* The last quarter is the meter's. */
	nr_own = nr_pages() / 4 * (cpu ? 1 : 3);

	for (deadline = read_tsc();; deadline += control->period[cpu]) {
		sleep_until(deadline);
		if (!obey(cpu)) {
			deadline = read_tsc();
			continue;
		}

		phase = control->phase;
		if (cpu) {
			write_page(nr_pages() / 4 * 3 + next_random(&seed) % nr_own);
			now = read_tsc();
			late = now - deadline;
			record(phase, late);
			samples[control->nr_samples % NR_SAMPLES].when =
				(now - control->start_tsc) >> SAMPLE_SHIFT;
			samples[control->nr_samples % NR_SAMPLES].late = late < ~0u ? late : ~0u;
			control->nr_samples++;
			window = window_at(now);
			if (late > window->late)
				window->late = late < ~0u ? late : ~0u;
			self->pages++;
			if (late > self->max_late)
				self->max_late = late;
			/* Another host, whose TSC is ahead: not a backlog to catch up with. */
			if (late > 200 * control->period[cpu])
				deadline = now;
		} else {
			start = read_tsc();
			for (done = 0; done < control->batch; done++) {
				u64 nr = nr_own + nr_ext_pages(), page;

				page = next_random(&seed) % nr;
				if (page >= nr_own)
					page += nr_pages() - nr_own;
				write_page(page);
				if (control->execute)
					execute_page(page);
			}
			now = read_tsc();
			control->cost[phase].pages += done;
			control->cost[phase].ticks += now - start;
			window = window_at(now);
			window->pages += done;
			window->ticks += now - start;
			window->phase = phase;
			self->pages += done;
			/* The rate is of time, and what was missed is missed. */
			if (now > deadline + control->period[cpu])
				deadline = now;
		}
		self->ticks++;
		self->tsc = now;
	}
}

void guest_main(unsigned int cpu)
{
	u64 page;

	if (!cpu) {
		set_gate(0, exception_0);
		set_gate(2, exception_2);
		set_gate(3, exception_3);
		set_gate(6, exception_6);
		set_gate(7, exception_7);
		set_gate(8, exception_8);
		set_gate(13, exception_13);
		set_gate(14, exception_14);
		set_gate(18, exception_18);
		set_gate(TIMER_VECTOR, timer);
		set_gate(0xff, spurious);
		init_cpu();
		for (page = 0; page < nr_pages(); page++)
			write_page(page);
		control->start_tsc = read_tsc();
		/* INIT and SIPI to processor 1, whose first page is 0xff. */
		wrmsr(MSR_X2APIC_ICR, 1ul << 32 | 0x4500);
		sleep_until(read_tsc() + control->period[0]);
		wrmsr(MSR_X2APIC_ICR, 1ul << 32 | 0x46ff);
		control->magic = MAGIC;
	} else {
		init_cpu();
	}
	run(cpu);
}
