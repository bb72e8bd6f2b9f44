/* SPDX-License-Identifier: GPL-2.0 */
/* What rust/support needs of C that are macros or inline functions. */
#ifndef _RUST_SUPPORT_HELPERS_H
#define _RUST_SUPPORT_HELPERS_H

#include <linux/spinlock.h>
#include <linux/types.h>

/* preempt.rs */
void rust_support_preempt_disable(void);
void rust_support_preempt_enable(void);
void rust_support_assert_preemption_disabled(void);

/* rwlock.rs */
void rust_support_read_lock(rwlock_t *lock);
void rust_support_read_unlock(rwlock_t *lock);
void rust_support_assert_read_held(rwlock_t *lock);
void rust_support_cond_resched_read(rwlock_t *lock);
void rust_support_write_lock(rwlock_t *lock);
void rust_support_write_unlock(rwlock_t *lock);
void rust_support_assert_write_held(rwlock_t *lock);
void rust_support_cond_resched_write(rwlock_t *lock);
bool rust_support_need_break(rwlock_t *lock);

/* task.rs */
bool rust_support_fatal_signal_pending(void);

#endif /* _RUST_SUPPORT_HELPERS_H */
