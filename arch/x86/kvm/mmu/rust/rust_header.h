/* SPDX-License-Identifier: GPL-2.0 */
/* Where the header of a TDP page table is, and so how it is freed. */
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

#endif /* __KVM_X86_MMU_RUST_HEADER_H */
