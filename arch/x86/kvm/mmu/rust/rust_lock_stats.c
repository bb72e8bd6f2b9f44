// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for mmu_lock, for how long, because of whom; and how long whole faults take.
 *
 * A fault that finds the lock taken always measures its wait. All else is measured with
 * kvm.mmu_lock_stats=Y, a static key.
 *
 * None of these statistics is atomic: each is written by one thread at a time.
 * - Those of a vCPU by the thread that has loaded it.
 * - What writers waited for, and all that holders for write account, under mmu_lock held for write.
 * - What holders for read account, under mmu_lock held for read, by the only thread that can be
 *   this kind of holder: KVM_MMU_{ENABLE,CLEAR,GET,DISABLE} and KVM_MMU_ZAP hold slots_lock, and
 *   there is one worker for KVM_MMU_NX_RECOVERY. KVM_MMU_FAULT is accounted by vCPU. Of several
 *   threads that clear without slots_lock one is KVM_MMU_CLEAR (begin_clear()), and the others
 *   are KVM_MMU_OTHER, which is not accounted.
 * Readers (rust_lock_report.c) take no lock. What they see may be a few events old, and a sum may
 * lack the event that its histogram has.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "rust_bindings.h"
#include "mmu/mmutrace.h"

#include <linux/math64.h>
#include <linux/moduleparam.h>
#include <linux/sched/clock.h>
#include <asm/kvm_mmu_lock.h>
#include <asm/tsc.h>

DEFINE_STATIC_KEY_FALSE(kvm_mmu_lock_stats);

/*
 * Times are taken in ticks of the TSC, which local_clock() would take ten times as many
 * instructions for, and are converted when they are accounted. Where the TSC is not stable when
 * the first VM is created, a tick is a nanosecond of local_clock().
 */
#define NS_SHIFT 24
static u32 ns_per_tick = 1 << NS_SHIFT;
static bool ticks_are_tsc;

void kvm_rs_choose_clock(void)
{
	static bool chosen;

	if (!chosen && tsc_khz > USEC_PER_SEC >> (31 - NS_SHIFT) && !check_tsc_unstable()) {
		WRITE_ONCE(ns_per_tick, div_u64((u64)USEC_PER_SEC << NS_SHIFT, tsc_khz));
		WRITE_ONCE(ticks_are_tsc, true);
	}
	chosen = true;
}

static u64 ticks(void)
{
	return likely(ticks_are_tsc) ? rdtsc() : local_clock();
}

/* The nanoseconds between two ticks. The clocks of two CPUs may differ a little. */
static u64 ns_between(u64 since, u64 until)
{
	return (s64)(until - since) > 0 ? mul_u64_u32_shr(until - since, ns_per_tick, NS_SHIFT) : 0;
}

/*
 * What began while the key was on before, and ended while it was off, is still noted as if it went
 * on. So each beginning has the number of the time that the key was on in its lowest bits, from 1
 * to GENERATIONS, and counts as long as the key has been on since. That does without comparing
 * times, which sleeping to RAM may set back.
 */
#define GENERATIONS 7
static u64 generation = 1;

static u64 stamp(u64 now)
{
	return (now & ~(u64)GENERATIONS) | READ_ONCE(generation);
}

static bool counts(u64 since)
{
	return (since & GENERATIONS) == READ_ONCE(generation);
}

/* A wait of this many ns or more is traced. */
static ulong mmu_lock_stall_ns = 1000000;
module_param(mmu_lock_stall_ns, ulong, 0644);
MODULE_PARM_DESC(mmu_lock_stall_ns, "Trace waits for mmu_lock from this many ns on");

static int lock_stats_set(const char *value, const struct kernel_param *kp)
{
	bool on;
	int err = kstrtobool(value, &on);

	if (err)
		return err;
	if (on && !static_key_enabled(&kvm_mmu_lock_stats))
		WRITE_ONCE(generation, generation % GENERATIONS + 1);
	if (on)
		static_branch_enable(&kvm_mmu_lock_stats);
	else
		static_branch_disable(&kvm_mmu_lock_stats);
	return 0;
}

