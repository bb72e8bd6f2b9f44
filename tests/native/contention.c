// SPDX-License-Identifier: GPL-2.0
/*
 * How long threads wait for mmu_lock: they run on one VM's page tables, first on those
 * of the C MMU, then on those of the Rust MMU, in turns.
 *
 *   contention [-g GIB] [-r ROUNDS] [-t THREADS] [-s SECONDS] [-j FILE]
 *
 * The first thread works on the dirty log as two migrations do, one in the legacy
 * mode and one that begins with all bits set: it enables, GETs, CLEARs and disables, and
 * copies what the log says. The others contend for mmu_lock:
 * vCPUs that write to the slot and fault, MMU notifiers that hit the slot, and some
 * that miss it. Each thread has a processor of its own, and never leaves it: with fewer
 * processors than parties, the parties of a thread take turns, an operation each.
 *
 * At the end of each migration all stand still. Then the copy has to be that of the
 * memory, and the page tables, counters and log have to be right; and once more at
 * the end of a round, when all is mapped again by huge pages.
 *
 * -s: no figures. Each party is a thread, whatever processors there are. A timer takes
 * the processor from each of them for a while, anywhere but where preemption is off,
 * and freed tables are poisoned. Only the checks count.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

typedef unsigned long long u64;

/* The ioctls, and what a party does while none of them runs. */
enum phase { ENABLE, GET, CLEAR_FIRST, CLEAR, DISABLE, BETWEEN, PHASES };

static const char * const phase_names[] = {
	[ENABLE] = "enable", [GET] = "GET (legacy)", [CLEAR_FIRST] = "CLEAR, first pass (splits)",
	[CLEAR] = "CLEAR, later", [DISABLE] = "disable", [BETWEEN] = "none of them",
};

enum party { SLOW_FAULT, FAST_FAULT, HIT, MISS, PARTIES };

static const char * const party_names[] = {
	[SLOW_FAULT] = "fault, takes `mmu_lock`", [FAST_FAULT] = "fault, does not",
	[HIT] = "notifier, hits", [MISS] = "notifier, misses",
};

/* What a thread does in turn, apart from the first. */
enum role { VCPU_0, NOTIFIER_HIT, VCPU_1, NOTIFIER_MISS, ROLES };

/* A notifier of either kind each so often. */
#define NOTIFIER_NS	200000
/* An ioctl each so often, for each GiB. */
#define PERIOD_NS	10000000ull
/* How many times as often with -s. */
#define STRESS		10
/* And how often a thread is preempted then. */
#define PREEMPT_NS	130000
/* A write of so many is to what a notifier has unmapped last. */
#define TO_UNMAPPED	4
/* Migrations of each mode in a round. */
#define CYCLES		2

/* A histogram with 32 buckets for each power of two: within 3 %. */
#define SUB_BITS	5
#define BUCKETS		((64 - SUB_BITS + 1) << SUB_BITS)

struct histogram {
	u64 n, sum, max;
	unsigned int buckets[BUCKETS];
};

/* In ticks of the TSC: how long an operation took, and waited for mmu_lock. */
struct record {
	struct histogram took, waited;
};

static struct thread {
	pthread_t thread;
	int cpu;
	unsigned long gs;
	void *percpu;
	unsigned int roles;
	int standing;
	/* How often somebody else got the processor. */
	long switches;
	u64 random;
	struct record records[PHASES][PARTIES];
} threads[NATIVE_CPUS];

/* The figures of a round. */
struct figures {
	double rate, p50, p99, max, wait_p99, wait_max, wait_share;
};

#define FIGURES		(sizeof(struct figures) / sizeof(double))

static union {
	struct figures figures;
	double values[FIGURES];
} (*results)[NATIVE_MMUS][PHASES + 1][PARTIES];
/* Of the ioctls. */
static double (*ioctl_us)[NATIVE_MMUS][PHASES], (*ioctl_wait_us)[NATIVE_MMUS][PHASES];
/* What a thread sees that only looks at the clock; and how often threads lost their CPU. */
static double (*gap_us)[NATIVE_MMUS], (*switches)[NATIVE_MMUS];

