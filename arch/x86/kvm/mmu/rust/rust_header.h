/* SPDX-License-Identifier: GPL-2.0 */
/* The header of a TDP page table: where it is, and so how it is freed, and whose it was. */
#ifndef __KVM_X86_MMU_RUST_HEADER_H
#define __KVM_X86_MMU_RUST_HEADER_H

#include <linux/gfp.h>
#include <linux/mm.h>

#include "mmu/mmu_internal.h"
#include "rust_helpers.h"

/*
 * Frees @sp if it has neighbours in a page, that is if it is one of kvm_rs_alloc_headers(). False:
 * it is an object of mmu_page_header_cache, and the caller frees it.
 */
static inline bool kvm_rs_free_neighbour(struct kvm_mmu_page *sp)
{
	if (!sp->unsync_child_bitmap[KVM_RS_NEIGHBOURS])
		return false;

	/* Whoever frees it again gives the slab allocator what is none of its objects. */
	sp->unsync_child_bitmap[KVM_RS_NEIGHBOURS] = 0;
	__free_page(virt_to_page(sp));
	return true;
}

static inline struct kvm *kvm_rs_owner(struct kvm_mmu_page *sp)
{
	return (struct kvm *)sp->unsync_child_bitmap[KVM_RS_OWNER];
}

/*
 * Takes shadow pages, one at least, off those of their VMs that wait to be freed. It is called
 * before their headers are freed, and it is the last time that their VM is used: who destroys it
 * waits for all of them.
 */
static inline void kvm_rs_count_freed(struct kvm_mmu_page **pages, int nr)
{
	int i, next;

	/* Nearly always all are of one VM. */
	for (i = 0; i < nr; i = next) {
		struct kvm *kvm = kvm_rs_owner(pages[i]);

		for (next = i + 1; next < nr && kvm_rs_owner(pages[next]) == kvm; next++)
			;
		atomic64_sub(next - i, &kvm->rs_stat.mmu_unused_tables);
	}
}

#endif /* __KVM_X86_MMU_RUST_HEADER_H */
