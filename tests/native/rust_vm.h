/* SPDX-License-Identifier: GPL-2.0 */
/* For glue.c: the VM of the Rust MMU, as that sees it. */
#ifndef TESTS_RUST_VM_H
#define TESTS_RUST_VM_H

#include <linux/types.h>

struct kvm;

extern const unsigned long rust_kvm_bytes;

void rust_init_vm(struct kvm *kvm);
void rust_set_cpu_dirty_log_size(struct kvm *kvm, int entries);
void rust_set_dirty_bits(struct kvm *kvm, bool on);
void rust_set_manual_protect(struct kvm *kvm, u64 caps);

#endif /* TESTS_RUST_VM_H */