static int nr_threads, rounds = 20, stress_seconds;
static unsigned long huge_pages = 4 * 512, pages;
static enum native_mmu mmu;
static double ticks_per_ns;
static u64 period, notifier_period;

static int stop, stand;
/* Which ioctl runs; and which was the last, of how many. */
static enum phase phase = BETWEEN, last_phase = BETWEEN;
static unsigned long phase_count;
static unsigned long unmapped;

/* Only the first thread's. */
static u64 phase_ticks[PHASES], max_gap;
static struct record ioctls[PHASES];

/* Threads that share a processor do not keep it to wait for each other. */
void native_idle(void)
{
	if (stress_seconds)
		sched_yield();
}

/* The timer of a thread: it is preempted, in the kernel or in the guest. */
static void preempt(int sig)
{
	static __thread unsigned int count;
	struct timespec ts = { .tv_nsec = (++count * 7919 % 13) * 40000 };
	int error = errno;

	(void)sig;
	if (native_preemptible())
		nanosleep(&ts, NULL);
	errno = error;
}

static timer_t start_timer(void)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = SIGUSR1,
		._sigev_un._tid = gettid(),
	};
	struct itimerspec often = {
		.it_interval.tv_nsec = PREEMPT_NS, .it_value.tv_nsec = PREEMPT_NS,
	};
	timer_t timer;

	if (timer_create(CLOCK_MONOTONIC, &event, &timer) ||
	    timer_settime(timer, 0, &often, NULL))
		err(1, "timer_create");
	return timer;
}

static u64 now(void)
{
	return __builtin_ia32_rdtsc();
}

static unsigned int bucket_of(u64 value)
{
	int shift = 63 - SUB_BITS - __builtin_clzll(value | 1);

	return shift <= 0 ? value : (shift << SUB_BITS) + (value >> shift);
}

/* The middle of a bucket. */
static double bucket_value(unsigned int bucket)
{
	unsigned int shift = bucket >> SUB_BITS;

	if (shift <= 1)
		return bucket;
	shift--;
	return ((u64)(bucket - (shift << SUB_BITS)) << shift) + ((1ull << shift) - 1) / 2.0;
}

static void add(struct histogram *h, u64 value)
{
	h->n++;
	h->sum += value;
	if (value > h->max)
		h->max = value;
	h->buckets[bucket_of(value)]++;
}

static void merge(struct histogram *into, const struct histogram *h)
{
	into->n += h->n;
	into->sum += h->sum;
	if (h->max > into->max)
		into->max = h->max;
	for (unsigned int i = 0; i < BUCKETS; i++)
		into->buckets[i] += h->buckets[i];
}

static double percentile(const struct histogram *h, int percent)
{
	u64 rank = (h->n * percent + 99) / 100, seen = 0;

	for (unsigned int i = 0; i < BUCKETS; i++) {
		seen += h->buckets[i];
		if (seen && seen >= rank)
			return bucket_value(i) < h->max ? bucket_value(i) : h->max;
	}
	return 0;
}

static u64 next_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/*
 * The parties. An operation belongs to the ioctl that ran when it began, or else to the
 * last one that has begun since.
 */
struct start {
	enum phase phase;
	unsigned long count;
	u64 at;
};

static struct start begin_operation(void)
{
	struct start start = {
		.phase = __atomic_load_n(&phase, __ATOMIC_RELAXED),
		.count = __atomic_load_n(&phase_count, __ATOMIC_ACQUIRE),
		.at = now(),
	};

	return start;
}

static void end_operation(struct thread *self, enum party party, struct start start)
{
	u64 took = now() - start.at, waited = party == FAST_FAULT ? 0 : native_waited();
	struct record *record;

	if (start.phase == BETWEEN &&
	    __atomic_load_n(&phase_count, __ATOMIC_ACQUIRE) != start.count)
		start.phase = __atomic_load_n(&last_phase, __ATOMIC_RELAXED);
	record = &self->records[start.phase][party];
	add(&record->took, took);
	add(&record->waited, waited);
}

