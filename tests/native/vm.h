/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files share that are compiled as a part of the kernel.
 *
 * struct kvm of the Rust MMU's objects has other offsets than that of the C MMU's
 * (see rust_vm.c), so it is used by pointer only, and of its fields beyond the
 * first only by code that is compiled for the one or the other.
 */
#ifndef TESTS_NATIVE_VM_H
#define TESTS_NATIVE_VM_H

#include <linux/kvm_host.h>

#include "native.h"

#define HUGE_PAGES_PER_GIB	512ul
#define CHILDREN		512ul
/* Slots begin there in the guest, and their memory there in the host. */
#define FIRST_GFN		BIT(20)
#define FIRST_PFN		BIT(20)

/* In the Rust MMU's objects it has statistics at its end; the rest is where C has it. */
union vcpu_room {
	struct kvm_vcpu vcpu;
	u8 bytes[SZ_16K];
};

static_assert(sizeof(union vcpu_room) == SZ_16K);

struct vm {
	struct kvm *kvm;
	union vcpu_room vcpus[NATIVE_VCPUS];
	/*
	 * As in KVM, a memslot that is in use does not change. One of the two is what
	 * faults see, the other takes its place when the flags change.
	 */
	struct kvm_memory_slot *slot, slots[2];
};

/* glue.c */
extern struct vm vms[NATIVE_MMUS];

static inline u64 *table_below(u64 spte)
{
	return __va(spte & GENMASK_ULL(51, 12));
}

/* kernel.c */
void kernel_init(const struct native_memory *memory, unsigned long huge_pages);
void *kernel_get_table(gfp_t gfp);
void kernel_put_table(void *table);
void kernel_topup(struct kvm_vcpu *vcpu);
/* Tables and headers in use, those in vCPUs' caches not counted. */
unsigned long kernel_tables_used(void);
unsigned long kernel_headers_used(void);
long kernel_pagetable_pages(void);
/* Waits until each other thread has been in a quiescent state, as SRCU and RCU do. */
void kernel_synchronize(void);
/* Whether a thread holds something that it should not when it is between operations. */
const char *kernel_check(void);
/* Whether something may still wait for a grace period. */
bool kernel_has_retired(void);

/* guest.c */
void guest_init(const struct native_memory *memory);

/* parties.c, which is compiled for either MMU. */
int c_party_fault(struct vm *vm, struct kvm_vcpu *vcpu, gfn_t gfn, bool present);
int r_party_fault(struct vm *vm, struct kvm_vcpu *vcpu, gfn_t gfn, bool present);
void c_party_notifier(struct vm *vm, gfn_t start, gfn_t end);
void r_party_notifier(struct vm *vm, gfn_t start, gfn_t end);

#endif /* TESTS_NATIVE_VM_H */
