// SPDX-License-Identifier: GPL-2.0
/*
 * What dirty logging costs on this machine's silicon: the objects of the C and of
 * the Rust TDP MMU, as the kernel build made them, on page tables in memory.
 *
 *   bench-native [-d] [-g GIB] [-r ROUNDS] [-j FILE]
 *
 * With -d only what concerns logging by D bits.
 *
 * Prints a table, in nanoseconds of this thread for each 2 MiB, and writes the
 * raw numbers to FILE as JSON. Each operation is checked on all page tables, and
 * an error ends the program with status 1. Numbers that miss their target do not:
 * machines differ.
 */
#define _GNU_SOURCE
#include <err.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

#define HUGE	0
#define SMALL	NATIVE_SMALL
#define W	NATIVE_W
#define D	NATIVE_D
#define GIANT	NATIVE_GIANT
#define EMPTY	NATIVE_EMPTY
#define BARE	NATIVE_BARE
#define DRAINING NATIVE_DRAINING
#define CLOSED	NATIVE_CLOSED
#define KEEP	-1

/* What becomes of the slot's flags before an operation. */
enum flags { SAME, LOG, LOG_INITIALLY_SET, NO_LOG };

static void map_small(enum native_mmu mmu);
static void map_huge(enum native_mmu mmu);
static void map_giant(enum native_mmu mmu);
static void unmap(enum native_mmu mmu);

/* In the order in which a round does them. */
static const struct operation {
	const char *name, *what;
	/* How many times faster Rust is to be; 0 where none was set. */
	int target;
	/* One of them. */
	void (*floor)(void);
	void (*run)(enum native_mmu mmu);
	/* Comes first, if there is something to do. */
	void (*set_up)(enum native_mmu mmu);
	enum native_mode mode;
	enum flags flags;
	/* What is in the Rust MMU's dirty bitmap before it: all, or nothing. */
	int empty_log;
	/* How many pages GET in manual mode finds: all, or none. */
	int finds;
	/* How the vCPUs' writes leave the entries before it; or they do not write. */
	int before;
	/* C leaves it to the next fault to make a recovered page writable. */
	int after[NATIVE_MMUS];
} operations[] = {
	{ "floor_stores", "floor: 512 stores into a new table", .floor = native_floor_stores },
	{ "floor_plain", "floor: 512 loads and stores on a table", .floor = native_floor_plain },
	{ "floor_locked", "floor: 512 locked ANDs on a table", .floor = native_floor_locked },

	{ "enable", "enable", 5, .run = native_enable, .set_up = map_huge,
	  .flags = LOG, .before = HUGE | W | D, .after = { SMALL | D, SMALL | D } },
	{ "floor_linked", "floor: 512 loads and stores on each of the VM's tables",
	  .floor = native_floor_linked },
	{ "get_d0", "GET, all pages dirty, D not yet set", .run = native_get,
	  .before = SMALL | W, .after = { SMALL, SMALL } },
	{ "get", "GET, all pages dirty", .run = native_get,
	  .before = SMALL | W | D, .after = { SMALL | D, SMALL | D } },
	{ "disable", "disable", 3, .run = native_disable,
	  .flags = NO_LOG, .before = KEEP, .after = { HUGE | D, HUGE | W | D } },

	{ "clear_first", "CLEAR, first pass (splits)", 5, .run = native_clear,
	  .flags = LOG_INITIALLY_SET, .before = HUGE | W | D, .after = { SMALL | D, SMALL | D } },
	{ "clear_later_d0", "CLEAR, later pass, all pages dirty, D not yet set", 5,
	  .run = native_clear, .before = SMALL | W, .after = { SMALL, SMALL } },
	{ "clear_later", "CLEAR, later pass, all pages dirty", 5, .run = native_clear,
	  .before = SMALL | W | D, .after = { SMALL | D, SMALL | D } },
	{ "disable_written", "disable, all pages written since", 3, .run = native_disable,
	  .flags = NO_LOG, .before = SMALL | W | D, .after = { HUGE | W | D, HUGE | W | D } },

	{ "enable_pml", "PML: enable", .run = native_enable, .mode = NATIVE_PML,
	  .flags = LOG, .before = HUGE | W | D, .after = { SMALL | W, SMALL | W } },
	{ "get_pml", "PML: GET, all pages dirty", .run = native_get, .mode = NATIVE_PML,
	  .before = SMALL | W | D, .after = { SMALL | W, SMALL | W } },
	{ "clear_later_pml", "PML: CLEAR, later pass, all pages dirty", .run = native_clear,
	  .mode = NATIVE_PML, .before = SMALL | W | D, .after = { SMALL | W, SMALL | W } },
	{ "disable_pml", "PML: disable", .run = native_disable, .mode = NATIVE_PML,
	  .flags = NO_LOG, .before = KEEP, .after = { HUGE | W, HUGE | W | D } },

	/* On C by faults: its GET in manual mode only copies the bitmap. */
	{ "enable_bits", "D bits: enable", .run = native_enable, .set_up = map_huge,
	  .mode = NATIVE_DIRTY_BITS, .flags = LOG, .before = HUGE | W | D,
	  .after = { SMALL | D, SMALL | W | DRAINING } },
	{ "get_bits_all", "D bits: GET (manual), all open, all pages written",
	  .run = native_get_manual, .mode = NATIVE_DIRTY_BITS, .empty_log = 1, .finds = 1,
	  .before = SMALL | W | D, .after = { SMALL | W | D, SMALL | W | D } },
	{ "get_bits_again", "D bits: GET (manual), all open, all in the bitmap already",
	  .run = native_get_manual, .mode = NATIVE_DIRTY_BITS, .finds = 1,
	  .before = SMALL | W | D, .after = { SMALL | W | D, SMALL | W | D } },
	{ "get_bits_open", "D bits: GET (manual), all open, nothing written",
	  .run = native_get_manual, .mode = NATIVE_DIRTY_BITS, .empty_log = 1,
	  .before = SMALL | W, .after = { SMALL | W, SMALL | W } },
	{ "clear_bits", "D bits: CLEAR, all pages dirty", .run = native_clear,
	  .mode = NATIVE_DIRTY_BITS, .before = SMALL | W | D,
	  .after = { SMALL | D, SMALL | W | DRAINING } },
	{ "get_bits_draining", "D bits: GET (manual), all draining", .run = native_get_manual,
	  .mode = NATIVE_DIRTY_BITS, .before = KEEP, .after = { SMALL | D, SMALL | W | CLOSED } },
	{ "get_bits_idle", "D bits: GET (manual), all idle", .run = native_get_manual,
	  .mode = NATIVE_DIRTY_BITS, .before = KEEP, .after = { SMALL | D, SMALL | W | CLOSED } },

	{ "enable_4k", "4 KiB pages: enable", .run = native_enable, .set_up = map_small,
	  .flags = LOG, .before = SMALL | W | D, .after = { SMALL | D, SMALL | D } },
	{ "unmap_4k", "4 KiB pages: unmap (notifiers of 64 MiB)", .run = unmap,
	  .set_up = map_small, .before = SMALL | W | D, .after = { EMPTY, EMPTY } },
	{ "teardown_4k", "4 KiB pages: teardown", .run = native_zap_all, .set_up = map_small,
	  .before = SMALL | W | D, .after = { BARE, BARE } },

	{ "enable_1g", "1 GiB pages: enable", .run = native_enable, .set_up = map_giant,
	  .flags = LOG, .before = GIANT | W | D, .after = { SMALL | D, SMALL | D } },
	{ "disable_1g", "1 GiB pages: disable", .run = native_disable,
	  .flags = NO_LOG, .before = KEEP, .after = { GIANT | D, GIANT | W | D } },
	{ "clear_first_1g", "1 GiB pages: CLEAR, first pass (splits)", .run = native_clear,
	  .flags = LOG_INITIALLY_SET, .before = GIANT | W | D,
	  .after = { SMALL | D, SMALL | D } },
};