static void write_somewhere(struct thread *self, int vcpu)
{
	u64 random = next_random(&self->random);
	unsigned long page = (random >> 16) % pages;
	struct start start;
	enum native_fault fault;

	if (random % TO_UNMAPPED == 0)
		page = __atomic_load_n(&unmapped, __ATOMIC_RELAXED) + page % 512;
	start = begin_operation();
	fault = native_write(mmu, vcpu, page);
	if (fault != NATIVE_NO_FAULT)
		end_operation(self, fault == NATIVE_FAST_FAULT ? FAST_FAULT : SLOW_FAULT, start);
}

static void notify(struct thread *self, enum party party)
{
	unsigned long page = next_random(&self->random) % huge_pages * 512;
	struct start start = begin_operation();

	if (party == MISS) {
		native_notify_miss(mmu);
	} else {
		native_notify(mmu, page, 512);
		__atomic_store_n(&unmapped, page, __ATOMIC_RELAXED);
	}
	end_operation(self, party, start);
}

static long count_switches(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_THREAD, &usage))
		err(1, "getrusage");
	return usage.ru_nivcsw;
}

static void *take_part(void *arg)
{
	struct thread *self = arg;
	u64 next[ROLES] = {};
	timer_t timer = 0;

	if (syscall(SYS_arch_prctl, ARCH_SET_GS, self->gs))
		err(1, "arch_prctl");
	if (stress_seconds)
		timer = start_timer();
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		native_quiescent();
		if (__atomic_load_n(&stand, __ATOMIC_ACQUIRE)) {
			__atomic_store_n(&self->standing, 1, __ATOMIC_RELEASE);
			native_idle();
			continue;
		}
		for (int role = 0; role < ROLES; role++) {
			if (!(self->roles & 1 << role))
				continue;
			if (role == VCPU_0 || role == VCPU_1) {
				write_somewhere(self, role == VCPU_1);
			} else if (now() >= next[role]) {
				notify(self, role == NOTIFIER_HIT ? HIT : MISS);
				next[role] = now() + notifier_period;
			}
		}
	}
	if (stress_seconds)
		timer_delete(timer);
	native_cpu_offline();
	self->switches = count_switches();
	return NULL;
}

/* All others stand still, between two operations. */
static void stop_all(void)
{
	for (int i = 1; i < nr_threads; i++)
		__atomic_store_n(&threads[i].standing, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&stand, 1, __ATOMIC_RELEASE);
	for (int i = 1; i < nr_threads; i++) {
		while (!__atomic_load_n(&threads[i].standing, __ATOMIC_ACQUIRE)) {
			native_quiescent();
			native_idle();
		}
	}
}

static void go_on(void)
{
	__atomic_store_n(&stand, 0, __ATOMIC_RELEASE);
}

/* The thread that works on the log. */
static void do_ioctl(enum phase which, void (*run)(enum native_mmu mmu))
{
	u64 start, took;

	native_waited();
	__atomic_store_n(&last_phase, which, __ATOMIC_RELAXED);
	__atomic_store_n(&phase, which, __ATOMIC_RELAXED);
	__atomic_store_n(&phase_count, phase_count + 1, __ATOMIC_RELEASE);
	start = now();
	run(mmu);
	took = now() - start;
	__atomic_store_n(&phase, BETWEEN, __ATOMIC_RELEASE);
	phase_ticks[which] += took;
	add(&ioctls[which].took, took);
	add(&ioctls[which].waited, native_waited());
	native_quiescent();
}

/* The guest runs. Meanwhile, how long is this thread away when it does nothing at all? */
static void rest(void)
{
	u64 begin = now(), last, t = begin;

	while (t - begin < period) {
		last = now();
		for (int i = 0; i < 1000; i++) {
			t = now();
			if (t - last > max_gap)
				max_gap = t - last;
			last = t;
		}
		native_quiescent();
		native_idle();
	}
	phase_ticks[BETWEEN] += now() - begin;
}

static void must_be_right(const char *wrong, unsigned long where, const char *when)
{
	if (wrong)
		errx(1, "%s, %s, at %lu: %s", mmu_names[mmu], when, where, wrong);
}

