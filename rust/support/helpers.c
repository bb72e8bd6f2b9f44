// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of helpers.h, in its order. Included by the C helpers of a crate, which
 * define __rust_support, what those are declared with.
 */
#include "helpers.h"

#include <linux/lockdep.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

__rust_support void rust_support_preempt_disable(void)
{
	preempt_disable();
}

__rust_support void rust_support_preempt_enable(void)
{
	preempt_enable();
}

__rust_support void rust_support_assert_preemption_disabled(void)
{
	lockdep_assert_preemption_disabled();
}

__rust_support void rust_support_read_lock(rwlock_t *lock)
{
	read_lock(lock);
}

__rust_support void rust_support_read_unlock(rwlock_t *lock)
{
	read_unlock(lock);
}

__rust_support void rust_support_assert_read_held(rwlock_t *lock)
{
	lockdep_assert_held_read(lock);
}

__rust_support void rust_support_cond_resched_read(rwlock_t *lock)
{
	cond_resched_rwlock_read(lock);
}

__rust_support void rust_support_write_lock(rwlock_t *lock)
{
	write_lock(lock);
}

__rust_support void rust_support_write_unlock(rwlock_t *lock)
{
	write_unlock(lock);
}

__rust_support void rust_support_assert_write_held(rwlock_t *lock)
{
	lockdep_assert_held_write(lock);
}

__rust_support void rust_support_cond_resched_write(rwlock_t *lock)
{
	cond_resched_rwlock_write(lock);
}

__rust_support bool rust_support_need_break(rwlock_t *lock)
{
	return need_resched() || rwlock_needbreak(lock);
}

__rust_support bool rust_support_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}
