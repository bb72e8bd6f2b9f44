// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for mmu_lock, for how long, and because of whom
 *
 * Inject stalls of known length and cause: delay holders of mmu_lock (kvm.mmu_lock_delay) and
 * faults (kvm.mmu_fault_delay), call mprotect() for a large range, which takes long between the
 * two calls of KVM's MMU notifier, and have a memory cgroup throttle the thread that allocates
 * page tables.  The statistics must account for 95% of what was injected, in the right place,
 * and for no more than the test measures by itself.  How long a thread waited for the lock or
 * for the notifier is also taken from tracepoints that it hits, so that whatever else stops the
 * thread, like an emulator, does not matter.  While nothing happens, nothing may be accounted.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "mmu_stat.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_PAGES	(SZ_256M / PAGE_SIZE)
/* At the end of the slot, which no vCPU touches. */
#define VICTIM_PAGES	1ul

#define DELAY_NS	100000000ull
/* Long enough for switching the statistics off meanwhile. */
#define LONG_DELAY_NS	1000000000ull
#define FAULT_DELAY_NS	20000000ull
#define ROUNDS		5
#define MAX_RUNS	20000

/* Of transparent huge pages, in which each byte is a RET. */
#define HUGE_SLOT	2
#define HUGE_BASE	(16ul * SZ_1G)
#define HUGE_SIZE	(320ul * SZ_1M)
#define NR_HUGE		(HUGE_SIZE / SZ_2M)
#define RET_OPCODE	0xc3
/* An instruction that is not written over. */
#define CODE_OFFSET	64

#define PARAMETERS	"/sys/module/kvm/parameters/"
#define INSTANCE	TRACEFS "/instances/mmu_lock_stats_test"
#define CGROUP		"/sys/fs/cgroup/mmu_lock_stats_test"

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem, *huge_mem;
static bool stop;
/* In madvise(). */
static bool hitting;

static const char * const vm_rows[] = {
	"mmu_write_wait_ns", "mmu_hold_enable_ns", "mmu_hold_clear_ns", "mmu_hold_get_ns",
	"mmu_hold_disable_ns", "mmu_hold_rmap_ns", "mmu_hold_notifier_ns", "mmu_hold_zap_ns",
	"mmu_hold_nx_recovery_ns", "mmu_hold_fault_ns",
};

static const char * const vcpu_rows[] = {
	"mmu_lock_wait_ns", "mmu_invalidate_retries", "mmu_wait_for_enable_ns",
	"mmu_wait_for_clear_ns", "mmu_wait_for_get_ns", "mmu_wait_for_disable_ns",
	"mmu_wait_for_rmap_ns", "mmu_wait_for_notifier_ns", "mmu_wait_for_zap_ns",
	"mmu_wait_for_nx_recovery_ns", "mmu_wait_for_fault_ns", "mmu_wait_for_other_ns",
	"mmu_fault_missing_ns", "mmu_fault_logged_ns", "mmu_fault_split_ns",
	"mmu_fault_spurious_ns", "mmu_fault_nx_ns", "mmu_fault_invalidation_ns",
	"mmu_fault_other_ns",
};

#define NR_VM_ROWS	ARRAY_SIZE(vm_rows)
#define NR_ROWS		(NR_VM_ROWS + ARRAY_SIZE(vcpu_rows))

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void set_parameter(const char *name, const char *value)
{
	TEST_ASSERT(write_file(name, value), "Cannot write '%s' to %s", value, name);
}

static void set_delay(const char *holder, u64 ns)
{
	char value[64];

	snprintf(value, sizeof(value), "%s %lu", holder, ns);
	set_parameter(PARAMETERS "mmu_lock_delay", value);
}

static void set_fault_delay(u64 ns)
{
	char value[64];

	snprintf(value, sizeof(value), "%lu", ns);
	set_parameter(PARAMETERS "mmu_fault_delay", value);
}

static void set_stats(bool on)
{
	set_parameter(PARAMETERS "mmu_lock_stats", on ? "Y" : "N");
}