static int lock_stats_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", static_key_enabled(&kvm_mmu_lock_stats) ? 'Y' : 'N');
}

static const struct kernel_param_ops lock_stats_ops = {
	.set = lock_stats_set,
	.get = lock_stats_get,
};

module_param_cb(mmu_lock_stats, &lock_stats_ops, NULL, 0644);
MODULE_PARM_DESC(mmu_lock_stats, "Measure who holds mmu_lock, who waits for whom, and faults");

#ifdef CONFIG_KVM_RUST_MMU_KUNIT_TEST
/* For tests: "HOLDER NS". Each hold by HOLDER lasts NS longer, while the key is on. */
static unsigned int delayed = KVM_MMU_NR_HOLDERS;
static unsigned int delay_ns;

static int lock_delay_set(const char *value, const struct kernel_param *kp)
{
	char name[16];
	unsigned int ns;
	int holder;

	if (sscanf(value, "%15s %u", name, &ns) != 2 || ns > NSEC_PER_SEC)
		return -EINVAL;
	holder = match_string(kvm_rs_holders, KVM_MMU_NR_HOLDERS, name);
	if (holder < 0)
		return holder;
	WRITE_ONCE(delayed, KVM_MMU_NR_HOLDERS);
	WRITE_ONCE(delay_ns, ns);
	if (ns)
		WRITE_ONCE(delayed, holder);
	return 0;
}

static const struct kernel_param_ops lock_delay_ops = {
	.set = lock_delay_set,
};

module_param_cb(mmu_lock_delay, &lock_delay_ops, NULL, 0200);
MODULE_PARM_DESC(mmu_lock_delay, "For tests: HOLDER NS, each of its holds of mmu_lock lasts longer");

/* For tests: each fault takes so many ns longer before it takes the lock, while the key is on. */
static uint mmu_fault_delay;
module_param(mmu_fault_delay, uint, 0644);
MODULE_PARM_DESC(mmu_fault_delay, "For tests: so many ns that each page fault takes longer");

/* By another clock than that which is tested. */
static void spin(unsigned int ns)
{
	u64 until = local_clock() + ns;

	while ((s64)(local_clock() - until) < 0)
		cpu_relax();
}

static void delay(unsigned int holder)
{
	if (unlikely(holder == READ_ONCE(delayed)))
		spin(READ_ONCE(delay_ns));
}

/* As allocating a page table does, or getting the host's page, if it takes long. */
static void delay_fault(void)
{
	if (unlikely(READ_ONCE(mmu_fault_delay)))
		spin(READ_ONCE(mmu_fault_delay));
}
#else
static void delay(unsigned int holder)
{
}

static void delay_fault(void)
{
}
#endif

static __always_inline void account(struct kvm_mmu_times *times, u64 since, u64 until)
{
	u64 ns = ns_between(since, until);

	times->ns += ns;
	if (ns > times->max_ns)
		times->max_ns = ns;
	KVM_STATS_LOG_HIST_UPDATE(times->hist, ns);
}

/*
 * The holder that has to be waited for. If no other holder for read is measured, it is
 * KVM_MMU_FAULT: faults don't say that they have the lock, because there may be many.
 */
