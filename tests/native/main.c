// SPDX-License-Identifier: GPL-2.0
/*
 * What dirty logging costs on this machine's silicon: the objects of the C and of
 * the Rust TDP MMU, as the kernel build made them, on page tables in memory.
 *
 *   bench-native [-g GIB] [-r ROUNDS] [-j FILE]
 *
 * Prints a table, in nanoseconds of this thread for each 2 MiB, and writes the
 * raw numbers to FILE as JSON. Each operation is checked on all page tables, and
 * an error ends the program with status 1. Numbers that miss their target do not:
 * machines differ.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <err.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "native.h"

#define MAX_ROUNDS	1000

enum operation {
	FLOOR_STORES,
	FLOOR_LOCKED,
	ENABLE,
	GET,
	DISABLE,
	CLEAR_FIRST,
	CLEAR_LATER,
	OPERATIONS
};

static const struct {
	const char *name, *what;
	/* How many times faster Rust is to be; 0 where none was set. */
	int target;
} operations[] = {
	[FLOOR_STORES] = { "floor_stores", "floor: 512 stores into a new table", 0 },
	[FLOOR_LOCKED] = { "floor_locked", "floor: 512 locked ANDs on a table", 0 },
	[ENABLE] = { "enable", "enable", 5 },
	[GET] = { "get", "GET, all pages dirty", 0 },
	[DISABLE] = { "disable", "disable", 3 },
	[CLEAR_FIRST] = { "clear_first", "CLEAR, first pass (splits)", 5 },
	[CLEAR_LATER] = { "clear_later", "CLEAR, later pass, all pages dirty", 5 },
};

static const char * const names[] = { [NATIVE_C] = "C", [NATIVE_RUST] = "Rust" };

static double ns[OPERATIONS][NATIVE_MMUS][MAX_ROUNDS];
static unsigned long huge_pages = 64 * 512;
static int rounds = 20;

void native_trap(const char *symbol)
{
	errx(1, "%s, which nothing here should need", symbol);
}

/* BUG() and WARN() of the kernel's code are illegal instructions here. */
static void fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	fprintf(stderr, "bench-native: %s at instruction %#llx, address %p: see llvm-addr2line\n",
		sig == SIGILL ? "BUG or WARN" : "bad memory access",
		(unsigned long long)uc->uc_mcontext.gregs[REG_RIP], info->si_addr);
	_exit(1);
}

static double now(void)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts))
		err(1, "clock_gettime");
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* Memory that is all there, in huge pages where the host has them, as in the kernel. */
static void *reserve(size_t bytes, int populate)
{
	const size_t align = 2 << 20;
	char *at;

	at = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		err(1, "mmap of %zu bytes", bytes);
	at += -(unsigned long)at % align;
	madvise(at, bytes, MADV_HUGEPAGE);
	if (populate)
		memset(at, 0, bytes);
	return at;
}

static void check(enum native_mmu mmu, enum native_state state, enum operation operation)
{
	unsigned long where;
	const char *wrong = native_check(mmu, state, &where);

	if (wrong)
		errx(1, "%s, after '%s' at huge page %lu: %s", names[mmu],
		     operations[operation].what, where, wrong);
}

static void check_log(enum native_mmu mmu, int got, enum operation operation)
{
	const char *wrong = native_check_log(mmu, got);

	if (wrong)
		errx(1, "%s, after '%s': %s", names[mmu],
		     operations[operation].what, wrong);
}

/* Times one operation; a TLB flush has to be part of it. */
static void measure(enum operation operation, enum native_mmu mmu, int round)
{
	static void (*const ops[])(enum native_mmu mmu) = {
		[ENABLE] = native_enable,
		[GET] = native_get,
		[DISABLE] = native_disable,
		[CLEAR_FIRST] = native_clear,
		[CLEAR_LATER] = native_clear,
	};
	double start;

	native_flushes();
	start = now();
	ops[operation](mmu);
	ns[operation][mmu][round] = (now() - start) / huge_pages;
	if (!native_flushes())
		errx(1, "%s: '%s' did not flush TLBs", names[mmu],
		     operations[operation].what);
}

/* Is the same for both. */
static void measure_floor(enum operation operation, void (*floor)(void), int round)
{
	double start = now();

	floor();
	ns[operation][NATIVE_C][round] = (now() - start) / huge_pages;
	ns[operation][NATIVE_RUST][round] = ns[operation][NATIVE_C][round];
}

/* Back to how it began: huge pages that all have been written to. */
static void promote(enum native_mmu mmu, int round, int timed)
{
	if (timed)
		measure(DISABLE, mmu, round);
	else
		native_disable(mmu);
	native_grace_period();
	/* C leaves it to the next fault to make the page writable again. */
	check(mmu, mmu == NATIVE_C ? NATIVE_HUGE_PROTECTED : NATIVE_HUGE_WRITABLE, DISABLE);
	native_write_all(mmu);
	check(mmu, NATIVE_HUGE_WRITABLE, DISABLE);
}

