/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What glue.c, which is compiled as a part of the kernel, offers to main.c, which
 * is a program. No type of either world appears here.
 *
 * There are two VMs, one for each MMU. Each has one memslot, and the memory that
 * it maps does not exist: page tables only hold its frame numbers.
 */
#ifndef TESTS_NATIVE_H
#define TESTS_NATIVE_H

enum native_mmu {
	NATIVE_C,
	NATIVE_RUST,
	NATIVE_MMUS
};

/*
 * How a VM's slot is mapped: by 2 MiB pages or by 4 KiB pages, and which of the two
 * bits are set in all of them that the log is about.
 */
enum native_state {
	NATIVE_SMALL = 1,
	NATIVE_W = 2,
	NATIVE_D = 4,
};

/* How writes are noticed: by a fault, for W is clear, or by the CPU, which sets D. */
enum native_mode {
	NATIVE_FAULTS,
	NATIVE_PML,
};

struct native_memory {
	/* Page tables: the "direct map". Zeroed, page aligned. */
	void *tables;
	unsigned long tables_bytes;
	/* The headers of the tables, and free lists. */
	void *headers;
	unsigned long headers_bytes;
	/* struct page of each frame, the guests' too. Zeroed. */
	void *struct_pages;
	unsigned long struct_pages_bytes;
	/* For each VM, and the ioctl's half behind it. */
	void *bitmap[NATIVE_MMUS];
	unsigned long bitmap_bytes;
};

/* How much of each is needed for slots of @huge_pages times 2 MiB. */
void native_measure(unsigned long huge_pages, struct native_memory *memory);
/* Makes the VMs, and maps the slots by 2 MiB pages. Once. */
void native_create(unsigned long huge_pages, const struct native_memory *memory);

/* Between two operations, while the slot is not logged. Both VMs begin with faults. */
void native_set_mode(enum native_mmu mmu, enum native_mode mode);

/* What the ioctls do, from the point on where they know the slot. */
void native_enable(enum native_mmu mmu);
void native_disable(enum native_mmu mmu);
void native_get(enum native_mmu mmu);
void native_clear(enum native_mmu mmu);

/* A grace period: frees what the MMUs have retired. */
void native_grace_period(void);
/*
 * What vCPUs do that write to all pages. A fast page fault sets W, and the write that
 * is tried again then D, with the same instruction or a moment later: which of them
 * is clear in @state is cleared, so that one can look at that moment.
 */
void native_write_all(enum native_mmu mmu, int state);
/* All bits of the log are set, and the ioctl asks for all of them. */
void native_log_all(enum native_mmu mmu);
/*
 * What no MMU can do without, for each huge page: to store all of a new table, or
 * to clear a bit in each entry of a table, by plain stores where nobody else may
 * change the entry at the same time, or else by locked operations.
 */
void native_floor_stores(void);
void native_floor_plain(void);
void native_floor_locked(void);

/*
 * Whether all of the VM is in @state, with everything that the MMU keeps beside
 * the SPTEs: counters, headers, locks. Returns what is wrong, or NULL, and the
 * first huge page concerned in @where.
 */
const char *native_check(enum native_mmu mmu, int state, unsigned long *where);
/* Whether the log is empty, and the ioctl has got all bits if @got. */
const char *native_check_log(enum native_mmu mmu, int got);
/* TLB flushes since the last call. */
unsigned long native_flushes(void);

/* main.c: the kernel's code has called what it should not need here. */
void native_trap(const char *symbol);

#endif /* TESTS_NATIVE_H */
