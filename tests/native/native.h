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

/* Threads, the first included, each of which is a CPU; and vCPUs of each VM. */
#define NATIVE_CPUS	8
#define NATIVE_VCPUS	4

/* The upper tables of both VMs, and the tables that wait in a cache or for RCU. */
#define NATIVE_SPARE_TABLES	4096ul

/*
 * How a VM's slot is mapped: by 2 MiB pages, or by 4 KiB or 1 GiB pages, and which of
 * the two bits are set in all of them that the log is about. Or it is not mapped: all
 * tables are there, and empty; or not even tables. The entries that point to the tables
 * of 4 KiB pages tell whether these are draining or closed (pure/summary.rs), or open.
 */
enum native_state {
	NATIVE_SMALL = 1,
	NATIVE_W = 2,
	NATIVE_D = 4,
	NATIVE_GIANT = 8,
	NATIVE_EMPTY = 16,
	NATIVE_BARE = 32,
	NATIVE_DRAINING = 64,
	NATIVE_CLOSED = 128,
};

/* The size of the pages that the host has for the slots: enum pg_level. */
enum native_host {
	NATIVE_HOST_4K = 1,
	NATIVE_HOST_2M,
	NATIVE_HOST_1G,
};

/*
 * How writes are noticed: by a fault, for W is clear; by the CPU, which logs that it sets D;
 * or by D alone (kvm.dirty_log=dirty_bits). The C MMU has no such mode, and takes faults.
 */
enum native_mode {
	NATIVE_FAULTS,
	NATIVE_PML,
	NATIVE_DIRTY_BITS,
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
	/* The guest's memory and its copy, a word for each page; and a bitmap. */
	unsigned int *written, *copied;
	unsigned long written_bytes;
	unsigned long *noted;
};

/* How much of each is needed for slots of @huge_pages times 2 MiB. */
void native_measure(unsigned long huge_pages, struct native_memory *memory);
/* Makes the VMs, and maps the slots by 2 MiB pages. Once. */
void native_create(unsigned long huge_pages, const struct native_memory *memory);

/* Between two operations, while the slot is not logged. Both VMs begin with faults. */
void native_set_mode(enum native_mmu mmu, enum native_mode mode);

void native_set_host(enum native_host host);
/* Zaps all, and maps all again, by pages of the host's size; with no other thread. */
void native_remap(enum native_mmu mmu);

/* The slot's flags change, and all of its bitmap is clear or set. */
void native_start_log(enum native_mmu mmu, int initially_set);
void native_stop_log(enum native_mmu mmu);
/*
 * What the ioctls do, from the point on where they know the slot, and its flags are
 * what they will be. GET is that of the legacy mode; CLEAR clears what is in the
 * ioctl's half of the bitmap, where native_peek() puts what the bitmap has.
 * native_get_manual() is GET of the manual mode: it looks at D bits first, in their mode.
 */
void native_enable(enum native_mmu mmu);
void native_disable(enum native_mmu mmu);
void native_get(enum native_mmu mmu);
void native_peek(enum native_mmu mmu);
void native_get_manual(enum native_mmu mmu);
void native_clear(enum native_mmu mmu);
/*
 * What a thread does of KVM_SPLIT_HUGE_PAGES and KVM_CLEAR_DIRTY_LOG beside others, with the
 * Rust MMU: from a huge page on, a gigabyte at a time. CLEAR asks for what is in the ioctl's
 * half of the bitmap.
 */
void native_split_part(unsigned long first, unsigned long nr);
void native_recover_part(unsigned long first, unsigned long nr);
void native_clear_part(unsigned long first, unsigned long nr);
/* The VM goes away, as far as kvm_mmu_zap_all(): all but the root. */
void native_zap_all(enum native_mmu mmu);

/*
 * A CPU other than the first. native_cpu_create() is called before there is a thread
 * for it: @area is for its per-CPU data, and aligned as a page; returns the GS base
 * that the thread has to have. The thread ends with native_cpu_offline(), and
 * native_cpu_remove() is called after joining it, if it was the last.
 */
unsigned long native_percpu_bytes(void);
unsigned long native_cpu_create(int cpu, void *area);
void native_cpu_offline(void);
void native_cpu_remove(int cpu);
/* Between any two operations: RCU counts on it, and frees what is due. */
void native_quiescent(void);
/* Whether the scheduler might take the processor from this thread: it holds no lock. */
int native_preemptible(void);
/* TSC ticks that this thread has waited for mmu_lock since the last call. */
unsigned long long native_waited(void);
/* Fills free tables with a pattern, and looks for it when they are used. */
void native_poison(void);

/* The thread of a vCPU writes to a page, counted from the slot's first, and faults. */
enum native_fault {
	NATIVE_NO_FAULT,
	/* Resolved without mmu_lock. */
	NATIVE_FAST_FAULT,
	NATIVE_SLOW_FAULT,
};

enum native_fault native_write(enum native_mmu mmu, int vcpu, unsigned long page);
/* An MMU notifier, begin and end, for pages of the slot or for memory in no slot. */
void native_notify(enum native_mmu mmu, unsigned long page, unsigned long pages);
void native_notify_miss(enum native_mmu mmu);

/*
 * A migration: copies all pages, or those that the ioctl's half of the bitmap had
 * when native_note_log() was called. With nobody writing, native_compare() says
 * whether source and copy are the same, or else which page is not.
 */
void native_copy_all(enum native_mmu mmu);
void native_note_log(enum native_mmu mmu);
void native_copy_noted(enum native_mmu mmu);
const char *native_compare(enum native_mmu mmu, unsigned long *where);

/* A grace period, without other threads: frees what the MMUs have retired. */
void native_grace_period(void);
/*
 * What vCPUs do that write to all pages. A fast page fault sets W, and the write that
 * is tried again then D, with the same instruction or a moment later: which of them
 * is clear in @state is cleared, so that one can look at that moment. They have used all
 * tables.
 */
void native_write_all(enum native_mmu mmu, int state);
/* All bits of the log are set, and the ioctl asks for all of them; or all are clear. */
void native_log_all(enum native_mmu mmu);
void native_log_none(enum native_mmu mmu);
/*
 * What no MMU can do without, for each huge page: to store all of a new table, or
 * to clear a bit in each entry of a table, by plain stores where nobody else may
 * change the entry at the same time, or else by locked operations.
 */
void native_floor_stores(void);
void native_floor_plain(void);
void native_floor_locked(void);
void native_floor_linked(void);

/*
 * Whether all of the VM is in @state, with everything that the MMU keeps beside
 * the SPTEs: counters, headers, locks. Returns what is wrong, or NULL, and the
 * first huge page concerned in @where.
 */
const char *native_check(enum native_mmu mmu, int state, unsigned long *where);
/*
 * The same for a VM that vCPUs and notifiers have worked on, while nobody does: each
 * page may be mapped by 2 MiB or 4 KiB or not at all, and while the slot is logged
 * only pages that are in the log are writable.
 */
const char *native_check_any(enum native_mmu mmu, unsigned long *where);
/* Whether the log is empty, and the ioctl has got all bits if @got. */
const char *native_check_log(enum native_mmu mmu, int got);
/* Whether the ioctl has got all bits, or none, and left the log as it was. */
const char *native_check_manual(enum native_mmu mmu, int got);
/* TLB flushes since the last call. */
unsigned long native_flushes(void);

/* The program's: a thread waits for another. */
void native_idle(void);
/* The program's: ends it, for something is wrong. */
void native_trap(const char *what);

#endif /* TESTS_NATIVE_H */
