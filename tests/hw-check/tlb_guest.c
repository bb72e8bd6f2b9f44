// SPDX-License-Identifier: GPL-2.0
/*
 * The guest of tlb.c, in 64-bit mode and ring 0. It changes page tables of its own under a
 * TLB that is warm, looks at what the processor does with them, and flushes; the tables
 * map a window of its address space, by four levels, to the data.
 *
 * The second dimension behaves like the first in hardware (the walker and the caches are
 * the same), and there the guest cannot see it: tlb.c looks at that through KVM.
 */
#include "tlb.h"

typedef unsigned int u32;
typedef unsigned long u64;

/* The host looks and writes at any time, and the processor sets bits of tables. */
#define __shared	__volatile__

#define shared ((__shared struct tlb_shared *)SHARED_GPA)
#define pml4 ((__shared u64 *)PML4_GPA)

/* The window is behind the second entry of the root. */
#define WINDOW		(1ul << 39)
#define HUGE		(2 * MIB)
/* Entries without A and D. */
#define TABLE		(PTE_P | PTE_W)

typedef __shared u64 table_t[ENTRIES] __attribute__((aligned(4096)));

static table_t pdpt, pd, pt, other_pt;

/* Where an access that faults goes on, if it may; and how many did. */
static __shared u64 fixup, faults;

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

static void die(u64 vector, struct frame *frame, u64 code)
{
	u64 cr2;

	asm volatile("mov %%cr2, %0" : "=r"(cr2));
	shared->fault[1] = frame->rip;
	shared->fault[2] = code;
	shared->fault[3] = cr2;
	shared->fault[0] = vector + 1;
	for (;;)
		asm volatile("cli; hlt");
}

static __attribute__((interrupt)) void page_fault(struct frame *frame, u64 code)
{
	if (!fixup)
		die(14, frame, code);
	*(__shared u64 *)&frame->rip = fixup;
	faults++;
}

static __attribute__((interrupt)) void general_protection(struct frame *frame, u64 code)
{
	die(13, frame, code);
}

static __attribute__((interrupt)) void invalid_opcode(struct frame *frame)
{
	die(6, frame, 0);
}

static struct {
	unsigned short low, selector;
	unsigned short flags, middle;
	u32 high, zero;
} idt[32];

static void set_gate(unsigned int vector, const void *handler)
{
	u64 address = (u64)handler;

	idt[vector].low = address;
	idt[vector].selector = 0x08;
	idt[vector].flags = 0x8e00;
	idt[vector].middle = address >> 16;
	idt[vector].high = address >> 32;
}

/* --- what a processor is asked for */

static void flush_all(void)
{
	u64 cr3;

	asm volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(cr3) : : "memory");
}