/* The MMUs take turns at each operation, and at who begins. */
static void run(int round)
{
	enum native_mmu turns[] = { round % 2, 1 - round % 2 };

	measure_floor(FLOOR_STORES, native_floor_stores, round);
	measure_floor(FLOOR_LOCKED, native_floor_locked, round);

#define IN_TURN(statements) do {				\
	for (int turn = 0; turn < NATIVE_MMUS; turn++) {	\
		enum native_mmu mmu = turns[turn];		\
								\
		statements					\
	}							\
} while (0)

	IN_TURN({
		measure(ENABLE, mmu, round);
		check(mmu, NATIVE_SMALL_PROTECTED, ENABLE);
	});
	IN_TURN({
		native_write_all(mmu);
		native_log_all(mmu);
		check(mmu, NATIVE_SMALL_WRITABLE, ENABLE);
	});
	IN_TURN({
		measure(GET, mmu, round);
		check(mmu, NATIVE_SMALL_PROTECTED, GET);
		check_log(mmu, 1, GET);
	});
	IN_TURN({ promote(mmu, round, 1); });
	IN_TURN({
		native_log_all(mmu);
		measure(CLEAR_FIRST, mmu, round);
		check(mmu, NATIVE_SMALL_PROTECTED, CLEAR_FIRST);
		check_log(mmu, 0, CLEAR_FIRST);
	});
	IN_TURN({
		native_write_all(mmu);
		native_log_all(mmu);
		check(mmu, NATIVE_SMALL_WRITABLE, CLEAR_FIRST);
	});
	IN_TURN({
		measure(CLEAR_LATER, mmu, round);
		check(mmu, NATIVE_SMALL_PROTECTED, CLEAR_LATER);
		check_log(mmu, 0, CLEAR_LATER);
	});
	IN_TURN({ promote(mmu, round, 0); });
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double quantile(const double *values, int quarters)
{
	double sorted[MAX_ROUNDS];
	int at = (rounds - 1) * quarters, rest = at % 4;

	memcpy(sorted, values, rounds * sizeof(*values));
	qsort(sorted, rounds, sizeof(*sorted), compare);
	at /= 4;
	return rest ? sorted[at] + (sorted[at + 1] - sorted[at]) * rest / 4 : sorted[at];
}

static void print_table(void)
{
	printf("| ns for each 2 MiB | C | Rust | C / Rust | target |\n");
	printf("|---|---:|---:|---:|---:|\n");
	for (int op = 0; op < OPERATIONS; op++) {
		double c = quantile(ns[op][NATIVE_C], 2), rust = quantile(ns[op][NATIVE_RUST], 2);

		printf("| %s |", operations[op].what);
		for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
			printf(" %.0f (%.0f-%.0f) |", quantile(ns[op][mmu], 2),
			       quantile(ns[op][mmu], 1), quantile(ns[op][mmu], 3));
		if (op <= FLOOR_LOCKED)
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
	FILE *file = fopen(path, "w");

	if (!file)
		err(1, "%s", path);
	fprintf(file, "{\n \"unit\": \"ns per 2 MiB, CPU time of the thread\",\n");
	fprintf(file, " \"huge_pages\": %lu,\n \"rounds\": %d,\n", huge_pages, rounds);
	fprintf(file, " \"operations\": {\n");
	for (int op = 0; op < OPERATIONS; op++) {
		fprintf(file, "  \"%s\": {\n", operations[op].name);
		for (int mmu = 0; mmu < NATIVE_MMUS; mmu++) {
			fprintf(file, "   \"%s\": [", names[mmu]);
			for (int i = 0; i < rounds; i++)
				fprintf(file, "%s%.1f", i ? ", " : "", ns[op][mmu][i]);
			fprintf(file, "]%s\n", mmu + 1 < NATIVE_MMUS ? "," : "");
		}
		fprintf(file, "  }%s\n", op + 1 < OPERATIONS ? "," : "");
	}
	fprintf(file, " }\n}\n");
	if (fclose(file))
		err(1, "%s", path);
}

/* Per-CPU data is at its own address, if the base is 0, as it is unless somebody sets it. */
static void check_gs(void)
{
	unsigned long base = 1;

	if (syscall(SYS_arch_prctl, ARCH_GET_GS, &base) || base)
		errx(1, "the GS base is %#lx, not 0", base);
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
	struct sigaction action = { .sa_sigaction = fault, .sa_flags = SA_SIGINFO };
	struct native_memory memory;
	const char *json = NULL;
	int opt;

	while ((opt = getopt(argc, argv, "g:r:j:")) != -1) {
		if (opt == 'g')
			huge_pages = strtoul(optarg, NULL, 0) * 512;
		else if (opt == 'r')
			rounds = atoi(optarg);
		else if (opt == 'j')
			json = optarg;
		else
			return 1;
	}
	if (!huge_pages || huge_pages > 1024 * 512 || rounds < 1 || rounds > MAX_ROUNDS)
		errx(1, "1 to 1024 GiB, 1 to %d rounds", MAX_ROUNDS);

	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	check_gs();
	stay_on_this_cpu();

	native_measure(huge_pages, &memory);
	memory.tables = reserve(memory.tables_bytes, 1);
	memory.headers = reserve(memory.headers_bytes, 1);
	memory.struct_pages = reserve(memory.struct_pages_bytes, 0);
	for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
		memory.bitmap[mmu] = reserve(memory.bitmap_bytes, 1);
	native_create(huge_pages, &memory);

	for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
		check(mmu, NATIVE_HUGE_WRITABLE, FLOOR_STORES);
	for (int round = 0; round < rounds; round++)
		run(round);

	print_table();
	if (json)
		write_json(json);
	return 0;
}
