// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for mmu_lock, for how long, and because of whom
 *
 * Inject stalls of known length and cause, with kvm.mmu_lock_delay, and with mprotect() of a
 * large range, which takes long between the two calls of KVM's MMU notifier.  Measure how long
 * KVM_RUN, madvise() and KVM_CLEAR_DIRTY_LOG take.  The statistics must account for 95% of what
 * was injected, and for no more than was measured, in the right place.  While nothing happens,
 * nothing may be accounted.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define TEST_PAGES	(SZ_256M / PAGE_SIZE)
/* At the end of the slot, which no vCPU touches. */
#define VICTIM_PAGES	1ul

/* The longest that can be. */
#define DELAY_NS	100000000ull
#define ROUNDS		5
#define MAX_RUNS	20000

#define PARAMETERS	"/sys/module/kvm/parameters/"

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u8 *mem;
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
	int fd = open_path_or_exit(name, O_WRONLY);

	TEST_ASSERT(write(fd, value, strlen(value)) == (ssize_t)strlen(value),
		    "Cannot write '%s' to %s", value, name);
	close(fd);
}

static void set_delay(const char *holder, u64 ns)
{
	char value[64];

	snprintf(value, sizeof(value), "%s %lu", holder, ns);
	set_parameter(PARAMETERS "mmu_lock_delay", value);
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

static void guest_code(void)
{
	u64 page;

	for (;;) {
		for (page = 0; page < TEST_PAGES - VICTIM_PAGES; page++) {
			READ_ONCE(*(u64 *)(TEST_BASE + page * PAGE_SIZE));
			GUEST_SYNC(page);
		}
	}
}

/* Lets the guest read one page.  Returns how long that took. */
static u64 run_vcpu(void)
{
	u64 start = now_ns(), ns;

	vcpu_run(vcpu);
	ns = now_ns() - start;
	assert_ucall(vcpu, UCALL_SYNC);
	return ns;
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

/*
 * How much of a system call that waited has to be accounted for, in percent.  An emulator that runs
 * all processors in one thread stops this one before the wait and after it, for as long as the
 * other is busy, which is long where its own machine is.
 */
static unsigned int least_percent(void)
{
	return this_cpu_has(X86_FEATURE_HYPERVISOR) ? 50 : 95;
}

/* Of each system call that had to wait, so many thousandths are accounted for. */
static void assert_median(const char *what, u64 *permille, size_t nr)
{
	u64 half = median(permille, nr);

	pr_info("%s: %zu times, %lu.%lu%% of the median one\n", what, nr, half / 10, half % 10);
	TEST_ASSERT(half >= least_percent() * 10 && half <= 1050,
		    "%s: not %u%% to 105%% are accounted for", what, least_percent());
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

/* A holder for write: vCPUs wait. */
static void test_writer(void)
{
	u64 before[NR_ROWS], stalled, notified;
	pthread_t thread;

	read_rows(before);
	set_delay("notifier", DELAY_NS);
	thread = start_thread(hit_in_thread, ROUNDS);
	stalled = run_until_stop("mmu_lock_wait_ns");
	notified = join(thread);
	set_delay("notifier", 0);

	/* Each madvise() takes the lock twice. */
	assert_between("write: the notifier held", grown(before, "mmu_hold_notifier_ns"),
		       2 * ROUNDS * DELAY_NS, notified);
	assert_row(before, "mmu_hold_", "mmu_hold_notifier_ns");
	assert_between("write: the vCPU waited", grown(before, "mmu_wait_for_notifier_ns"),
		       stalled * least_percent() / 100, stalled);
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
	u64 before[NR_ROWS], permille[ROUNDS], waited, cleared;
	pthread_t thread;
	int i;

	vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES, TEST_BASE,
				  TEST_PAGES * PAGE_SIZE, mem);
	read_rows(before);
	set_delay("clear", DELAY_NS);
	thread = start_thread(clear_in_thread, 0);
	for (i = 0; i < ROUNDS; i++) {
		waited = row("mmu_write_wait_ns");
		permille[i] = hit(1);
		permille[i] = (row("mmu_write_wait_ns") - waited) * 1000 / permille[i];
	}
	WRITE_ONCE(stop, true);
	cleared = join(thread);
	set_delay("clear", 0);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, TEST_PAGES * PAGE_SIZE, mem);

	assert_between("read: KVM_CLEAR_DIRTY_LOG held", grown(before, "mmu_hold_clear_ns"),
		       nr_clears * DELAY_NS, cleared);
	assert_row(before, "mmu_hold_", "mmu_hold_clear_ns");
	assert_median("read: the notifier waited", permille, ROUNDS);
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
	static u64 permille[MAX_RUNS];
	u64 retries, accounted, ns;
	pthread_t thread;
	size_t nr = 0;

	thread = start_thread(protect_in_thread, 4 * ROUNDS);
	while (!READ_ONCE(stop)) {
		retries = row("mmu_invalidate_retries");
		accounted = row("mmu_fault_invalidation_ns");
		ns = run_vcpu();
		if (row("mmu_invalidate_retries") != retries && nr < MAX_RUNS)
			permille[nr++] = (row("mmu_fault_invalidation_ns") - accounted) * 1000 / ns;
	}
	join(thread);

	TEST_ASSERT(nr, "No fault was retried");
	assert_median("invalidation: the vCPU retried", permille, nr);
}

/* Without kvm.mmu_lock_stats=Y it is still known how long a fault waits, but not why. */
static void test_always_on(void)
{
	u64 before[NR_ROWS], base[64], ns;
	pthread_t thread;
	int i;

	for (i = 0; i < ARRAY_SIZE(base); i++)
		base[i] = run_vcpu();

	set_delay("notifier", DELAY_NS);
	thread = start_thread(hit_in_thread, 1);
	while (!READ_ONCE(hitting))
		usleep(100);
	/* It has the lock by then, and keeps it, although nothing new is measured any more. */
	usleep(5000);
	set_stats(false);
	read_rows(before);
	ns = run_vcpu();
	ns -= median(base, ARRAY_SIZE(base));
	assert_between("always on: the vCPU waited", grown(before, "mmu_lock_wait_ns"),
		       ns * least_percent() / 100, ns);
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

	mem = kvm_mmap(TEST_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_madvise(mem, TEST_PAGES * PAGE_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, TEST_PAGES * PAGE_SIZE);
	bitmap = bitmap_zalloc(TEST_PAGES);

	vm = __vm_create_with_one_vcpu(&vcpu, TEST_PAGES, guest_code);
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_BASE, TEST_PAGES * PAGE_SIZE, mem);
	virt_map(vm, TEST_BASE, TEST_BASE, TEST_PAGES);

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
	test_idle();
	set_stats(false);
	kvm_vm_free(vm);
	return 0;
}