#define OPERATIONS	(sizeof(operations) / sizeof(operations[0]))

static double ns[OPERATIONS][NATIVE_MMUS][MAX_ROUNDS];
static unsigned long huge_pages = 64 * 512;
static int rounds = 20;
static bool only_dirty_bits;

/* There is no other thread to wait for. */
void native_idle(void)
{
}

static double now(void)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts))
		err(1, "clock_gettime");
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static void map_huge(enum native_mmu mmu)
{
	native_set_host(NATIVE_HOST_2M);
	native_remap(mmu);
}

/* What the host has by 4 KiB pages: split, and never recovered. */
static void map_small(enum native_mmu mmu)
{
	map_huge(mmu);
	native_start_log(mmu, 0);
	native_enable(mmu);
	native_set_host(NATIVE_HOST_4K);
	native_stop_log(mmu);
	native_disable(mmu);
}

static void map_giant(enum native_mmu mmu)
{
	native_set_host(NATIVE_HOST_1G);
	native_remap(mmu);
}

static void unmap(enum native_mmu mmu)
{
	const unsigned long at_once = 32 * 512;

	for (unsigned long page = 0; page < huge_pages * 512; page += at_once)
		native_notify(mmu, page, at_once);
}

/* What happens before an operation. */
static void prepare(const struct operation *op, enum native_mmu mmu)
{
	if (op->set_up) {
		native_stop_log(mmu);
		native_set_mode(mmu, NATIVE_FAULTS);
		op->set_up(mmu);
	}
	native_set_mode(mmu, op->mode);
	if (op->flags == NO_LOG)
		native_stop_log(mmu);
	else if (op->flags != SAME)
		native_start_log(mmu, op->flags == LOG_INITIALLY_SET);
	if (op->before != KEEP) {
		native_write_all(mmu, op->before);
		/* By faults a page that was written is in the bitmap. */
		if (op->empty_log && (mmu == NATIVE_RUST || !op->finds))
			native_log_none(mmu);
		else
			native_log_all(mmu);
		check(mmu, op->before, "before", op->what);
	}
}

