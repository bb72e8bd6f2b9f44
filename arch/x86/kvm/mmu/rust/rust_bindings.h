/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: KVM's MMU headers and the helpers' declarations. */
#ifndef __KVM_X86_MMU_RUST_BINDINGS_H
#define __KVM_X86_MMU_RUST_BINDINGS_H

#include <linux/kvm_host.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"
#include "rust_helpers.h"
#include "../../../../../rust/support/helpers.h"
#include "rust_rmap.h"
#ifdef CONFIG_KVM_RUST_MMU_KUNIT_TEST
#include "../../../../../rust/support/tests.h"
#include "rust_oracle.h"
#endif

#endif /* __KVM_X86_MMU_RUST_BINDINGS_H */