static u64 row(const char *name)
{
	u64 value;

	if (!strncmp(name, "mmu_hold_", 9) || !strncmp(name, "mmu_write_", 10))
		kvm_get_stat(&vm->stats, name, &value, 1);
	else
		kvm_get_stat(&vcpu->stats, name, &value, 1);
	return value;
}

static u64 count(struct kvm_binary_stats *stats, const char *name)
{
	u64 hist[32], sum = 0;
	int i;

	kvm_get_stat(stats, name, hist, ARRAY_SIZE(hist));
	for (i = 0; i < ARRAY_SIZE(hist); i++)
		sum += hist[i];
	return sum;
}

static const char *name_of(int i)
{
	return i < NR_VM_ROWS ? vm_rows[i] : vcpu_rows[i - NR_VM_ROWS];
}

static void read_rows(u64 *rows)
{
	int i;

	for (i = 0; i < NR_ROWS; i++)
		rows[i] = row(name_of(i));
}

/* By how much a statistic has grown. */
static u64 grown(const u64 *before, const char *name)
{
	int i;

	for (i = 0; i < NR_ROWS; i++) {
		if (!strcmp(name_of(i), name))
			return row(name) - before[i];
	}
	TEST_FAIL("There is no %s", name);
}

/*
 * A statistic accounts for what was injected, and for no more than was measured here, which has
 * more in it: the rest of a system call, and the emulator, where there is one.
 */
static void assert_between(const char *what, u64 accounted, u64 injected, u64 measured)
{
	pr_info("%s: %lu us; at least %lu us, measured %lu us\n", what, accounted / 1000,
		injected / 1000, measured / 1000);
	TEST_ASSERT(accounted * 100 >= injected * 95, "%s: less than 95%% is accounted for", what);
	TEST_ASSERT(accounted * 100 <= measured * 105, "%s: more than 105%% is accounted for",
		    what);
}

/*
 * Of what grew since @before in all rows that begin with @prefix, at least 95% is in @name.  What
 * faults hold does not count: the vCPU does fault, and an emulator that runs all processors in one
 * thread stops it for long while it has the lock.
 */
static void assert_row(const u64 *before, const char *prefix, const char *name)
{
	u64 after[NR_ROWS], sum = 0, own = 0;
	int i;

	read_rows(after);
	for (i = 0; i < NR_ROWS; i++) {
		if (strncmp(name_of(i), prefix, strlen(prefix)) ||
		    !strcmp(name_of(i), "mmu_hold_fault_ns"))
			continue;
		sum += after[i] - before[i];
		if (!strcmp(name_of(i), name))
			own = after[i] - before[i];
	}
	pr_info("%s: %lu us of the %lu us of all %s*\n", name, own / 1000, sum / 1000, prefix);
	TEST_ASSERT(own && own * 100 >= sum * 95, "%s has less than 95%% of %s*", name, prefix);
}

/* What the guest does before it exits. */
enum op {
	OP_READ_NEXT,
	OP_WRITE,
	OP_RUN,
};

static enum op op;
static u64 target;

static void guest_code(void)
{
	u64 page = 0;

	for (;;) {
		switch (READ_ONCE(op)) {
		case OP_READ_NEXT:
			READ_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE));
			page = (page + 1) % (TEST_PAGES - VICTIM_PAGES);
			break;
		case OP_WRITE:
			WRITE_ONCE(*(u64 *)target, page);
			break;
		case OP_RUN:
			((void (*)(void))target)();
			break;
		}
		GUEST_SYNC(page);
	}
}

/* Lets the guest do one thing, by default read the next page.  Returns how long that took. */
static u64 run_vcpu(void)
{
	u64 start = now_ns(), ns;

	vcpu_run(vcpu);
	ns = now_ns() - start;
	assert_ucall(vcpu, UCALL_SYNC);
	return ns;
}