/* The end of a migration: nobody writes any more, and the last pages have been copied. */
static void compare(const char *when)
{
	unsigned long where;
	const char *wrong = native_compare(mmu, &where);

	must_be_right(wrong, where, when);
	wrong = native_check_any(mmu, &where);
	must_be_right(wrong, where, when);
}

static void get_and_copy(void)
{
	do_ioctl(GET, native_get);
	native_note_log(mmu);
	native_copy_noted(mmu);
}

static void clear_and_copy(enum phase which)
{
	/* This GET takes no lock. */
	native_peek(mmu);
	native_note_log(mmu);
	do_ioctl(which, native_clear);
	native_copy_noted(mmu);
}

static void disable(void)
{
	native_stop_log(mmu);
	do_ioctl(DISABLE, native_disable);
	rest();
}

static void migrate_legacy(void)
{
	native_start_log(mmu, 0);
	do_ioctl(ENABLE, native_enable);
	native_copy_all(mmu);
	rest();
	get_and_copy();
	rest();
	get_and_copy();
	rest();
	stop_all();
	native_get(mmu);
	native_note_log(mmu);
	native_copy_noted(mmu);
	compare("after a migration in the legacy mode");
	go_on();
	disable();
}

static void migrate_manual(void)
{
	native_start_log(mmu, 1);
	rest();
	clear_and_copy(CLEAR_FIRST);
	rest();
	clear_and_copy(CLEAR);
	rest();
	stop_all();
	native_peek(mmu);
	native_note_log(mmu);
	native_clear(mmu);
	native_copy_noted(mmu);
	compare("after a migration in the manual mode");
	go_on();
	disable();
}

/* With nobody else, all comes back to what it was at the start. */
static void check_all(void)
{
	const char *wrong;
	unsigned long where;

	native_grace_period();
	wrong = native_check_any(mmu, &where);
	must_be_right(wrong, where, "when all have stopped");
	for (unsigned long i = 0; i < huge_pages; i++)
		native_write(mmu, 0, i * 512);
	native_grace_period();
	check(mmu, NATIVE_W | NATIVE_D, "after", "a round");
}

static void stay_on(pthread_t thread, int cpu)
{
	cpu_set_t set;
	int error;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	error = pthread_setaffinity_np(thread, sizeof(set), &set);
	if (error)
		errx(1, "pthread_setaffinity_np: %s", strerror(error));
}

static void start_threads(int round)
{
	stop = 0;
	memset(phase_ticks, 0, sizeof(phase_ticks));
	memset(ioctls, 0, sizeof(ioctls));
	max_gap = 0;
	for (int i = 1; i < nr_threads; i++) {
		struct thread *thread = &threads[i];

		thread->gs = native_cpu_create(i, thread->percpu);
		/* The same for both MMUs. */
		thread->random = 0x9e3779b97f4a7c15ull * (round * NATIVE_CPUS + i + 1);
		memset(thread->records, 0, sizeof(thread->records));
		errno = pthread_create(&thread->thread, NULL, take_part, thread);
		if (errno)
			err(1, "pthread_create");
		if (!stress_seconds)
			stay_on(thread->thread, thread->cpu);
	}
}

static void end_threads(void)
{
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 1; i < nr_threads; i++) {
		pthread_join(threads[i].thread, NULL);
		native_cpu_remove(i);
	}
}

static double us(double ticks)
{
	return ticks / ticks_per_ns / 1000;
}

static int threads_with(enum party party)
{
	static const unsigned int roles[] = {
		[SLOW_FAULT] = 1 << VCPU_0 | 1 << VCPU_1, [FAST_FAULT] = 1 << VCPU_0 | 1 << VCPU_1,
		[HIT] = 1 << NOTIFIER_HIT, [MISS] = 1 << NOTIFIER_MISS,
	};
	int n = 0;

	for (int i = 1; i < nr_threads; i++)
		n += !!(threads[i].roles & roles[party]);
	return n;
}

