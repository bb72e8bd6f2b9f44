// SPDX-License-Identifier: GPL-2.0
/*
 * Fairness of mmu_lock
 *
 * Several parties contend for the lock:
 *
 *  - vCPUs write to a memslot and fault on write-protected or split pages,
 *  - a thread toggles dirty logging of that slot, or reads and clears its log in chunks,
 *  - a thread changes the host's mapping of a part of the slot (mprotect, madvise, mremap), so
 *    that MMU notifiers hit the slot,
 *  - a thread does the same to memory outside of any slot.
 *
 * Report how long each of them waits.  Fail if one waits longer than a bound (-b), or makes no
 * progress for several seconds while another does.  Each wait includes the work itself and
 * scheduling delays, which dominate if there are fewer CPUs than threads.
 *
 * Report how long the logging thread holds the lock without dropping it while all the others want
 * it: as KVM accounts for it if it has statistics of mmu_lock, which see each hold, or else by
 * ftrace.
 *
 * Finally, with everything else idle, use ftrace to count how often notifiers take the lock.
 * A notifier that hits no slot must never take it.
 */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/bitmap.h>
#include <linux/kvm.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "run_vcpu.h"
#include "test_util.h"
#include "tracefs.h"
#include "ucall_common.h"

#define TEST_SLOT	1
#define TEST_BASE	(8ul * SZ_1G)
#define MAX_VCPUS	16

/* What notifiers are fired at: a huge page, and room to move it to. */
#define VICTIM_SIZE	SZ_2M

#define INSTANCE	TRACEFS "/instances/kvm_mmu_lock_fairness"
#define LOCKS		"_raw_read_lock _raw_write_lock"
#define UNLOCKS		"_raw_read_unlock _raw_write_unlock"

/* A histogram with eight buckets for each power of two. */
#define SUB_BITS	3
#define NR_BUCKETS	(64 << SUB_BITS)

struct guest_cpu {
	u64 stop;
	u64 writes;
	u64 max;
	u64 buckets[NR_BUCKETS];
} __aligned(PAGE_SIZE);

static struct guest_cpu guest_cpus[MAX_VCPUS];

/* More operations than any party gets done; of more, the last ones count. */
#define MAX_SAMPLES	262144

/* One of the parties: what its operations took, in ns. */
struct party {
	const char *name;
	pthread_t thread;
	pid_t tid;
	u64 *ns;
	size_t nr;
	/* Not all that is progress is timed. */
	u64 rounds;
	u64 max;
};

enum mode {
	MODE_TOGGLE,
	MODE_CLEAR,
	NR_MODES,
};

static const char * const mode_names[NR_MODES] = {
	[MODE_TOGGLE]	= "toggle",
	[MODE_CLEAR]	= "clear",
};

static struct test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	enum mode mode;
	u8 *mem;
	u64 npages;
} test;

static unsigned int nr_vcpus = 2;
static unsigned int seconds = 3;
static unsigned int bound_ms = 1000;
static unsigned int chunk_pages = 2048;
static size_t vcpu_size = SZ_32M;
static int mmap_flags = MAP_HUGETLB | MAP_HUGE_2MB;
/* No progress for so long is none at all. */
static unsigned int stuck_seconds = 5;

static bool stop;

/* kvm.mmu_lock_stats is there, and is on. */
static bool has_lock_stats;

/*
 * Moving a mapping leaves a hole for a moment, into which no other thread may
 * map anything: so nobody allocates memory after this.
 */
static pthread_barrier_t ready;

static struct party logger = { .name = "dirty log" };
static struct party hitter = { .name = "notifier, hit" };
static struct party misser = { .name = "notifier, miss" };
static struct party * const parties[] = { &logger, &hitter, &misser };

static unsigned int bucket_of(u64 value)
{
	unsigned int bits = value ? 64 - __builtin_clzl(value) : 0;

	if (bits <= SUB_BITS)
		return value;
	return ((bits - SUB_BITS) << SUB_BITS) +
	       (value >> (bits - SUB_BITS - 1)) - (1 << SUB_BITS);
}

/* The smallest value in a bucket. */
static u64 bucket_value(unsigned int bucket)
{
	unsigned int group = bucket >> SUB_BITS, low = bucket & ((1 << SUB_BITS) - 1);

	if (!group)
		return bucket;
	return (u64)((1 << SUB_BITS) + low) << (group - 1);
}

