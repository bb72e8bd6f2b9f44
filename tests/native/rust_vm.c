// SPDX-License-Identifier: GPL-2.0
/*
 * In the Rust MMU's objects struct kvm has more statistics than in those of the C
 * MMU, so the fields behind them have other offsets. This file is compiled with
 * CONFIG_KVM_RUST_MMU, and sets what glue.c cannot.
 */
#include <linux/kvm_host.h>
#include <linux/slab.h>

#include "mmu/mmu_internal.h"
#include "mmu/rust/rust_header.h"
#include "mmu/rust/rust_helpers.h"

#include "rust_vm.h"

const unsigned long rust_kvm_bytes = sizeof(struct kvm);

/* Statistics of mmu_lock are off. */
void kvm_rs_choose_clock(void)
{
}

/* CLEAR by several threads concerns the callers of the MMU only. */
void kvm_rs_init_dirty_log(struct kvm *kvm)
{
}

/* There are no kworkers: what RCU calls back frees. */
void kvm_rs_init_free(void)
{
}

void kvm_rs_free_pages(struct kvm_mmu_page **pages, int nr)
{
	kvm_rs_count_freed(pages, nr);
	for (int i = 0; i < nr; i++) {
		free_page((unsigned long)pages[i]->spt);
		if (!kvm_rs_free_neighbour(pages[i]))
			kmem_cache_free(NULL, pages[i]);
	}
}

/* There are no shadow pages. The VM is in use. */
void rust_init_vm(struct kvm *kvm)
{
	refcount_set(&kvm->users_count, 1);
	INIT_LIST_HEAD(&kvm->arch.active_mmu_pages);
}

void rust_set_cpu_dirty_log_size(struct kvm *kvm, int entries)
{
	kvm->arch.cpu_dirty_log_size = entries;
}

void rust_set_dirty_bits(struct kvm *kvm, bool on)
{
	kvm->rs_dirty_log.dirty_bits = on;
}

void rust_set_manual_protect(struct kvm *kvm, u64 caps)
{
	kvm->manual_dirty_log_protect = caps;
}