/* The figures of a party, in a phase or in all of them. */
static void summarize(int round, int first, int last, int row, enum party party)
{
	static struct record sum;
	struct figures *figures = &results[round][mmu][row][party].figures;
	u64 ticks = 0;

	memset(&sum, 0, sizeof(sum));
	for (int p = first; p <= last; p++) {
		ticks += phase_ticks[p];
		for (int i = 1; i < nr_threads; i++) {
			merge(&sum.took, &threads[i].records[p][party].took);
			merge(&sum.waited, &threads[i].records[p][party].waited);
		}
	}
	figures->rate = sum.took.n / (us(ticks) / 1e6);
	figures->p50 = us(percentile(&sum.took, 50));
	figures->p99 = us(percentile(&sum.took, 99));
	figures->max = us(sum.took.max);
	figures->wait_p99 = us(percentile(&sum.waited, 99));
	figures->wait_max = us(sum.waited.max);
	figures->wait_share = 100.0 * sum.waited.sum / ticks / threads_with(party);
}

static void run_round(int round)
{
	long lost = -count_switches();

	start_threads(round);
	rest();
	for (int i = 0; i < CYCLES; i++) {
		migrate_legacy();
		migrate_manual();
	}
	lost += count_switches();
	end_threads();
	check_all();
	if (stress_seconds)
		return;

	for (int party = 0; party < PARTIES; party++) {
		for (int p = 0; p < PHASES; p++)
			summarize(round, p, p, p, party);
		summarize(round, 0, PHASES - 1, PHASES, party);
	}
	for (int p = 0; p < BETWEEN; p++) {
		double n = ioctls[p].took.n;

		ioctl_us[round][mmu][p] = us(ioctls[p].took.sum / n);
		ioctl_wait_us[round][mmu][p] = us(ioctls[p].waited.sum / n);
	}
	gap_us[round][mmu] = us(max_gap);
	for (int i = 1; i < nr_threads; i++)
		lost += threads[i].switches;
	switches[round][mmu] = lost;
}

/* The median of all rounds of one figure. */
static double figure(enum native_mmu m, int row, enum party party, int which, int quarters)
{
	double values[MAX_ROUNDS];

	for (int i = 0; i < rounds; i++)
		values[i] = results[i][m][row][party].values[which];
	return quantile(values, rounds, quarters);
}

static double ioctl_figure(double (*values)[NATIVE_MMUS][PHASES], enum native_mmu m,
			   enum phase p, int quarters)
{
	double of_rounds[MAX_ROUNDS];

	for (int i = 0; i < rounds; i++)
		of_rounds[i] = values[i][m][p];
	return quantile(of_rounds, rounds, quarters);
}

/* Of all rounds, of whichever MMU. */
static double noise_figure(double (*of)[NATIVE_MMUS], int quarters)
{
	double values[2 * MAX_ROUNDS];

	for (int i = 0; i < rounds; i++) {
		values[2 * i] = of[i][NATIVE_C];
		values[2 * i + 1] = of[i][NATIVE_RUST];
	}
	return quantile(values, 2 * rounds, quarters);
}

/* Three digits, for a reader. */
static void print_number(double value)
{
	if (value == 0)
		printf(" 0 |");
	else if (value < 9.995)
		printf(" %.2f |", value);
	else if (value < 99.95)
		printf(" %.1f |", value);
	else if (value < 9999.5)
		printf(" %.0f |", value);
	else
		printf(" %.0f,%03.0f |", (double)((long)(value + 0.5) / 1000),
		       (double)((long)(value + 0.5) % 1000));
}

static void print_pair(int row, enum party party, size_t offset)
{
	for (int m = 0; m < NATIVE_MMUS; m++)
		print_number(figure(m, row, party, offset / sizeof(double), 2));
}

static void print_name(int row, enum party party)
{
	printf("| %s | %s |", party ? "" : row == PHASES ? "all of the time" : phase_names[row],
	       party_names[party]);
}

static void print_quartiles(double low, double high)
{
	printf(" %.*f-%.*f |", low < 10 ? 2 : 0, low, high < 10 ? 2 : 0, high);
}