static void guest_code(u64 index, u64 base, u64 size)
{
	struct guest_cpu *self = &guest_cpus[index];
	u64 addr, start, took;

	for (;;) {
		for (addr = base; addr < base + size; addr += PAGE_SIZE) {
			if (READ_ONCE(self->stop))
				GUEST_DONE();

			start = rdtsc();
			WRITE_ONCE(*(u64 *)addr, self->writes);
			took = rdtsc() - start;

			self->buckets[bucket_of(took)]++;
			if (took > self->max)
				self->max = took;
			WRITE_ONCE(self->writes, self->writes + 1);
		}
	}
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void record(struct party *party, u64 start)
{
	u64 ns = now_ns() - start;

	party->ns[party->nr++ % MAX_SAMPLES] = ns;
	if (ns > party->max)
		party->max = ns;
}

static void progress(struct party *party)
{
	WRITE_ONCE(party->rounds, party->rounds + 1);
}

static void *run_vcpu(void *arg)
{
	run_until_ucall(arg, UCALL_DONE);
	return NULL;
}

static void set_dirty_logging(bool enable)
{
	vm_set_user_memory_region(test.vm, TEST_SLOT,
				  enable ? KVM_MEM_LOG_DIRTY_PAGES : 0,
				  TEST_BASE, test.npages * PAGE_SIZE, test.mem);
}

static void *run_logger(void *arg)
{
	unsigned long *bitmap = bitmap_zalloc(test.npages);
	u64 first, count, start;

	TEST_ASSERT(bitmap, "Out of memory");
	logger.tid = syscall(SYS_gettid);
	pthread_barrier_wait(&ready);

	while (!READ_ONCE(stop)) {
		if (test.mode == MODE_TOGGLE) {
			start = now_ns();
			set_dirty_logging(true);
			record(&logger, start);
			start = now_ns();
			set_dirty_logging(false);
			record(&logger, start);
			progress(&logger);
			continue;
		}

		kvm_vm_get_dirty_log(test.vm, TEST_SLOT, bitmap);
		for (first = 0; first < test.npages && !READ_ONCE(stop); first += count) {
			count = min_t(u64, chunk_pages, test.npages - first);
			start = now_ns();
			kvm_vm_clear_dirty_log(test.vm, TEST_SLOT,
					       bitmap + first / BITS_PER_LONG,
					       first, count);
			record(&logger, start);
			progress(&logger);
		}
	}
	/* Not freed: others may still be moving mappings. */
	return NULL;
}

static void remap(u8 *from, u8 *to)
{
	void *ret = mremap(from, VICTIM_SIZE, VICTIM_SIZE,
			   MREMAP_MAYMOVE | MREMAP_FIXED, to);

	TEST_ASSERT(ret == to, __KVM_SYSCALL_ERROR("mremap()", -1));

	/* Keep the room. */
	ret = mmap(from, VICTIM_SIZE, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	TEST_ASSERT(ret == from, __KVM_SYSCALL_ERROR("mmap()", -1));
}

/* One round of changes to the mapping of @victim; @spare is unmapped room. */
static void fire_notifiers(u8 *victim, u8 *spare, struct party *party)
{
	u64 start;

#define timed(call)				\
do {						\
	start = now_ns();			\
	call;					\
	if (party)				\
		record(party, start);		\
} while (0)

	WRITE_ONCE(*(u64 *)victim, 1);
	timed(TEST_ASSERT(!mprotect(victim, VICTIM_SIZE, PROT_READ), "mprotect"));
	timed(TEST_ASSERT(!mprotect(victim, VICTIM_SIZE, PROT_READ | PROT_WRITE), "mprotect"));
	WRITE_ONCE(*(u64 *)victim, 2);
	timed(remap(victim, spare));
	timed(remap(spare, victim));
	WRITE_ONCE(*(u64 *)victim, 3);
	timed(kvm_madvise(victim, VICTIM_SIZE, MADV_DONTNEED));
#undef timed
}

/* Two regions, of which the second stays free to move the first to. */
static u8 *map_victim(int flags)
{
	u8 *mem = kvm_mmap(3 * VICTIM_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1);

	return align_ptr_up(mem, VICTIM_SIZE);
}

static u8 *slot_victim(void)
{
	/* The last huge page of the slot, which no vCPU touches. */
	return test.mem + test.npages * PAGE_SIZE - VICTIM_SIZE;
}

static void *run_hitter(void *arg)
{
	u8 *spare = map_victim(mmap_flags);

	pthread_barrier_wait(&ready);
	while (!READ_ONCE(stop)) {
		fire_notifiers(slot_victim(), spare, &hitter);
		progress(&hitter);
	}
	return NULL;
}

static void *run_misser(void *arg)
{
	u8 *victim = map_victim(0), *spare = map_victim(0);

	pthread_barrier_wait(&ready);
	while (!READ_ONCE(stop)) {
		fire_notifiers(victim, spare, &misser);
		progress(&misser);
	}
	return NULL;
}

static struct guest_cpu *host_view(unsigned int i)
{
	return addr_gva2hva(test.vm, (gva_t)&guest_cpus[i]);
}

/* Fails if a party stands still for long while another gets on. */
static void watch(void)
{
	unsigned int nr = nr_vcpus + ARRAY_SIZE(parties), i, tick, ticks = seconds * 10;
	u64 last[MAX_VCPUS + ARRAY_SIZE(parties)] = {}, now;
	unsigned int still[MAX_VCPUS + ARRAY_SIZE(parties)] = {};
	bool all_started = false;

	/* However slow the machine is: everybody shall have been seen to work. */
	for (tick = 0; tick < ticks || !all_started; tick++) {
		usleep(100 * 1000);

		all_started = true;
		for (i = 0; i < nr; i++) {
			now = i < nr_vcpus ? READ_ONCE(host_view(i)->writes) :
					     READ_ONCE(parties[i - nr_vcpus]->rounds);
			still[i] = now == last[i] ? still[i] + 1 : 0;
			last[i] = now;
			all_started &= !!now;

			TEST_ASSERT(still[i] < stuck_seconds * 10,
				    "%s %u has made no progress for %u seconds",
				    i < nr_vcpus ? "vCPU" : parties[i - nr_vcpus]->name,
				    i < nr_vcpus ? i : 0, stuck_seconds);
		}
	}
}

static int compare_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void report_line(const char *name, size_t nr, u64 p50, u64 p99, u64 max)
{
	ksft_print_msg("%-6s %-16s %8lu ops, us: p50 %8.1f p99 %8.1f max %10.1f\n",
		       mode_names[test.mode], name, nr, p50 / 1e3, p99 / 1e3, max / 1e3);
}

static u64 report_party(struct party *party)
{
	size_t nr = min_t(size_t, party->nr, MAX_SAMPLES);

	if (!nr)
		return 0;
	qsort(party->ns, nr, sizeof(*party->ns), compare_u64);
	report_line(party->name, party->nr, party->ns[nr / 2],
		    party->ns[nr * 99 / 100], party->max);
	return party->max;
}

/* --- what KVM's own statistics say */

#define LOCK_STATS	"/sys/module/kvm/parameters/mmu_lock_stats"

static const char * const fault_stats[] = {
	"mmu_fault_missing_ns", "mmu_fault_logged_ns", "mmu_fault_split_ns",
	"mmu_fault_spurious_ns", "mmu_fault_nx_ns", "mmu_fault_invalidation_ns",
	"mmu_fault_other_ns",
};

static const char * const hold_stats[] = {
	"mmu_hold_enable_max_ns", "mmu_hold_clear_max_ns", "mmu_hold_get_max_ns",
	"mmu_hold_disable_max_ns",
};

/* The time of all faults, as KVM accounts for it. */
static u64 accounted_faults(void)
{
	unsigned int i, n;
	u64 ns, sum = 0;

	for (i = 0; i < nr_vcpus; i++) {
		for (n = 0; n < ARRAY_SIZE(fault_stats); n++) {
			kvm_get_stat(&test.vcpus[i]->stats, fault_stats[n], &ns, 1);
			sum += ns;
		}
	}
	return sum;
}

/* The longest hold of dirty logging, as KVM accounts for it. */
static u64 accounted_hold(void)
{
	u64 ns, longest = 0;
	unsigned int n;

	for (n = 0; n < ARRAY_SIZE(hold_stats); n++) {
		kvm_get_stat(&test.vm->stats, hold_stats[n], &ns, 1);
		longest = max(longest, ns);
	}
	return longest;
}

/* The writes that took longest are those that faulted: as many as KVM counted. */
static u64 report_faults(u64 tsc_khz)
{
	u64 merged[NR_BUCKETS] = {}, nr = 0, max = 0, seen = 0, p50 = 0, p99 = 0, left, sum = 0;
	struct guest_cpu *cpu;
	unsigned int i, n;

	for (i = 0; i < nr_vcpus; i++) {
		cpu = host_view(i);
		nr += vcpu_get_stat(test.vcpus[i], pf_taken);
		max = max(max, cpu->max);
		for (n = 0; n < NR_BUCKETS; n++)
			merged[n] += cpu->buckets[n];
	}
	left = nr;
	for (n = NR_BUCKETS; n-- && left;) {
		/* In the middle between a bucket and the next. */
		sum += min(left, merged[n]) * (bucket_value(n) + bucket_value(n + 1)) / 2;
		left -= min(left, merged[n]);
		seen += merged[n];
		if (!p99 && seen > nr / 100)
			p99 = bucket_value(n);
		if (!p50 && seen > nr / 2)
			p50 = bucket_value(n);
	}
	max = max * 1000000 / tsc_khz;
	report_line("fault", nr, p50 * 1000000 / tsc_khz, p99 * 1000000 / tsc_khz, max);
	if (has_lock_stats)
		ksft_print_msg("%-6s %-16s us: %.0f by the guest's clock, %.0f by KVM's\n",
			       mode_names[test.mode], "all faults", sum * 1000.0 / tsc_khz,
			       accounted_faults() / 1e3);
	return max;
}

static void create_vm(enum mode mode)
{
	size_t size = nr_vcpus * vcpu_size + VICTIM_SIZE;
	unsigned int i;

	memset(&test, 0, sizeof(test));
	test.mode = mode;
	test.npages = size / PAGE_SIZE;
	/* Transparent huge pages have to be aligned by hand. */
	test.mem = mmap(NULL, size + (mmap_flags ? 0 : SZ_2M), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | mmap_flags, -1, 0);
	__TEST_REQUIRE(test.mem != MAP_FAILED, "Not enough free huge pages");
	test.mem = align_ptr_up(test.mem, SZ_2M);
	if (!mmap_flags)
		kvm_madvise(test.mem, size, MADV_HUGEPAGE);
	memset(test.mem, 1, size);

	memset(guest_cpus, 0, sizeof(guest_cpus));
	test.vm = vm_create_with_vcpus(nr_vcpus, guest_code, test.vcpus);
	if (mode == MODE_CLEAR)
		vm_enable_cap(test.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      KVM_DIRTY_LOG_INITIALLY_SET);
	set_dirty_logging(mode == MODE_CLEAR);
	virt_map_level(test.vm, TEST_BASE, TEST_BASE, align_up(size, SZ_2M), PG_LEVEL_2M);

	for (i = 0; i < nr_vcpus; i++)
		vcpu_args_set(test.vcpus[i], 3, (u64)i, TEST_BASE + i * vcpu_size,
			      (u64)vcpu_size);
}

static void free_vm(void)
{
	size_t size = test.npages * PAGE_SIZE;

	kvm_vm_free(test.vm);
	kvm_munmap(test.mem, size);
}

/* --- tracing */

/* Traces what a thread does with rwlocks; @events: also how it waits for them. */
static bool start_tracing(pid_t thread, bool events)
{
	char tid[16];

	snprintf(tid, sizeof(tid), "%d", thread);
	rmdir(INSTANCE);
	/* A clock that all processors agree on. */
	if (mkdir(INSTANCE, 0700) || !write_file(INSTANCE "/trace_clock", "mono") ||
	    !write_file(INSTANCE "/set_ftrace_filter",
			events ? LOCKS " " UNLOCKS "\n" : LOCKS "\n") ||
	    !write_file(INSTANCE "/set_ftrace_pid", tid))
		return false;
	if (events && (!write_file(INSTANCE "/set_event_pid", tid) ||
		       !write_file(INSTANCE "/events/lock/contention_begin/enable", "1") ||
		       !write_file(INSTANCE "/events/lock/contention_end/enable", "1")))
		return false;
	return write_file(INSTANCE "/current_tracer", "function");
}

static void stop_tracing(void)
{
	write_file(INSTANCE "/current_tracer", "nop");
	write_file(INSTANCE "/events/enable", "0");
	rmdir(INSTANCE);
}

/*
 * How long the traced thread held an rwlock at most, for read and for write, in
 * ns.  A lock that is contended is held from the end of the contention.
 */
static unsigned int longest_holds(u64 *reading, u64 *writing)
{
	u64 since = 0, waits_for = 0, lock, now, *longest;
	struct trace_event event;
	unsigned int count = 0;
	bool contended = false;
	const char *what;
	FILE *trace;

	*reading = 0;
	*writing = 0;
	trace = open_trace(INSTANCE "/trace");
	while (next_event(trace, &event)) {
		what = event.what;
		now = event.ns;

		if (!strncmp(what, "_raw_read_lock ", 15) ||
		    !strncmp(what, "_raw_write_lock ", 16)) {
			since = now;
			contended = false;
		} else if (sscanf(what, "contention_begin: %lx", &lock) == 1) {
			if (since && !contended &&
			    (strstr(what, "READ") || strstr(what, "WRITE"))) {
				waits_for = lock;
				contended = true;
			}
		} else if (sscanf(what, "contention_end: %lx", &lock) == 1) {
			if (since && contended && lock == waits_for)
				since = now;
		} else if (since) {
			longest = strstr(what, "read") ? reading : writing;
			*longest = max(*longest, now - since);
			since = 0;
			count++;
		}
	}
	fclose(trace);
	return count;
}

static void run_mode(enum mode mode)
{
	u64 longest, reading = 0, writing = 0, bound = bound_ms * 1000000ull;
	pthread_t vcpu_threads[MAX_VCPUS];
	unsigned int i, holds = 0;
	bool tracing;
	int tsc_khz;

	create_vm(mode);
	tsc_khz = __vcpu_ioctl(test.vcpus[0], KVM_GET_TSC_KHZ, NULL);
	TEST_ASSERT(tsc_khz > 0, "vcpu ioctl KVM_GET_TSC_KHZ failed");

	for (i = 0; i < ARRAY_SIZE(parties); i++) {
		parties[i]->nr = 0;
		parties[i]->rounds = 0;
		parties[i]->max = 0;
	}
	WRITE_ONCE(stop, false);
	pthread_barrier_init(&ready, NULL, ARRAY_SIZE(parties) + 1);
	for (i = 0; i < nr_vcpus; i++)
		kvm_pthread_create(&vcpu_threads[i], NULL, run_vcpu, test.vcpus[i]);
	kvm_pthread_create(&logger.thread, NULL, run_logger, NULL);
	kvm_pthread_create(&hitter.thread, NULL, run_hitter, NULL);
	kvm_pthread_create(&misser.thread, NULL, run_misser, NULL);

	pthread_barrier_wait(&ready);
	tracing = !has_lock_stats && start_tracing(logger.tid, true);

	watch();

	WRITE_ONCE(stop, true);
	for (i = 0; i < nr_vcpus; i++)
		WRITE_ONCE(host_view(i)->stop, 1);
	for (i = 0; i < nr_vcpus; i++)
		kvm_pthread_join(vcpu_threads[i], NULL);
	for (i = 0; i < ARRAY_SIZE(parties); i++)
		kvm_pthread_join(parties[i]->thread, NULL);

	if (tracing) {
		holds = longest_holds(&reading, &writing);
		stop_tracing();
	}

	longest = report_faults(tsc_khz);
	report_party(&logger);
	longest = max(longest, report_party(&hitter));
	longest = max(longest, report_party(&misser));

	ksft_test_result(longest <= bound, "%s: nobody waits longer than %u ms\n",
			 mode_names[mode], bound_ms);
	if (has_lock_stats) {
		longest = accounted_hold();
		ksft_print_msg("%-6s %-16s us: %.0f\n", mode_names[mode], "longest hold",
			       longest / 1e3);
	} else if (holds) {
		longest = max(reading, writing);
		ksft_print_msg("%-6s %-16s %8u times, us: read %.0f write %.0f\n",
			       mode_names[mode], "longest hold", holds,
			       reading / 1e3, writing / 1e3);
	}
	if (has_lock_stats || holds)
		ksft_test_result(longest <= bound, "%s: nobody holds the lock longer than %u ms\n",
				 mode_names[mode], bound_ms);
	else
		ksft_test_result_skip("%s: how long the lock is held: no function tracing\n",
				      mode_names[mode]);
	free_vm();
}

/* --- who takes the lock */

/* Counts the rwlocks that this thread took in KVM's notifiers since the last call. */
static unsigned int count_notifier_locks(void)
{
	const char *trace = INSTANCE "/trace";
	unsigned int count = count_in_trace(trace, "<-kvm_") + count_in_trace(trace, "<-__kvm_");

	write_file(trace, "0");
	return count;
}

static void check_who_locks(void)
{
	unsigned int hits, misses, i;
	u8 *victim, *spare;

	create_vm(MODE_TOGGLE);
	if (!start_tracing(syscall(SYS_gettid), false)) {
		ksft_test_result_skip("a miss takes no lock: no function tracing\n");
		goto out;
	}

	victim = map_victim(0);
	spare = map_victim(0);
	write_file(INSTANCE "/trace", "0");

	/* That hits are seen shows that a miss would be. */
	for (i = 0; i < 4; i++)
		fire_notifiers(slot_victim(), spare, NULL);
	hits = count_notifier_locks();

	for (i = 0; i < 100; i++)
		fire_notifiers(victim, spare, NULL);
	misses = count_notifier_locks();

	ksft_print_msg("mmu_lock taken: %u times in 4 rounds that hit, %u in 100 that missed\n",
		       hits, misses);
	if (!hits)
		ksft_test_result_skip("a miss takes no lock: hits are not traced\n");
	else
		ksft_test_result(!misses, "a miss takes no lock\n");

out:
	stop_tracing();
	free_vm();
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-b ms] [-c pages] [-m MiB] [-n vcpus] [-s backing] [-t seconds]\n"
	       " -b: fail if somebody waits longer (default: %u)\n"
	       " -c: pages to clear at a time (default: %u)\n"
	       " -m: memory of each vCPU, in MiB (default: %lu)\n"
	       " -n: vCPUs (default: %u)\n"
	       " -s: hugetlb_2mb or thp (default: hugetlb_2mb)\n"
	       " -t: how long to try each mode, in seconds (default: %u)\n",
	       name, bound_ms, chunk_pages, vcpu_size / SZ_1M, nr_vcpus, seconds);
}

