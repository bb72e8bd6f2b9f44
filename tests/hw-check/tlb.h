/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tlb.c, which runs the probes, and tlb_guest.c, its guest, share: addresses of the
 * guest, and struct tlb_shared at SHARED_GPA.
 */
#ifndef TLB_H
#define TLB_H

#define PAGE		4096ul
#define MIB		(1ul << 20)
#define ENTRIES		512

/* Memory of the guest's own: its tables, what is shared, its program and its stack. */
#define OWN_BYTES	(8 * MIB)
#define PML4_GPA	0x1000ul
#define PDPT_GPA	0x2000ul
#define PD_GPA		0x3000ul	/* two of them: 2 GiB, one to one */
#define GDT_GPA		0x5000ul
#define SHARED_GPA	0x100000ul
#define PROGRAM_GPA	0x200000ul
#define STACK_GPA	0x800000ul
/* The memory that is measured, and logged: the second memslot. */
#define DATA_GPA	0x40000000ul
#define MAX_PAGES	(1024 * MIB / PAGE)

#define PTE_P		0x001ul
#define PTE_W		0x002ul
#define PTE_A		0x020ul
#define PTE_D		0x040ul
#define PTE_PS		0x080ul

enum tlb_op {
	OP_TABLES,	/* probe the guest's own page tables */
	OP_TOUCH,	/* read a byte of each page, and count the TSC's ticks */
	OP_WRITE,	/* write those pages that have their bit in mask */
	OP_SCRIBBLE,	/* write pages at random until stop is set */
	OP_COUNT,	/* count in the first page until stop is set */
	OP_WATCH,	/* compare pages with what they should hold until stop is set */
};

#define MUST	0	/* n has to be of: what the architecture, or KVM, promises */
#define SEEN	1	/* n of of: what this processor does */

#define MAX_RESULTS	48

struct tlb_result {
	unsigned long kind, name, text, n, of;	/* name, text: addresses of strings */
};

struct tlb_shared {
	unsigned long op;
	unsigned long pages;		/* of the data */
	unsigned long gigantic;		/* the processor has pages of 1 GiB */
	unsigned long fault[4];		/* one not expected: vector + 1, rip, code, cr2 */
	unsigned long ticks;		/* of OP_TOUCH */
	unsigned long stop;
	unsigned long done;		/* writes or comparisons */
	unsigned long stale;		/* pages that held what they should not any more */
	unsigned long nr_results;
	struct tlb_result results[MAX_RESULTS];
	/* Of OP_WATCH: what a page holds; 0 while that changes. */
	unsigned long holds[ENTRIES];
	unsigned char mask[MAX_PAGES / 8];
};

#endif
