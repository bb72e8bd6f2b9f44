/* SPDX-License-Identifier: GPL-2.0 */
/* What virt/kvm calls of the MMU in Rust: rust_shim.c has the comments. */
#ifndef _ASM_X86_KVM_RUST_MMU_H
#define _ASM_X86_KVM_RUST_MMU_H

#include <linux/types.h>

struct kvm;
struct kvm_memory_slot;

int kvm_rs_get_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			 unsigned long *buffer);
int kvm_rs_clear_dirty_log(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   u64 first_page, unsigned long words, unsigned long *buffer);

#endif /* _ASM_X86_KVM_RUST_MMU_H */