static unsigned int whom(struct kvm *kvm)
{
	const struct kvm_rs_lock *lock = &kvm->rs_lock;
	unsigned int holder, writer;

	if (!static_key_enabled(&kvm_mmu_lock_stats))
		return KVM_MMU_OTHER;

	/* A number that was noted in an earlier generation is nobody's. */
	writer = READ_ONCE(lock->writer);
	if (writer && !counts(READ_ONCE(lock->since[writer - 1])))
		writer = 0;
#if defined(CONFIG_QUEUED_RWLOCKS) && defined(CONFIG_SMP) && !defined(CONFIG_PREEMPT_RT)
	if ((atomic_read(&kvm->mmu_lock.raw_lock.cnts) & _QW_LOCKED) == _QW_LOCKED)
		return writer ? writer - 1 : KVM_MMU_OTHER;
#else
	if (writer)
		return writer - 1;
#endif
	for (holder = 0; holder < KVM_MMU_NR_HOLDERS; holder++) {
		if (counts(READ_ONCE(lock->since[holder])))
			return holder;
	}
	/* One that is not accounted, as there are several. */
	if (tdp_mmu_enabled && !list_empty_careful(&kvm->rs_dirty_log.clears))
		return KVM_MMU_CLEAR;
	return KVM_MMU_FAULT;
}

static void trace_stall(struct kvm_vcpu *vcpu, unsigned int waiter, unsigned int holder,
			bool write, u64 ns)
{
	if (ns >= READ_ONCE(mmu_lock_stall_ns))
		trace_kvm_mmu_lock_stall(vcpu ? vcpu->vcpu_id : -1, waiter, holder, write, ns);
}

/* A fault has waited, first for @holder, and has the lock. */
static void vcpu_waited(struct kvm_vcpu *vcpu, unsigned int holder, bool write, u64 since,
			u64 until)
{
	const struct kvm_rs_lock *lock = &vcpu->kvm->rs_lock;
	struct kvm_rs_vcpu_stat *stat = &vcpu->rs_stat;
	u64 last_since = lock->last_since, ns;

	account(&stat->mmu_lock_wait, since, until);

	/* If a writer took the lock meanwhile, it has been waited for since then. */
	if (last_since > since && last_since < until) {
		ns = ns_between(since, last_since);
		stat->mmu_wait_for[holder] += ns;
		if (ns < ns_between(last_since, until))
			holder = lock->last_writer - 1;
		stat->mmu_wait_for[lock->last_writer - 1] += ns_between(last_since, until);
	} else {
		stat->mmu_wait_for[holder] += ns_between(since, until);
	}
	trace_stall(vcpu, KVM_MMU_FAULT, holder, write, ns_between(since, until));
}

/* @holder has the lock for write now. */
static void set_writer(struct kvm *kvm, unsigned int holder, u64 now)
{
	struct kvm_rs_lock *lock = &kvm->rs_lock;

	WRITE_ONCE(lock->since[holder], stamp(now));
	WRITE_ONCE(lock->writer, holder + 1);
	lock->last_writer = holder + 1;
	lock->last_since = now;
}

/* The lock is taken, by a fault. */
static void begin_fault(struct kvm_vcpu *vcpu, u64 now)
{
	vcpu->rs_fault.held_since = stamp(now ?: ticks());
	vcpu->rs_fault.locked = true;
	delay(KVM_MMU_FAULT);
}

void kvm_rs_fault_read_lock(struct kvm_vcpu *vcpu)
{
	struct kvm *kvm = vcpu->kvm;
	unsigned int holder;
	u64 since, now = 0;

	if (!read_trylock(&kvm->mmu_lock)) {
		holder = whom(kvm);
		since = ticks();
		read_lock(&kvm->mmu_lock);
		now = ticks();
		vcpu_waited(vcpu, holder, false, since, now);
	}
	if (static_branch_unlikely(&kvm_mmu_lock_stats))
		begin_fault(vcpu, now);
}

void kvm_rs_fault_write_lock(struct kvm_vcpu *vcpu)
{
	struct kvm *kvm = vcpu->kvm;
	unsigned int holder;
	u64 since, now = 0;

	if (!write_trylock(&kvm->mmu_lock)) {
		holder = whom(kvm);
		since = ticks();
		write_lock(&kvm->mmu_lock);
		now = ticks();
		vcpu_waited(vcpu, holder, true, since, now);
	}
	now = now ?: ticks();
	set_writer(kvm, KVM_MMU_FAULT, now);
	begin_fault(vcpu, now);
}