static void print_tables(void)
{
	printf("%d rounds on each MMU in turn; %lu GiB; %d threads, each on a processor.\n"
	       "Figures are the median of the rounds.\n\n",
	       rounds, huge_pages / 512, nr_threads);

	printf("What the thread that works on the log needs for each ioctl:\n\n"
	       "| ioctl | time [us], C | Rust | C / Rust | waiting for `mmu_lock` [us], C | Rust |\n"
	       "|---|--:|--:|--:|--:|--:|\n");
	for (int p = 0; p < BETWEEN; p++) {
		double c = ioctl_figure(ioctl_us, NATIVE_C, p, 2);
		double rust = ioctl_figure(ioctl_us, NATIVE_RUST, p, 2);

		printf("| %s |", phase_names[p]);
		print_number(c);
		print_number(rust);
		print_number(c / rust);
		for (int m = 0; m < NATIVE_MMUS; m++)
			print_number(ioctl_figure(ioctl_wait_us, m, p, 2));
		printf("\n");
	}

	printf("\nWhat the others do, how often, and how long one takes:\n\n"
	       "| while | party | per second, C | Rust | p50 [us], C | Rust | p99 [us], C | Rust | max [us], C | Rust |\n"
	       "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
	for (int row = 0; row <= PHASES; row++) {
		for (int party = 0; party < PARTIES; party++) {
			print_name(row, party);
			print_pair(row, party, offsetof(struct figures, rate));
			print_pair(row, party, offsetof(struct figures, p50));
			print_pair(row, party, offsetof(struct figures, p99));
			print_pair(row, party, offsetof(struct figures, max));
			printf("\n");
		}
	}

	printf("\nHow long they wait for `mmu_lock` (quartiles of the rounds for the longest):\n\n"
	       "| while | party | share of a thread's time [%%], C | Rust | p99 [us], C | Rust | longest [us], C | Rust | quartiles, C | Rust |\n"
	       "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
	for (int row = 0; row <= PHASES; row++) {
		for (int party = 0; party < PARTIES; party++) {
			const int max = offsetof(struct figures, wait_max) / sizeof(double);

			/* They do not take it. */
			if (party == FAST_FAULT || party == MISS)
				continue;
			print_name(row, party);
			print_pair(row, party, offsetof(struct figures, wait_share));
			print_pair(row, party, offsetof(struct figures, wait_p99));
			print_pair(row, party, offsetof(struct figures, wait_max));
			for (int m = 0; m < NATIVE_MMUS; m++)
				print_quartiles(figure(m, row, party, max, 1),
						figure(m, row, party, max, 3));
			printf("\n");
		}
	}

	printf("\nNoise: the longest that a thread is away which only reads the clock is %.0f us\n"
	       "(quartiles %.0f-%.0f); somebody else gets a thread's processor %.0f times in a round\n"
	       "(%.0f-%.0f).\n",
	       noise_figure(gap_us, 2), noise_figure(gap_us, 1), noise_figure(gap_us, 3),
	       noise_figure(switches, 2), noise_figure(switches, 1), noise_figure(switches, 3));
}

static void write_json(const char *path)
{
	static const char * const keys[] = { "per_second", "p50_us", "p99_us", "max_us",
					     "wait_p99_us", "wait_max_us", "wait_share" };
	static const char * const phase_keys[] = { "enable", "get", "clear_first", "clear",
						   "disable", "between", "all" };
	static const char * const party_keys[] = { "slow_fault", "fast_fault", "notifier_hit",
						   "notifier_miss" };
	FILE *file = fopen(path, "w");

	if (!file)
		err(1, "%s", path);
	fprintf(file, "{\n \"huge_pages\": %lu, \"threads\": %d,\n \"rounds\": [\n",
		huge_pages, nr_threads);
	for (int i = 0; i < rounds; i++) {
		for (int m = 0; m < NATIVE_MMUS; m++) {
			fprintf(file, "%s  {\"mmu\": \"%s\", \"gap_us\": %.1f, \"switches\": %.0f",
				i || m ? ",\n" : "", mmu_names[m], gap_us[i][m], switches[i][m]);
			for (int p = 0; p < BETWEEN; p++)
				fprintf(file, ",\n   \"%s_us\": %.1f, \"%s_wait_us\": %.2f",
					phase_keys[p], ioctl_us[i][m][p], phase_keys[p],
					ioctl_wait_us[i][m][p]);
			for (int p = 0; p <= PHASES; p++) {
				for (int party = 0; party < PARTIES; party++) {
					fprintf(file, ",\n   \"%s/%s\": {", phase_keys[p],
						party_keys[party]);
					for (size_t f = 0; f < FIGURES; f++)
						fprintf(file, "%s\"%s\": %.3f", f ? ", " : "",
							keys[f],
							results[i][m][p][party].values[f]);
					fprintf(file, "}");
				}
			}
			fprintf(file, "}");
		}
	}
	fprintf(file, "\n ]\n}\n");
	if (fclose(file))
		err(1, "%s", path);
}

static double seconds(void)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_MONOTONIC, &ts))
		err(1, "clock_gettime");
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void calibrate(void)
{
	double begin = seconds(), end;
	u64 ticks = now();

	do
		end = seconds();
	while (end - begin < 0.1);
	ticks_per_ns = (now() - ticks) / (end - begin) / 1e9;
}

