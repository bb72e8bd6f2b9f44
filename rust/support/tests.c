// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of tests.h. Included by the C part of the tests of the crate that includes
 * rust/support; the lock is here because lockdep wants static storage for its class.
 */
#include "tests.h"

static DEFINE_RWLOCK(test_rwlock);

rwlock_t *rust_support_test_rwlock(void)
{
	return &test_rwlock;
}

/* Whether nobody holds it, in either mode. */
bool rust_support_test_rwlock_is_free(void)
{
	if (!write_trylock(&test_rwlock))
		return false;
	write_unlock(&test_rwlock);
	return true;
}