static u64 run_op(enum op new_op, u64 at)
{
	u64 ns;

	op = new_op;
	target = at;
	sync_global_to_guest(vm, op);
	sync_global_to_guest(vm, target);
	ns = run_vcpu();
	op = OP_READ_NEXT;
	sync_global_to_guest(vm, op);
	return ns;
}

/* --- what the kernel's tracepoints say of this thread */

static bool start_tracing(void)
{
	char tid[16];

	snprintf(tid, sizeof(tid), "%d", getpid());
	rmdir(INSTANCE);
	return !mkdir(INSTANCE, 0700) && write_file(INSTANCE "/trace_clock", "mono") &&
	       write_file(INSTANCE "/buffer_size_kb", "8192") &&
	       write_file(INSTANCE "/set_event_pid", tid) &&
	       write_file(INSTANCE "/events/lock/contention_begin/enable", "1") &&
	       write_file(INSTANCE "/events/lock/contention_end/enable", "1") &&
	       write_file(INSTANCE "/events/kvm/kvm_page_fault/enable", "1") &&
	       write_file(INSTANCE "/events/kvm/kvm_entry/enable", "1");
}

static void stop_tracing(void)
{
	write_file(INSTANCE "/events/enable", "0");
	rmdir(INSTANCE);
}

static void forget_trace(void)
{
	TEST_ASSERT(write_file(INSTANCE "/trace", "0"), "Cannot empty the trace");
}

struct traced {
	/* In the slow path of an rwlock. */
	u64 read_ns, write_ns;
	/* From a fault to the entry after the last fault in a row at the same address. */
	u64 retried_ns;
	unsigned int nr_retried;
};

static void end_faults(struct traced *traced, u64 first, u64 until, unsigned int nr)
{
	if (nr > 1) {
		traced->retried_ns += until - first;
		traced->nr_retried++;
	}
}

/* What this thread has done since forget_trace(). */
static struct traced read_trace(void)
{
	u64 lock, waits_for = 0, since = 0, address, last = 0, first = 0, entry = 0;
	unsigned int nr_faults = 0;
	struct traced traced = {};
	struct trace_event event;
	bool writes = false;
	FILE *trace;

