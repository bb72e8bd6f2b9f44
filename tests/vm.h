/* SPDX-License-Identifier: GPL-2.0 */
/* A VM with one vCPU, for programs that use /dev/kvm directly. */
#ifndef TESTS_VM_H
#define TESTS_VM_H

#include <err.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/kvm.h>

/* Opens a VM, and returns it; and @vcpu and its @run.  Exits with @status if that fails. */
static inline int open_vm(int kvm, int *vcpu, struct kvm_run **run, int status)
{
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0)
		err(status, "KVM_CREATE_VM");
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul))
		err(status, "KVM_SET_TSS_ADDR");
	*vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (*vcpu < 0)
		err(status, "KVM_CREATE_VCPU");
	*run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
		    *vcpu, 0);
	if (*run == MAP_FAILED)
		err(status, "mmap of the vCPU");
	return vm;
}

/* Returns what the ioctl returns.  @bytes is 0 to delete @slot. */
static inline int set_memslot(int vm, int slot, unsigned long gpa, void *hva, size_t bytes,
			      int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

#endif /* TESTS_VM_H */