int main(int argc, char *argv[])
{
	enum mode mode;
	unsigned int i;
	int opt;

	while ((opt = getopt(argc, argv, "hb:c:m:n:s:t:")) != -1) {
		switch (opt) {
		case 'b':
			bound_ms = atoi_positive("Bound", optarg);
			break;
		case 'c':
			chunk_pages = atoi_positive("Chunk", optarg);
			TEST_ASSERT(!(chunk_pages % 64), "Chunks are multiples of 64 pages");
			break;
		case 'm':
			vcpu_size = align_up(atoi_positive("Memory", optarg), 2) * SZ_1M;
			break;
		case 'n':
			nr_vcpus = atoi_positive("vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= MAX_VCPUS, "At most %d vCPUs", MAX_VCPUS);
			break;
		case 's':
			if (!strcmp(optarg, "thp"))
				mmap_flags = 0;
			else
				TEST_ASSERT(!strcmp(optarg, "hugetlb_2mb"),
					    "Unknown backing '%s'", optarg);
			break;
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 'h':
		default:
			help(argv[0]);
			exit(opt == 'h' ? 0 : KSFT_FAIL);
		}
	}

	TEST_REQUIRE(get_kvm_param_bool("tdp_mmu"));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));

	for (i = 0; i < ARRAY_SIZE(parties); i++) {
		parties[i]->ns = calloc(MAX_SAMPLES, sizeof(*parties[i]->ns));
		TEST_ASSERT(parties[i]->ns, "Out of memory");
	}

	ksft_print_header();
	ksft_set_plan(2 * NR_MODES + 1);
	has_lock_stats = write_file(LOCK_STATS, "Y");
	for (mode = 0; mode < NR_MODES; mode++)
		run_mode(mode);
	/* They have the lock taken by another function. */
	if (has_lock_stats)
		write_file(LOCK_STATS, "N");
	check_who_locks();
	ksft_finished();
}