/* Before the lock is dropped, which may mean to be scheduled. */
void kvm_rs_fault_end_read(struct kvm_vcpu *vcpu)
{
	u64 *since = &vcpu->rs_fault.held_since;

	if (counts(*since))
		account(&vcpu->rs_stat.mmu_hold, *since, ticks());
	*since = 0;
}

void kvm_rs_fault_end_write(struct kvm_vcpu *vcpu)
{
	struct kvm_rs_lock *lock = &vcpu->kvm->rs_lock;

	kvm_rs_fault_end_read(vcpu);
	WRITE_ONCE(lock->since[KVM_MMU_FAULT], 0);
	WRITE_ONCE(lock->writer, 0);
}

static enum kvm_mmu_fault_cause cause_of(struct kvm_vcpu *vcpu,
					 const struct kvm_page_fault *fault, int r)
{
	switch (r) {
	case RET_PF_FIXED:
		break;
	case RET_PF_RETRY:
		/* Without the lock nobody can win a race: the page has to be waited for, or so. */
		return vcpu->rs_fault.locked ? KVM_MMU_FAULT_SPURIOUS : KVM_MMU_FAULT_OTHER;
	case RET_PF_SPURIOUS:
		/* What it has split a huge page into may be what it wants already. */
		if (!vcpu->rs_fault.split)
			return KVM_MMU_FAULT_SPURIOUS;
		break;
	default:
		return KVM_MMU_FAULT_OTHER;
	}
	/*
	 * A split says more than what the CPU found: a huge page may have come since, or have been
	 * made inaccessible by aging. What is executed is not split because of the log.
	 */
	if (vcpu->rs_fault.split)
		return fault->exec ? KVM_MMU_FAULT_NX : KVM_MMU_FAULT_SPLIT;
	if (!fault->present)
		return KVM_MMU_FAULT_MISSING;
	return fault->exec ? KVM_MMU_FAULT_NX : KVM_MMU_FAULT_LOGGED;
}

/*
 * A vCPU that retries faults again at once, if it is not preempted. If it doesn't for so long, or
 * faults on another page, it had given up.
 */
#define RETRY_GAP_NS (NSEC_PER_SEC / 4)

/* Ends a series of retries for an invalidation. */
static void end_retries(struct kvm_vcpu *vcpu, u64 until)
{
	struct kvm_rs_vcpu_fault *state = &vcpu->rs_fault;

	if (counts(state->retry_since))
		account(&vcpu->rs_stat.mmu_fault[KVM_MMU_FAULT_INVALIDATION], state->retry_since,
			until);
	state->retry_since = 0;
}

int kvm_rs_timed_page_fault(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault)
{
	struct kvm_rs_vcpu_stat *stat = &vcpu->rs_stat;
	struct kvm_rs_vcpu_fault *state = &vcpu->rs_fault;
	u64 retries = stat->mmu_invalidate_retries;
	u64 since = ticks(), until;
	bool again;
	int r;

	state->locked = false;
	state->split = false;
	delay_fault();
	r = vcpu->arch.mmu->page_fault(vcpu, fault);
	until = ticks();

	again = state->retry_since && fault->gfn == state->retry_gfn &&
		ns_between(state->retry_until, since) < RETRY_GAP_NS;
	if (unlikely(state->retry_since && !again))
		end_retries(vcpu, state->retry_until);

	if (unlikely(stat->mmu_invalidate_retries != retries)) {
		if (!again) {
			state->retry_since = stamp(since);
			state->retry_gfn = fault->gfn;
		}
		state->retry_until = until;
	} else if (unlikely(again)) {
		end_retries(vcpu, until);
	} else {
		account(&stat->mmu_fault[cause_of(vcpu, fault, r)], since, until);
	}
	return r;
}

