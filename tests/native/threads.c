// SPDX-License-Identifier: GPL-2.0
/*
 * What a second thread is good for, on two real cores: splitting ahead, recovering
 * and KVM_CLEAR_DIRTY_LOG by one thread, and by two, each with half of the slot.
 *
 *   threads [-g GIB] [-r ROUNDS] [-j FILE]
 *
 * With the Rust MMU; C has no ioctl that splits, and CLEAR by one thread at a time.
 * Prints a table, in nanoseconds for each 2 MiB: until the last thread has
 * finished by the clock, and of CPU time of the thread that took most of it, which
 * other load does not add to. The tables are checked after each operation.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

#define THREADS		2
/* What two threads are to be faster by. */
#define TARGET		1.5

#define W	NATIVE_W
#define D	NATIVE_D
#define SMALL	NATIVE_SMALL
#define HUGE	0

static const struct operation {
	const char *name, *what;
	void (*run)(unsigned long first, unsigned long huge_pages);
	/* What vCPUs leave before it where the slot is logged; and what it makes of that. */
	int before, after;
} operations[] = {
	{ "split", "split ahead to 4 KiB", native_split_part, HUGE | W | D, SMALL | W | D },
	{ "recover", "recover", native_recover_part, SMALL | W | D, HUGE | W | D },
	{ "clear_first", "CLEAR, first pass (splits)", native_clear_part, HUGE | W | D, SMALL | D },
	{ "clear_later", "CLEAR, later pass, all pages dirty", native_clear_part, SMALL | W | D,
	  SMALL | D },
};

#define OPERATIONS	(sizeof(operations) / sizeof(operations[0]))

static double clock_ns[OPERATIONS][THREADS][MAX_ROUNDS], cpu_ns[OPERATIONS][THREADS][MAX_ROUNDS];
static unsigned long huge_pages = 32 * 512;
static int rounds = 20;

static int cpus[THREADS];
static void *percpu;
static unsigned long gs;

/* The part of a thread. */
static struct part {
	const struct operation *op;
	unsigned long first, huge_pages;
	double cpu_ns, end_ns;
} parts[THREADS];

static int ready, go;

void native_idle(void)
{
}

static double now(clockid_t clock)
{
	struct timespec ts;

	if (clock_gettime(clock, &ts))
		err(1, "clock_gettime");
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static void do_part(struct part *part)
{
	double start = now(CLOCK_THREAD_CPUTIME_ID);

	part->op->run(part->first, part->huge_pages);
	part->end_ns = now(CLOCK_MONOTONIC);
	part->cpu_ns = now(CLOCK_THREAD_CPUTIME_ID) - start;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "sched_setaffinity");
}

static void *second(void *arg)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, gs))
		err(1, "arch_prctl");
	stay_on(cpus[1]);
	__atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
		;
	do_part(arg);
	native_cpu_offline();
	return NULL;
}