/* Times one operation; a TLB flush has to be part of it. */
static double measure(const struct operation *op, enum native_mmu mmu)
{
	const char *wrong = NULL;
	double start, end;

	native_flushes();
	start = now();
	op->run(mmu);
	end = now();
	/* A VM that is torn down has no running vCPU, and GET in manual mode takes nothing away. */
	if (!native_flushes() && op->run != native_zap_all && op->run != native_get_manual)
		errx(1, "%s: '%s' did not flush TLBs", mmu_names[mmu], op->what);

	native_grace_period();
	check(mmu, op->after[mmu], "after", op->what);
	if (op->run == native_get || op->run == native_clear)
		wrong = native_check_log(mmu, op->run == native_get);
	else if (op->run == native_get_manual)
		wrong = native_check_manual(mmu, op->finds);
	if (wrong)
		errx(1, "%s, after '%s': %s", mmu_names[mmu], op->what, wrong);
	return (end - start) / huge_pages;
}

static bool is_wanted(const struct operation *op)
{
	return !only_dirty_bits || op->mode == NATIVE_DIRTY_BITS;
}

/* Is the same for both. */
static double measure_floor(const struct operation *op)
{
	double start = now();

	op->floor();
	return (now() - start) / huge_pages;
}

/* The MMUs take turns at each operation, and in beginning. */
static void run(int round)
{
	for (unsigned int i = 0; i < OPERATIONS; i++) {
		const struct operation *op = &operations[i];

		if (!is_wanted(op))
			continue;
		if (op->floor) {
			ns[i][NATIVE_C][round] = measure_floor(op);
			ns[i][NATIVE_RUST][round] = ns[i][NATIVE_C][round];
			continue;
		}
		for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
			prepare(op, mmu);
		for (int turn = 0; turn < NATIVE_MMUS; turn++) {
			enum native_mmu mmu = (round + turn) % NATIVE_MMUS;

			ns[i][mmu][round] = measure(op, mmu);
		}
	}
}

static void print_table(void)
{
	printf("| ns for each 2 MiB | C | Rust | C / Rust | target |\n");
	printf("|---|---:|---:|---:|---:|\n");
	for (unsigned int op = 0; op < OPERATIONS; op++) {
		double c = quantile(ns[op][NATIVE_C], rounds, 2);
		double rust = quantile(ns[op][NATIVE_RUST], rounds, 2);

		if (!is_wanted(&operations[op]))
			continue;
		printf("| %s |", operations[op].what);
		for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
			printf(" %.0f (%.0f-%.0f) |", quantile(ns[op][mmu], rounds, 2),
			       quantile(ns[op][mmu], rounds, 1), quantile(ns[op][mmu], rounds, 3));
		if (operations[op].floor)
			printf(" | |\n");
		else if (!operations[op].target)
			printf(" %.2f | |\n", c / rust);
		else
			printf(" %.2f | %d, %s |\n", c / rust, operations[op].target,
			       c / rust >= operations[op].target ? "met" : "missed");
	}
}

static void write_json(const char *path)
{
	const char *separator = "";
	FILE *file = fopen(path, "w");

	if (!file)
		err(1, "%s", path);
	fprintf(file, "{\n \"unit\": \"ns per 2 MiB, CPU time of the thread\",\n");
	fprintf(file, " \"huge_pages\": %lu,\n \"rounds\": %d,\n", huge_pages, rounds);
	fprintf(file, " \"operations\": {\n");
	for (unsigned int op = 0; op < OPERATIONS; op++) {
		if (!is_wanted(&operations[op]))
			continue;
		fprintf(file, "%s  \"%s\": {\n", separator, operations[op].name);
		separator = ",\n";
		for (int mmu = 0; mmu < NATIVE_MMUS; mmu++) {
			fprintf(file, "   \"%s\": [", mmu_names[mmu]);
			for (int i = 0; i < rounds; i++)
				fprintf(file, "%s%.1f", i ? ", " : "", ns[op][mmu][i]);
			fprintf(file, "]%s\n", mmu + 1 < NATIVE_MMUS ? "," : "");
		}
		fprintf(file, "  }");
	}
	fprintf(file, "\n }\n}\n");
	if (fclose(file))
		err(1, "%s", path);
}

static void stay_on_this_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "sched_setaffinity");
}

int main(int argc, char **argv)
{
	struct program_options options = { .huge_pages = huge_pages, .rounds = rounds };
	int opt;

	while ((opt = getopt(argc, argv, "d" PROGRAM_OPTIONS)) != -1) {
		if (opt == 'd')
			only_dirty_bits = true;
		else if (!program_option(&options, opt))
			return 1;
	}
	program_check_options(&options);
	huge_pages = options.huge_pages;
	rounds = options.rounds;

	program_init();
	stay_on_this_cpu();
	create_vms(huge_pages);

	for (int round = 0; round < rounds; round++)
		run(round);

	print_table();
	if (options.json)
		write_json(options.json);
	return 0;
}