/* The lock is taken. KVM_MMU_OTHER is not accounted. */
static __always_inline void begin(struct kvm *kvm, unsigned int holder, bool write, u64 now)
{
	struct kvm_rs_lock *lock = &kvm->rs_lock;

	if (holder >= KVM_MMU_FAULT)
		return;
	now = now ?: ticks();
	if (write)
		set_writer(kvm, holder, now);
	else
		WRITE_ONCE(lock->since[holder], stamp(now));
	delay(holder);
}

static __always_inline void end(struct kvm *kvm, unsigned int holder)
{
	u64 *since;

	if (holder >= KVM_MMU_FAULT)
		return;
	since = &kvm->rs_lock.since[holder];
	if (counts(*since))
		account(&kvm->rs_stat.mmu_hold[holder], *since, ticks());
	WRITE_ONCE(*since, 0);
}

void kvm_rs_timed_read_lock(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	read_lock(&kvm->mmu_lock);
	begin(kvm, holder, false, 0);
}

void kvm_rs_timed_write_lock(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	unsigned int other;
	u64 since, now = 0;

	if (!write_trylock(&kvm->mmu_lock)) {
		other = whom(kvm);
		since = ticks();
		write_lock(&kvm->mmu_lock);
		now = ticks();
		account(&kvm->rs_stat.mmu_write_wait, since, now);
		trace_stall(NULL, holder, other, true, ns_between(since, now));
	}
	begin(kvm, holder, true, now);
}

void kvm_rs_end_read(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	end(kvm, holder);
}

/* Who holds the lock for write, or KVM_MMU_OTHER if the key was off when it was taken. */
static unsigned int writer_of(struct kvm *kvm)
{
	u8 writer = kvm->rs_lock.writer;

	return writer ? writer - 1 : KVM_MMU_OTHER;
}

void kvm_rs_end_write(struct kvm *kvm)
{
	end(kvm, writer_of(kvm));
	WRITE_ONCE(kvm->rs_lock.writer, 0);
}

/*
 * The holder drops the lock, and will take it again. Returns what kvm_rs_resume_hold() needs, or 0
 * if nothing is measured.
 */
unsigned int kvm_rs_timed_pause_read(struct kvm *kvm, unsigned int holder)
{
	if (holder >= KVM_MMU_FAULT)
		return 0;
	end(kvm, holder);
	return (holder + 1) << 1;
}

unsigned int kvm_rs_timed_pause_write(struct kvm *kvm)
{
	unsigned int holder = writer_of(kvm);

	if (holder >= KVM_MMU_FAULT)
		return 0;
	kvm_rs_end_write(kvm);
	return (holder + 1) << 1 | 1;
}

/* The holder has taken the lock again. */
void kvm_rs_resume_hold(struct kvm *kvm, unsigned int paused)
{
	if (paused)
		begin(kvm, (paused >> 1) - 1, paused & 1, 0);
}

/* Whether cond_resched_rwlock_*() drops the lock, unless that changes meanwhile. */
static bool would_yield(struct kvm *kvm)
{
	return need_resched() || rwlock_needbreak(&kvm->mmu_lock);
}

int kvm_rs_timed_yield_read(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	unsigned int paused = 0;
	int dropped;

	if (would_yield(kvm))
		paused = kvm_rs_timed_pause_read(kvm, holder);
	dropped = cond_resched_rwlock_read(&kvm->mmu_lock);
	kvm_rs_resume_hold(kvm, paused);
	return dropped;
}

int kvm_rs_timed_yield_write(struct kvm *kvm)
{
	unsigned int paused = 0;
	int dropped;

	if (would_yield(kvm))
		paused = kvm_rs_timed_pause_write(kvm);
	dropped = cond_resched_rwlock_write(&kvm->mmu_lock);
	kvm_rs_resume_hold(kvm, paused);
	return dropped;
}