static void measure(const struct operation *op, int threads, int round)
{
	int i = op - operations;
	pthread_t thread;
	double start, end, cpu;

	for (int t = 0; t < threads; t++)
		parts[t] = (struct part) {
			.op = op,
			.first = huge_pages / threads * t,
			.huge_pages = huge_pages / threads,
		};
	if (threads == 2) {
		gs = native_cpu_create(1, percpu);
		ready = 0;
		go = 0;
		errno = pthread_create(&thread, NULL, second, &parts[1]);
		if (errno)
			err(1, "pthread_create");
		while (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
			sched_yield();
	}
	start = now(CLOCK_MONOTONIC);
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	do_part(&parts[0]);
	if (threads == 2) {
		pthread_join(thread, NULL);
		native_cpu_remove(1);
	}

	end = parts[0].end_ns;
	cpu = parts[0].cpu_ns;
	if (threads == 2) {
		end = parts[1].end_ns > end ? parts[1].end_ns : end;
		cpu = parts[1].cpu_ns > cpu ? parts[1].cpu_ns : cpu;
	}
	clock_ns[i][threads - 1][round] = (end - start) / huge_pages;
	cpu_ns[i][threads - 1][round] = cpu / huge_pages;
	native_grace_period();
	check(NATIVE_RUST, op->after, "after", op->what);
}

/* The log begins with all bits set, and vCPUs have written to all pages before a CLEAR. */
static void run(int threads, int round)
{
	for (unsigned int i = 0; i < OPERATIONS; i++) {
		const struct operation *op = &operations[i];
		const char *wrong;

		if (op->run == native_clear_part) {
			if (op->before == (HUGE | W | D))
				native_start_log(NATIVE_RUST, 1);
			native_write_all(NATIVE_RUST, op->before);
			native_log_all(NATIVE_RUST);
		}
		check(NATIVE_RUST, op->before, "before", op->what);
		measure(op, threads, round);
		if (op->run != native_clear_part)
			continue;
		wrong = native_check_log(NATIVE_RUST, 0);
		if (wrong)
			errx(1, "after '%s': %s", op->what, wrong);
	}
	native_stop_log(NATIVE_RUST);
	native_disable(NATIVE_RUST);
	native_grace_period();
	check(NATIVE_RUST, HUGE | W | D, "after", "the log");
}

static void print_table(void)
{
	printf("| ns for each 2 MiB | one thread | two | by the clock | by CPU time | target |\n");
	printf("|---|---:|---:|---:|---:|---:|\n");
	for (unsigned int op = 0; op < OPERATIONS; op++) {
		double ratio[2];

		printf("| %s |", operations[op].what);
		for (int t = 0; t < THREADS; t++)
			printf(" %.0f (%.0f-%.0f) |", quantile(clock_ns[op][t], rounds, 2),
			       quantile(clock_ns[op][t], rounds, 1),
			       quantile(clock_ns[op][t], rounds, 3));
		ratio[0] = quantile(clock_ns[op][0], rounds, 2) /
			   quantile(clock_ns[op][1], rounds, 2);
		ratio[1] = quantile(cpu_ns[op][0], rounds, 2) / quantile(cpu_ns[op][1], rounds, 2);
		printf(" %.2f | %.2f | %.1f, %s |\n", ratio[0], ratio[1], TARGET,
		       ratio[0] >= TARGET ? "met" : "missed");
	}
}

static void write_values(FILE *file, const char *name, const double *values, const char *end)
{
	fprintf(file, "   \"%s\": [", name);
	for (int i = 0; i < rounds; i++)
		fprintf(file, "%s%.1f", i ? ", " : "", values[i]);
	fprintf(file, "]%s\n", end);
}

static void write_json(const char *path)
{
	FILE *file = fopen(path, "w");

	if (!file)
		err(1, "%s", path);
	fprintf(file, "{\n \"unit\": \"ns per 2 MiB\",\n \"huge_pages\": %lu,\n \"rounds\": %d,\n",
		huge_pages, rounds);
	fprintf(file, " \"operations\": {\n");
	for (unsigned int op = 0; op < OPERATIONS; op++) {
		fprintf(file, "  \"%s\": {\n", operations[op].name);
		write_values(file, "one thread", clock_ns[op][0], ",");
		write_values(file, "two threads", clock_ns[op][1], ",");
		write_values(file, "one thread, CPU time", cpu_ns[op][0], ",");
		write_values(file, "two threads, CPU time of the busier", cpu_ns[op][1], "");
		fprintf(file, "  }%s\n", op + 1 < OPERATIONS ? "," : "");
	}
	fprintf(file, " }\n}\n");
	if (fclose(file))
		err(1, "%s", path);
}

/* Two processors that are not threads of one core, if the host says which are. */
static void choose_cpus(void)
{
	int n = 0, first = -1, other;
	char path[128];
	cpu_set_t set;
	FILE *file;

	if (sched_getaffinity(0, sizeof(set), &set))
		err(1, "sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE && n < THREADS; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		snprintf(path, sizeof(path),
			 "/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
		file = fopen(path, "re");
		other = -1;
		if (file) {
			if (fscanf(file, "%d", &other) != 1)
				other = -1;
			fclose(file);
		}
		if (n && other >= 0 && other == first)
			continue;
		first = other;
		cpus[n++] = cpu;
	}
	if (n < THREADS)
		errx(1, "this machine has one core");
}

int main(int argc, char **argv)
{
	struct program_options options = { .huge_pages = huge_pages, .rounds = rounds };
	int opt;

	while ((opt = getopt(argc, argv, PROGRAM_OPTIONS)) != -1) {
		if (!program_option(&options, opt))
			return 1;
	}
	program_check_options(&options);
	huge_pages = options.huge_pages;
	rounds = options.rounds;
	/* Each thread works on whole gigabytes, as the ioctls do. */
	if (huge_pages % (THREADS * 512))
		errx(1, "an even number of GiB");

	choose_cpus();
	program_init();
	stay_on(cpus[0]);
	percpu = reserve(native_percpu_bytes(), 1);
	create_vms(huge_pages);

	for (int round = 0; round < rounds; round++) {
		run(1 + round % 2, round);
		run(2 - round % 2, round);
	}

	print_table();
	if (options.json)
		write_json(options.json);
	return 0;
}
