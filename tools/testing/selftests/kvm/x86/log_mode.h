/* SPDX-License-Identifier: GPL-2.0 */
/* The modes of the dirty bitmap, for tests that run in each. */
#ifndef SELFTEST_KVM_LOG_MODE_H
#define SELFTEST_KVM_LOG_MODE_H

#include <linux/kvm.h>

enum log_mode {
	/* Everything is protected on enabling, GET_DIRTY_LOG reprotects. */
	LOG_LEGACY,
	/* Everything is protected on enabling, CLEAR_DIRTY_LOG reprotects. */
	LOG_MANUAL,
	/* All pages start out dirty, CLEAR_DIRTY_LOG protects and reprotects. */
	LOG_INITIALLY_SET,
	NR_LOG_MODES,
};

static const struct {
	const char *name;
	/* For KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
	u64 caps;
} log_modes[NR_LOG_MODES] = {
	[LOG_LEGACY]		= { "legacy", 0 },
	[LOG_MANUAL]		= { "manual-protect", KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE },
	[LOG_INITIALLY_SET]	= { "initially-all-set",
				    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
				    KVM_DIRTY_LOG_INITIALLY_SET },
};

#endif /* SELFTEST_KVM_LOG_MODE_H */