	trace = open_trace(INSTANCE "/trace");
	while (next_event(trace, &event)) {
		char *what = event.what;
		u64 now = event.ns;

		if (sscanf(what, "contention_begin: %lx", &lock) == 1) {
			/* Sleeping locks don't spin. */
			if (strstr(what, "SPIN|READ") || strstr(what, "SPIN|WRITE")) {
				waits_for = lock;
				since = now;
				writes = strstr(what, "WRITE");
			}
		} else if (sscanf(what, "contention_end: %lx", &lock) == 1) {
			if (since && lock == waits_for)
				*(writes ? &traced.write_ns : &traced.read_ns) += now - since;
			since = 0;
		} else if (!strncmp(what, "kvm_page_fault: ", 16)) {
			what = strstr(what, "address ");
			TEST_ASSERT(what && sscanf(what, "address %lx", &address) == 1,
				    "kvm_page_fault tells no address");
			if (!nr_faults || address != last) {
				end_faults(&traced, first, entry, nr_faults);
				first = now;
				last = address;
				nr_faults = 0;
			}
			nr_faults++;
			entry = 0;
		} else if (!strncmp(what, "kvm_entry: ", 11)) {
			/* The first after the last fault counts. */
			if (!entry)
				entry = now;
		}
	}
	fclose(trace);
	end_faults(&traced, first, entry, nr_faults);
	return traced;
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static u64 median(u64 *ns, size_t nr)
{
	qsort(ns, nr, sizeof(*ns), compare);
	return ns[nr / 2];
}

/*
 * Runs the vCPU until the other party is done.  Returns how long those runs took in which the
 * counter @name grew, without what a run takes anyway.
 */
static u64 run_until_stop(const char *name)
{
	static u64 other[MAX_RUNS];
	u64 before = row(name), after, ns, sum = 0, hits = 0;
	size_t nr = 0;

	while (!READ_ONCE(stop)) {
		ns = run_vcpu();
		after = row(name);
		if (after != before) {
			sum += ns;
			hits++;
		} else if (nr < MAX_RUNS) {
			other[nr++] = ns;
		}
		before = after;
	}
	TEST_ASSERT(hits, "%s has not grown", name);
	TEST_ASSERT(nr, "%s always grows", name);
	return sum - hits * median(other, nr);
}

static void pin(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity() to CPU %u", cpu);
}

/* Hits the slot, again and again.  Returns how long madvise() took. */
static u64 hit(unsigned int rounds)
{
	u8 *victim = mem + (TEST_PAGES - VICTIM_PAGES) * PAGE_SIZE;
	u64 start, ns = 0;

	while (rounds--) {
		memset(victim, 1, VICTIM_PAGES * PAGE_SIZE);
		start = now_ns();
		WRITE_ONCE(hitting, true);
		kvm_madvise(victim, VICTIM_PAGES * PAGE_SIZE, MADV_DONTNEED);
		ns += now_ns() - start;
		WRITE_ONCE(hitting, false);
		usleep(5000);
	}
	return ns;
}

static void *hit_in_thread(void *rounds)
{
	u64 ns;

	pin(1);
	ns = hit((unsigned long)rounds);
	WRITE_ONCE(stop, true);
	return (void *)ns;
}

static pthread_t start_thread(void *(*fn)(void *), unsigned long arg)
{
	pthread_t thread;

	WRITE_ONCE(stop, false);
	TEST_ASSERT(!pthread_create(&thread, NULL, fn, (void *)arg), "pthread_create()");
	return thread;
}

static u64 join(pthread_t thread)
{
	void *ret;

	TEST_ASSERT(!pthread_join(thread, &ret), "pthread_join()");
	return (u64)ret;
}

static void set_logging(u32 slot, bool on)
{
	if (slot == TEST_SLOT)
		vm_set_user_memory_region(vm, slot, on ? KVM_MEM_LOG_DIRTY_PAGES : 0, TEST_BASE,
					  TEST_PAGES * PAGE_SIZE, mem);
	else
		vm_set_user_memory_region(vm, slot, on ? KVM_MEM_LOG_DIRTY_PAGES : 0, HUGE_BASE,
					  HUGE_SIZE, huge_mem);
}

/* A holder for write: vCPUs wait. */
static void test_writer(void)
{
	u64 before[NR_ROWS], stalled, notified;
	struct traced traced;
	pthread_t thread;

	read_rows(before);
	forget_trace();
	set_delay("notifier", DELAY_NS);
	thread = start_thread(hit_in_thread, ROUNDS);
	stalled = run_until_stop("mmu_lock_wait_ns");
	notified = join(thread);
	set_delay("notifier", 0);
	traced = read_trace();

	/* Each madvise() takes the lock twice. */
	assert_between("write: the notifier held", grown(before, "mmu_hold_notifier_ns"),
		       2 * ROUNDS * DELAY_NS, notified);
	assert_row(before, "mmu_hold_", "mmu_hold_notifier_ns");
	assert_between("write: the vCPU waited", grown(before, "mmu_wait_for_notifier_ns"),
		       traced.read_ns, stalled);
	TEST_ASSERT(traced.read_ns > DELAY_NS, "The vCPU has not waited");
	assert_row(before, "mmu_wait_for_", "mmu_wait_for_notifier_ns");
}

static unsigned long *bitmap;
static unsigned long nr_clears;

static void *clear_in_thread(void *unused)
{
	u64 start, ns = 0;

	nr_clears = 0;
	pin(1);
	while (!READ_ONCE(stop)) {
		memset(bitmap, 0xff, TEST_PAGES / 8);
		start = now_ns();
		kvm_vm_clear_dirty_log(vm, TEST_SLOT, bitmap, 0, 64);
		ns += now_ns() - start;
		nr_clears++;
	}
	return (void *)ns;
}

/* A holder for read: writers wait. */
static void test_reader(void)
{
	u64 before[NR_ROWS], waited, cleared;
	struct traced traced;
	pthread_t thread;

	set_logging(TEST_SLOT, true);
	read_rows(before);
	forget_trace();
	set_delay("clear", DELAY_NS);
	thread = start_thread(clear_in_thread, 0);
	waited = hit(ROUNDS);
	WRITE_ONCE(stop, true);
	cleared = join(thread);
	set_delay("clear", 0);
	traced = read_trace();
	set_logging(TEST_SLOT, false);

	assert_between("read: KVM_CLEAR_DIRTY_LOG held", grown(before, "mmu_hold_clear_ns"),
		       nr_clears * DELAY_NS, cleared);
	assert_row(before, "mmu_hold_", "mmu_hold_clear_ns");
	assert_between("read: the notifier waited", grown(before, "mmu_write_wait_ns"),
		       traced.write_ns, waited);
	TEST_ASSERT(traced.write_ns > DELAY_NS, "The notifier has not waited");
}

static void *clear_huge_slot(void *unused)
{
	pin(1);
	while (!READ_ONCE(stop)) {
		memset(bitmap, 0xff, HUGE_SIZE / PAGE_SIZE / 8);
		kvm_vm_clear_dirty_log(vm, HUGE_SLOT, bitmap, 0, HUGE_SIZE / PAGE_SIZE);
	}
	return NULL;
}

/*
 * A holder for read that yields to writers, again and again: it holds the lock no longer while
 * they do.  Nobody else can hold it while a writer does, whoever stops the threads, and for however
 * long.
 */
static void test_yield(void)
{
	u64 before[NR_ROWS], start, took, both;
	pthread_t thread;

	set_logging(HUGE_SLOT, true);
	start = now_ns();
	read_rows(before);
	set_delay("notifier", DELAY_NS);
	thread = start_thread(clear_huge_slot, 0);
	hit(ROUNDS);
	WRITE_ONCE(stop, true);
	join(thread);
	set_delay("notifier", 0);
	both = grown(before, "mmu_hold_notifier_ns") + grown(before, "mmu_hold_clear_ns");
	took = now_ns() - start;
	set_logging(HUGE_SLOT, false);

	pr_info("yield: CLEAR and a notifier held the lock for %lu us of %lu us\n", both / 1000,
		took / 1000);
	TEST_ASSERT(both >= 2 * ROUNDS * DELAY_NS, "The notifier did not hold the lock");
	TEST_ASSERT(both <= took, "A hold goes on while somebody else has the lock");
}

static void *protect_in_thread(void *rounds)
{
	unsigned long i;

	pin(1);
	for (i = 0; i < (unsigned long)rounds; i++) {
		TEST_ASSERT(!mprotect(mem, TEST_PAGES * PAGE_SIZE,
				      i % 2 ? PROT_READ | PROT_WRITE : PROT_READ), "mprotect()");
		usleep(5000);
	}
	WRITE_ONCE(stop, true);
	return NULL;
}

/* A notifier that blocks: vCPUs retry their faults until it has returned. */
static void test_invalidation(void)
{
	u64 before[NR_ROWS], retries = row("mmu_invalidate_retries"), ns = 0, took;
	struct traced traced;
	pthread_t thread;

	read_rows(before);
	forget_trace();
	thread = start_thread(protect_in_thread, 4 * ROUNDS);
	while (!READ_ONCE(stop)) {
		took = run_vcpu();
		if (row("mmu_invalidate_retries") != retries)
			ns += took;
		retries = row("mmu_invalidate_retries");
	}
	join(thread);
	traced = read_trace();

	TEST_ASSERT(traced.nr_retried, "No fault was retried");
	pr_info("invalidation: %u faults were retried\n", traced.nr_retried);
	assert_between("invalidation: the vCPU retried", grown(before, "mmu_fault_invalidation_ns"),
		       traced.retried_ns, ns);
}

/* Without kvm.mmu_lock_stats=Y it is still known how long a fault waits, but not why. */
static void test_always_on(void)
{
	u64 before[NR_ROWS], base[64], ns;
	struct traced traced;
	pthread_t thread;
	int i;

	for (i = 0; i < ARRAY_SIZE(base); i++)
		base[i] = run_vcpu();

	read_rows(before);
	forget_trace();
	set_delay("notifier", LONG_DELAY_NS);
	thread = start_thread(hit_in_thread, 1);
	while (!READ_ONCE(hitting))
		usleep(100);
	/* It has the lock by then, and keeps it, although nothing new is measured any more. */
	usleep(5000);
	set_stats(false);
	ns = run_vcpu();
	traced = read_trace();
	ns -= median(base, ARRAY_SIZE(base));
	assert_between("always on: the vCPU waited", grown(before, "mmu_lock_wait_ns"),
		       traced.read_ns, ns);
	TEST_ASSERT(traced.read_ns, "The vCPU has not waited");
	assert_row(before, "mmu_wait_for_", "mmu_wait_for_other_ns");
	join(thread);
	set_stats(true);
	set_delay("notifier", 0);
}

/* One fault for each page that the guest reads for the first time. */
static void test_causes(void)
{
	u64 missing = count(&vcpu->stats, "mmu_fault_missing_hist");
	u64 other = count(&vcpu->stats, "mmu_fault_logged_hist") +
		    count(&vcpu->stats, "mmu_fault_split_hist");
	int i;

	for (i = 0; i < 64; i++)
		run_vcpu();
	missing = count(&vcpu->stats, "mmu_fault_missing_hist") - missing;
	other = count(&vcpu->stats, "mmu_fault_logged_hist") +
		count(&vcpu->stats, "mmu_fault_split_hist") - other;
	pr_info("causes: 64 pages, %lu faults on missing pages, %lu on protected ones\n", missing,
		other);
	TEST_ASSERT(missing == 64 && !other, "Faults are accounted to the wrong cause");
}

/* Faults that are delayed, each at another address. */
static void inject_faults(const char *name, enum op what, u64 first, u64 step)
{
	char hist[64], ns_row[64];
	u64 before[NR_ROWS], nr, ns = 0;
	int i;

	snprintf(hist, sizeof(hist), "%s_hist", name);
	snprintf(ns_row, sizeof(ns_row), "%s_ns", name);
	read_rows(before);
	nr = count(&vcpu->stats, hist);
	set_fault_delay(FAULT_DELAY_NS);
	for (i = 0; i < ROUNDS; i++)
		ns += run_op(what, first + i * step);
	set_fault_delay(0);

	nr = count(&vcpu->stats, hist) - nr;
	TEST_ASSERT(nr == ROUNDS, "%s: %lu faults, not %u", name, nr, ROUNDS);
	assert_between(name, grown(before, ns_row), ROUNDS * FAULT_DELAY_NS, ns);
	assert_row(before, "mmu_fault_", ns_row);
	TEST_ASSERT(grown(before, "mmu_lock_wait_ns") * 20 < ROUNDS * FAULT_DELAY_NS,
		    "%s: the delay counts as waiting", name);
}

/* The first write to a small page that is logged. */
static void test_logged(void)
{
	int i;

	if (logs_by_dirty_bits() || (host_cpu_is_intel && get_kvm_intel_param_bool("pml"))) {
		pr_info("mmu_fault_logged: not tried, writes to logged pages don't fault here\n");
		return;
	}
	for (i = 0; i < ROUNDS; i++)
		run_op(OP_WRITE, TEST_BASE + i * PAGE_SIZE);
	set_logging(TEST_SLOT, true);
	inject_faults("mmu_fault_logged", OP_WRITE, TEST_BASE, PAGE_SIZE);
	set_logging(TEST_SLOT, false);
}

/* Has all huge pages of that slot mapped as such. */
static void map_huge_pages(void)
{
	u64 i, pages;

	for (i = 0; i < NR_HUGE; i++)
		run_op(OP_WRITE, HUGE_BASE + i * SZ_2M);
	pages = vm_get_stat(vm, pages_2m);
	TEST_ASSERT(pages >= NR_HUGE, "Only %lu huge pages of %lu are mapped", pages, NR_HUGE);
}

/* The first write to a huge page that is logged, and was not split before. */
static void test_split(void)
{
	set_parameter(PARAMETERS "eager_page_split", "N");
	set_logging(HUGE_SLOT, true);
	inject_faults("mmu_fault_split", OP_WRITE, HUGE_BASE, SZ_2M);
	set_logging(HUGE_SLOT, false);
	set_parameter(PARAMETERS "eager_page_split", "Y");
	map_huge_pages();
}

static void *enable_in_thread(void *unused)
{
	u64 start;

	pin(1);
	start = now_ns();
	set_logging(HUGE_SLOT, true);
	start = now_ns() - start;
	WRITE_ONCE(stop, true);
	return (void *)start;
}

/*
 * The page tables of a split are charged to a memory cgroup that has to have less.  The thread
 * that splits is made to wait, in an allocation, for seconds, but nobody else is.
 */
static void test_slow_allocation(void)
{
	u64 before[NR_ROWS], took, held, waited;
	char pid[16];
	pthread_t thread;

	rmdir(CGROUP);
	snprintf(pid, sizeof(pid), "%d", getpid());
	if (mkdir(CGROUP, 0700) || !write_file(CGROUP "/memory.high", "0")) {
		pr_info("slow allocation: not tried, there is no memory cgroup\n");
		rmdir(CGROUP);
		return;
	}
	read_rows(before);
	TEST_ASSERT(write_file(CGROUP "/cgroup.procs", pid), "Cannot enter " CGROUP);
	thread = start_thread(enable_in_thread, 0);
	while (!READ_ONCE(stop))
		run_vcpu();
	took = join(thread);
	TEST_ASSERT(write_file("/sys/fs/cgroup/cgroup.procs", pid), "Cannot leave " CGROUP);
	TEST_ASSERT(!rmdir(CGROUP), "Cannot remove " CGROUP);

	held = grown(before, "mmu_hold_enable_ns");
	waited = grown(before, "mmu_lock_wait_ns");
	pr_info("slow allocation: enabling took %lu us, mmu_lock was held for %lu us, the vCPU waited %lu us\n",
		took / 1000, held / 1000, waited / 1000);
	TEST_ASSERT(took > 1000000000, "Allocations were not slow");
	TEST_ASSERT(held && held * 20 < took, "The lock is held while memory is allocated");
	TEST_ASSERT(waited * 20 < took, "The vCPU waits while memory is allocated");

	set_logging(HUGE_SLOT, false);
	map_huge_pages();
}

/* Code is run in a huge page where that is forbidden, and NX recovery. */
static void test_nx(void)
{
	u64 before[NR_ROWS], holds, start;
	char old[16] = {};
	int fd, i;

	fd = open_path_or_exit(PARAMETERS "nx_huge_pages", O_RDONLY);
	TEST_ASSERT(read(fd, old, sizeof(old) - 1) > 0, "Cannot read nx_huge_pages");
	close(fd);
	if (!strncmp(old, "never", 5)) {
		pr_info("mmu_fault_nx: not tried, kvm.nx_huge_pages=never\n");
		return;
	}
	/* This zaps everything. */
	set_parameter(PARAMETERS "nx_huge_pages", "Y");
	for (i = 0; i < ROUNDS; i++)
		run_op(OP_WRITE, HUGE_BASE + i * SZ_2M);
	inject_faults("mmu_fault_nx", OP_RUN, HUGE_BASE + CODE_OFFSET, SZ_2M);

	read_rows(before);
	holds = count(&vm->stats, "mmu_hold_nx_recovery_hist");
	start = now_ns();
	set_delay("nx_recovery", DELAY_NS / 10);
	set_parameter(PARAMETERS "nx_huge_pages_recovery_period_ms", "20");
	set_parameter(PARAMETERS "nx_huge_pages_recovery_ratio", "1");
	while (count(&vm->stats, "mmu_hold_nx_recovery_hist") < holds + ROUNDS)
		usleep(1000);
	set_delay("nx_recovery", 0);
	start = now_ns() - start;
	/* One hold may have begun before the delay, and one before it ended. */
	assert_between("NX recovery held", grown(before, "mmu_hold_nx_recovery_ns"),
		       (ROUNDS - 2) * DELAY_NS / 10, start);
	assert_row(before, "mmu_hold_", "mmu_hold_nx_recovery_ns");
	set_parameter(PARAMETERS "nx_huge_pages_recovery_ratio", "60");
	set_parameter(PARAMETERS "nx_huge_pages_recovery_period_ms", "0");
	set_parameter(PARAMETERS "nx_huge_pages", old);
}

static void test_idle(void)
{
	u64 before[NR_ROWS], after[NR_ROWS];
	int i;

	read_rows(before);
	usleep(300000);
	read_rows(after);
	for (i = 0; i < NR_ROWS; i++)
		TEST_ASSERT(before[i] == after[i], "%s grows while nothing happens",
			    name_of(i));
}

static void check_file(void)
{
	char path[128], line[1024];
	int rows = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/mmu_lock_stats", getpid(),
		 vm->fd);
	f = fopen(path, "re");
	TEST_ASSERT(f, "Cannot open %s", path);
	while (fgets(line, sizeof(line), f))
		rows += !!strstr(line, "hist=");
	fclose(f);
	/* Of the VM: what writers wait, and each holder. Of the vCPU: what it waits, and causes. */
	TEST_ASSERT(rows == 1 + 9 + 1 + 7, "%s has %d histograms, should have 18", path, rows);
}