/* Which processor each thread has, and which parties each thread. */
static void deal(void)
{
	int cpu = -1;
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		err(1, "sched_getaffinity");
	if (!nr_threads) {
		nr_threads = CPU_COUNT(&set);
		if (nr_threads > 1 + ROLES || stress_seconds)
			nr_threads = 1 + ROLES;
	}
	if (nr_threads < 2 || nr_threads > 1 + ROLES)
		errx(1, "2 to %d threads", 1 + ROLES);
	if (!stress_seconds && nr_threads > CPU_COUNT(&set))
		errx(1, "%d threads need a processor each, and there are %d; use -t %d or less",
		     nr_threads, CPU_COUNT(&set), CPU_COUNT(&set));

	for (int i = 0; i < nr_threads; i++) {
		if (!stress_seconds) {
			do
				cpu++;
			while (!CPU_ISSET(cpu, &set));
		}
		threads[i].cpu = cpu;
		threads[i].percpu = reserve(native_percpu_bytes(), 1);
	}
	for (int role = 0; role < ROLES; role++)
		threads[1 + role % (nr_threads - 1)].roles |= 1 << role;
	if (!stress_seconds)
		stay_on(pthread_self(), threads[0].cpu);
}

int main(int argc, char **argv)
{
	struct program_options options = { .huge_pages = huge_pages, .rounds = rounds };
	double begin;
	int opt;

	while ((opt = getopt(argc, argv, PROGRAM_OPTIONS "t:s:")) != -1) {
		if (opt == 't')
			nr_threads = atoi(optarg);
		else if (opt == 's')
			stress_seconds = atoi(optarg);
		else if (!program_option(&options, opt))
			return 1;
	}
	program_check_options(&options);
	huge_pages = options.huge_pages;
	rounds = options.rounds;

	program_init();
	calibrate();
	deal();
	pages = huge_pages * 512;
	period = PERIOD_NS * huge_pages / 512 * ticks_per_ns;
	notifier_period = NOTIFIER_NS * ticks_per_ns;
	if (stress_seconds) {
		period /= STRESS;
		notifier_period /= STRESS;
	}
	create_vms(huge_pages);

	if (stress_seconds) {
		signal(SIGUSR1, preempt);
		native_poison();
		begin = seconds();
		for (rounds = 0; seconds() - begin < stress_seconds; rounds++) {
			mmu = rounds % NATIVE_MMUS;
			run_round(rounds);
		}
		printf("%d rounds, %d threads: all pages, tables, counters and logs are right\n",
		       rounds, nr_threads);
		return 0;
	}

	results = calloc(rounds, sizeof(*results));
	ioctl_us = calloc(rounds, sizeof(*ioctl_us));
	ioctl_wait_us = calloc(rounds, sizeof(*ioctl_wait_us));
	gap_us = calloc(rounds, sizeof(*gap_us));
	switches = calloc(rounds, sizeof(*switches));
	if (!results || !ioctl_us || !ioctl_wait_us || !gap_us || !switches)
		err(1, "calloc");
	for (int round = 0; round < rounds; round++) {
		for (int turn = 0; turn < NATIVE_MMUS; turn++) {
			mmu = (round + turn) % NATIVE_MMUS;
			run_round(round);
		}
	}

	print_tables();
	if (options.json)
		write_json(options.json);
	return 0;
}