static void invlpg(u64 address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

/* What is stored to a table is there before anything is accessed by it. */
static void fence(void)
{
	asm volatile("mfence" : : : "memory");
}

static u64 ticks(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

/* The word at an address; ~0 after a fault. */
static u64 load(u64 address)
{
	u64 value = ~0ul;

	asm volatile("movq $1f, %1; movq (%2), %0; 1: movq $0, %1"
		     : "+r"(value), "=m"(fixup) : "r"(address) : "memory");
	return value;
}

/* Whether a store goes through. */
static int store(u64 address, u64 value)
{
	u64 before = faults;

	asm volatile("movq $1f, %0; movq %1, (%2); 1: movq $0, %0"
		     : "=m"(fixup) : "r"(value), "r"(address) : "memory");
	return faults == before;
}

/* --- results */

static void result(u64 kind, const char *name, u64 n, u64 of, const char *text)
{
	__shared struct tlb_result *r = &shared->results[shared->nr_results];

	r->kind = kind;
	r->name = (u64)name;
	r->text = (u64)text;
	r->n = n;
	r->of = of;
	shared->nr_results++;
}

/* --- the window */

/* The frames of the window: 512, and 512 others. Their second word is their address. */
static u64 frame_of(int other, int i)
{
	return DATA_GPA + other * HUGE + i * PAGE;
}

static u64 page_of(int i)
{
	return WINDOW + i * PAGE;
}

static void name_frames(void)
{
	int other, i;

	for (other = 0; other < 2; other++)
		for (i = 0; i < ENTRIES; i++)
			*(__shared u64 *)(frame_of(other, i) + 8) = frame_of(other, i);
}

static u64 named(int i)
{
	return load(page_of(i) + 8);
}

static void fill(table_t table, int other, u64 bits)
{
	int i;

	for (i = 0; i < ENTRIES; i++)
		table[i] = frame_of(other, i) | bits;
}

/* The tables above the leaves have neither A nor D then, and nothing is cached. */
static void set_upper(u64 pd_entry)
{
	pd[0] = pd_entry;
	pdpt[0] = (u64)pd | TABLE;
	pml4[1] = (u64)pdpt | TABLE;
	fence();
	flush_all();
}

static void map_small(u64 bits)
{
	fill(pt, 0, bits);
	set_upper((u64)pt | TABLE);
}

static void map_huge(u64 bits)
{
	set_upper(frame_of(0, 0) | PTE_PS | bits);
}

static u64 count(table_t table, u64 bits)
{
	u64 n = 0;
	int i;

	for (i = 0; i < ENTRIES; i++)
		n += (table[i] & bits) == bits;
	return n;
}

static void clear(table_t table, u64 bits)
{
	int i;

	for (i = 0; i < ENTRIES; i++)
		table[i] &= ~bits;
	fence();
}

static void load_all(void)
{
	int i;

	for (i = 0; i < ENTRIES; i++)
		load(page_of(i));
}

static u64 store_all(void)
{
	u64 n = 0;
	int i;

	for (i = 0; i < ENTRIES; i++)
		n += store(page_of(i), i);
	return n;
}

/* How many pages are those of the other frames. */
static u64 count_others(void)
{
	u64 n = 0;
	int i;

	for (i = 0; i < ENTRIES; i++)
		n += named(i) == frame_of(1, i);
	return n;
}

/* --- the probes */

static int uppers(u64 bits)
{
	return !!(pml4[1] & bits) + !!(pdpt[0] & bits) + !!(pd[0] & bits);
}

static void probe_first_access(void)
{
	map_small(TABLE);
	load(page_of(0));
	result(MUST, "4k-read-a", uppers(PTE_A) + !!(pt[0] & PTE_A), 4,
	       "a read sets A at each of four levels");
	result(MUST, "4k-read-d", !uppers(PTE_D) && !(pt[0] & PTE_D), 1,
	       "and D at none");
	result(SEEN, "4k-ahead-a", count(pt, PTE_A) - 1, ENTRIES - 1,
	       "pages that nobody has read have A, too");
	store(page_of(1), 0);
	result(MUST, "4k-write-d", !!(pt[1] & PTE_D), 1, "a write sets D of a 4 KiB leaf");
	result(MUST, "4k-write-upper-d", !uppers(PTE_D), 1, "and above the leaf nowhere");

	map_huge(TABLE);
	load(page_of(0));
	result(MUST, "2m-read-a", uppers(PTE_A), 3, "a read sets A above a 2 MiB leaf and there");
	result(MUST, "2m-read-d", !(pd[0] & PTE_D), 1, "and D not");
	store(page_of(ENTRIES - 1), 0);
	result(MUST, "2m-write-d", !!(pd[0] & PTE_D), 1, "a write sets D of a 2 MiB leaf");

	if (!shared->gigantic)
		return;
	pdpt[0] = DATA_GPA | PTE_PS | TABLE;
	pml4[1] = (u64)pdpt | TABLE;
	fence();
	flush_all();
	load(WINDOW);
	result(MUST, "1g-read-a", !!(pml4[1] & PTE_A) + !!(pdpt[0] & PTE_A), 2,
	       "a read sets A above a 1 GiB leaf and there");
	result(MUST, "1g-read-d", !(pdpt[0] & PTE_D), 1, "and D not");
	store(WINDOW + PAGE, 0);
	result(MUST, "1g-write-d", !!(pdpt[0] & PTE_D), 1, "a write sets D of a 1 GiB leaf");
}

static void probe_cleared_bits(void)
{
	map_small(TABLE);
	load_all();
	clear(pt, PTE_A);
	load_all();
	result(SEEN, "a-again", count(pt, PTE_A), ENTRIES,
	       "A of a leaf is set anew after it was cleared without a flush");
	clear(pt, PTE_A);
	flush_all();
	load_all();
	result(MUST, "a-again-flushed", count(pt, PTE_A), ENTRIES, "and after a flush");

	map_small(TABLE);
	store_all();
	clear(pt, PTE_D);
	store_all();
	result(SEEN, "d-again", count(pt, PTE_D), ENTRIES,
	       "D of a leaf is set anew after it was cleared without a flush");
	clear(pt, PTE_D);
	flush_all();
	store_all();
	result(MUST, "d-again-flushed", count(pt, PTE_D), ENTRIES, "and after a flush");

	map_small(TABLE);
	load_all();
	store_all();
	result(MUST, "d-after-read", count(pt, PTE_D), ENTRIES,
	       "D is set where a read had cached the page before");
}

/*
 * The first page of the table is in the TLB, and the tables above are in the caches of the
 * walker. Then A is cleared above, and another page is accessed, which is in no TLB.
 */
static void probe_upper_caches(void)
{
	u64 leaf = 0, dirty = 0, at[3] = {};
	int i;

	for (i = 1; i < ENTRIES; i++) {
		map_small(TABLE);
		load(page_of(0));
		pd[0] &= ~PTE_A;
		pdpt[0] &= ~PTE_A;
		pml4[1] &= ~PTE_A;
		fence();
		store(page_of(i), 0);
		leaf += !!(pt[i] & PTE_A);
		dirty += !!(pt[i] & PTE_D);
		at[0] += !!(pd[0] & PTE_A);
		at[1] += !!(pdpt[0] & PTE_A);
		at[2] += !!(pml4[1] & PTE_A);
	}
	result(MUST, "upper-leaf-a", leaf, ENTRIES - 1,
	       "A of a leaf is set where A above was cleared without a flush");
	result(MUST, "upper-leaf-d", dirty, ENTRIES - 1, "and D");
	result(SEEN, "upper-a-pde", at[0], ENTRIES - 1, "and A of the PDE anew");
	result(SEEN, "upper-a-pdpte", at[1], ENTRIES - 1, "and A of the PDPTE anew");
	result(SEEN, "upper-a-pml4e", at[2], ENTRIES - 1, "and A of the PML4E anew");
	flush_all();
	load(page_of(0));
	result(MUST, "upper-a-flushed", uppers(PTE_A), 3, "all of them after a flush");
}

/* Another table, below a PDE that is cached. */
static void probe_replaced_table(void)
{
	u64 old = 0, flushed = 0;
	int i;

	for (i = 1; i < ENTRIES; i++) {
		map_small(TABLE);
		fill(other_pt, 1, TABLE);
		load(page_of(0));
		pd[0] = (u64)other_pt | TABLE;
		fence();
		old += named(i) == frame_of(0, i);
		invlpg(page_of(i));
		flushed += named(i) == frame_of(1, i);
	}
	result(SEEN, "table-replaced-old", old, ENTRIES - 1,
	       "a page is translated by a table that was replaced without a flush");
	result(MUST, "table-replaced-flushed", flushed, ENTRIES - 1,
	       "and by the new one after a flush");
}

static void probe_changed_leaves(void)
{
	u64 n, again;
	int i;

	map_small(TABLE);
	load_all();
	fill(pt, 1, TABLE);
	fence();
	result(SEEN, "moved-old", ENTRIES - count_others(), ENTRIES,
	       "a page is read where it was before its leaf was changed without a flush");
	for (i = 0; i < ENTRIES; i++)
		invlpg(page_of(i));
	result(MUST, "moved-flushed", count_others(), ENTRIES, "and where it is after INVLPG");

	map_small(TABLE);
	store_all();
	clear(pt, PTE_W);
	result(SEEN, "protected-written", store_all(), ENTRIES,
	       "a page is written after W was cleared without a flush");
	for (i = 0; i < ENTRIES; i++)
		invlpg(page_of(i));
	result(MUST, "protected-flushed", ENTRIES - store_all(), ENTRIES, "but not after INVLPG");

	map_small(PTE_P);
	load_all();
	fill(pt, 0, TABLE);
	fence();
	n = store_all();
	again = store_all();
	result(SEEN, "writable-faults", ENTRIES - n, ENTRIES,
	       "the first write after W was set without a flush faults");
	result(MUST, "writable-again", again, ENTRIES, "but not the second");

	map_small(0);
	load_all();
	fill(pt, 0, TABLE);
	fence();
	for (n = 0, i = 0; i < ENTRIES; i++)
		n += named(i) == frame_of(0, i);
	result(MUST, "present", n, ENTRIES, "a page that is mapped needs no flush");
}

/* What splitting and recovery of huge pages do. */
static void probe_sizes(void)
{
	u64 n;
	int i;

	map_huge(TABLE);
	store_all();
	fill(pt, 1, TABLE);
	pd[0] = (u64)pt | TABLE;
	fence();
	result(SEEN, "split-old", ENTRIES - count_others(), ENTRIES,
	       "a page is translated by a 2 MiB leaf that was split without a flush");
	invlpg(page_of(0));
	result(SEEN, "split-invlpg", count_others(), ENTRIES,
	       "and by the new leaves after INVLPG of one of them");
	flush_all();
	result(MUST, "split-flushed", count_others(), ENTRIES, "and after a flush");

	map_small(PTE_P);
	load_all();
	pd[0] = frame_of(1, 0) | PTE_PS | TABLE;
	fence();
	for (n = 0, i = 0; i < ENTRIES; i++)
		n += store(page_of(i), 0);
	result(SEEN, "recovered-faults", ENTRIES - n, ENTRIES,
	       "a write faults by a protected leaf that a writable 2 MiB leaf has replaced without a flush");
	flush_all();
	n = store_all();
	result(MUST, "recovered-flushed", n + count_others(), 2 * ENTRIES,
	       "and not after a flush");
}

static void probe_tables(void)
{
	name_frames();
	probe_first_access();
	probe_cleared_bits();
	probe_upper_caches();
	probe_replaced_table();
	probe_changed_leaves();
	probe_sizes();
}

/* --- what the host wants done */

static __shared u64 *data(u64 page)
{
	return (__shared u64 *)(DATA_GPA + page * PAGE);
}

static u64 next_random(u64 *state)
{
	*state = *state * 6364136223846793005ul + 1442695040888963407ul;
	return *state >> 33;
}

/* Another line of the cache in each, so that the TLB is what is missed most. */
static void touch(void)
{
	u64 start = ticks(), i;

	for (i = 0; i < shared->pages; i++)
		data(i)[i % 64 * 8];
	shared->ticks = ticks() - start;
}

static void write_marked(void)
{
	u64 i;

	for (i = 0; i < shared->pages; i++)
		if (shared->mask[i / 8] >> i % 8 & 1)
			data(i)[2]++;
}

static void scribble(void)
{
	u64 random = 1;

	while (!shared->stop) {
		data(next_random(&random) % shared->pages)[3]++;
		shared->done++;
	}
}

static void count_up(void)
{
	while (!shared->stop)
		data(0)[4]++;
}

static void watch(void)
{
	u64 random = 1, page, should, is;

	while (!shared->stop) {
		page = next_random(&random) % ENTRIES;
		should = shared->holds[page];
		is = data(page)[0];
		/* Loads are in order. Where the host was at it meanwhile, anything goes. */
		if (!should || shared->holds[page] != should)
			continue;
		shared->done++;
		if (is != should)
			shared->stale++;
	}
}

static void run(void)
{
	/* The limit, and the address as four words. */
	unsigned short idtr[5] = {
		sizeof(idt) - 1, (u64)idt, (u64)idt >> 16, (u64)idt >> 32, (u64)idt >> 48,
	};

	set_gate(6, invalid_opcode);
	set_gate(13, general_protection);
	set_gate(14, page_fault);
	asm volatile("lidt %0" : : "m"(idtr));
	switch (shared->op) {
	case OP_TABLES:
		probe_tables();
		break;
	case OP_TOUCH:
		touch();
		break;
	case OP_WRITE:
		write_marked();
		break;
	case OP_SCRIBBLE:
		scribble();
		break;
	case OP_COUNT:
		count_up();
		break;
	case OP_WATCH:
		watch();
		break;
	}
}

/* Where the host begins each time. */
__attribute__((section(".start"), used, noreturn)) void start(void)
{
	run();
	for (;;)
		asm volatile("hlt");
}