int main(void)
{
	__TEST_REQUIRE(!access(PARAMETERS "mmu_lock_stats", F_OK),
		       "kvm has no statistics of mmu_lock (it is C)");
	__TEST_REQUIRE(!access(PARAMETERS "mmu_lock_delay", F_OK),
		       "kvm is built without CONFIG_KVM_RUST_MMU_KUNIT_TEST");
	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	__TEST_REQUIRE(sysconf(_SC_NPROCESSORS_ONLN) > 1, "Two processors are needed");
	__TEST_REQUIRE(start_tracing(), "The kernel does not trace waits for locks");

	mem = kvm_mmap(TEST_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_madvise(mem, TEST_PAGES * PAGE_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, TEST_PAGES * PAGE_SIZE);
	bitmap = bitmap_zalloc(HUGE_SIZE / PAGE_SIZE);
	huge_mem = kvm_mmap(HUGE_SIZE + SZ_2M, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	huge_mem = align_ptr_up(huge_mem, SZ_2M);
	kvm_madvise(huge_mem, HUGE_SIZE, MADV_HUGEPAGE);
	memset(huge_mem, RET_OPCODE, HUGE_SIZE);

	vm = __vm_create_with_one_vcpu(&vcpu, TEST_PAGES, guest_code);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	set_logging(TEST_SLOT, false);
	virt_map(vm, TEST_BASE, TEST_BASE, TEST_PAGES);
	set_logging(HUGE_SLOT, false);
	virt_map_level(vm, HUGE_BASE, HUGE_BASE, HUGE_SIZE, PG_LEVEL_2M);

	pin(0);
	set_stats(true);
	run_vcpu();
	/* The guest's own page tables for the next 64 pages are mapped. */
	test_causes();
	test_idle();
	check_file();
	test_writer();
	test_reader();
	test_invalidation();
	test_always_on();
	test_logged();
	map_huge_pages();
	test_yield();
	map_huge_pages();
	test_split();
	test_slow_allocation();
	test_nx();
	test_idle();
	stop_tracing();
	set_stats(false);
	kvm_vm_free(vm);
	return 0;
}
