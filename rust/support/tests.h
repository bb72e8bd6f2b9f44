/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of rust/support need of C. */
#ifndef _RUST_SUPPORT_TESTS_H
#define _RUST_SUPPORT_TESTS_H

#include <linux/spinlock.h>
#include <linux/types.h>

rwlock_t *rust_support_test_rwlock(void);
bool rust_support_test_rwlock_is_free(void);

#endif /* _RUST_SUPPORT_TESTS_H */
