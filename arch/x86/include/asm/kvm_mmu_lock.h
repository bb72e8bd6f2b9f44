/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Taking mmu_lock such that it is known who holds it, and who waits. Without
 * CONFIG_KVM_RUST_MMU these are the operations of the lock.
 */
#ifndef _ASM_X86_KVM_MMU_LOCK_H
#define _ASM_X86_KVM_MMU_LOCK_H

#include <linux/jump_label.h>
#include <linux/kvm_host.h>
#include <linux/rwlock.h>
#include <asm/kvm_rust_mmu.h>

struct kvm_page_fault;

/* kvm.mmu_lock_stats */
DECLARE_STATIC_KEY_FALSE(kvm_mmu_lock_stats);
#define kvm_mmu_lock_is_timed() \
	(IS_ENABLED(CONFIG_KVM_RUST_MMU) && static_branch_unlikely(&kvm_mmu_lock_stats))

/* What the statistics call each holder. */
extern const char * const kvm_rs_holders[KVM_MMU_NR_HOLDERS + 1];

/* rust_lock_stats.c. But for the first, only called while the key is on. */
void kvm_rs_fault_read_lock(struct kvm_vcpu *vcpu);
void kvm_rs_fault_write_lock(struct kvm_vcpu *vcpu);
void kvm_rs_fault_end_read(struct kvm_vcpu *vcpu);
void kvm_rs_fault_end_write(struct kvm_vcpu *vcpu);
int kvm_rs_timed_page_fault(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault);
void kvm_rs_timed_read_lock(struct kvm *kvm, enum kvm_mmu_holder holder);
void kvm_rs_timed_write_lock(struct kvm *kvm, enum kvm_mmu_holder holder);
void kvm_rs_end_read(struct kvm *kvm, enum kvm_mmu_holder holder);
void kvm_rs_end_write(struct kvm *kvm);
int kvm_rs_timed_yield_read(struct kvm *kvm, enum kvm_mmu_holder holder);
int kvm_rs_timed_yield_write(struct kvm *kvm);

/* Whether a reader would have to wait if it came now. */
static __always_inline bool kvm_mmu_lock_is_busy(struct kvm *kvm)
{
#if defined(CONFIG_KVM_RUST_MMU) && defined(CONFIG_QUEUED_RWLOCKS) && \
	defined(CONFIG_SMP) && !defined(CONFIG_PREEMPT_RT)
	return unlikely(atomic_read(&kvm->mmu_lock.raw_lock.cnts) & _QW_WMASK);
#else
	return false;
#endif
}

/*
 * For a fault. How long it waits is measured, always, unless a writer comes between the look at the
 * lock and its acquisition. With the key on nothing is missed.
 */
static __always_inline void kvm_mmu_fault_read_lock(struct kvm_vcpu *vcpu)
{
	if (kvm_mmu_lock_is_timed() || kvm_mmu_lock_is_busy(vcpu->kvm))
		kvm_rs_fault_read_lock(vcpu);
	else
		read_lock(&vcpu->kvm->mmu_lock);
}

static __always_inline void kvm_mmu_fault_read_unlock(struct kvm_vcpu *vcpu)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_fault_end_read(vcpu);
	read_unlock(&vcpu->kvm->mmu_lock);
}

/* For a fault of the shadow MMU, whose wait is measured with the key on only. */
static __always_inline void kvm_mmu_fault_write_lock(struct kvm_vcpu *vcpu)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_fault_write_lock(vcpu);
	else
		write_lock(&vcpu->kvm->mmu_lock);
}

static __always_inline void kvm_mmu_fault_write_unlock(struct kvm_vcpu *vcpu)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_fault_end_write(vcpu);
	write_unlock(&vcpu->kvm->mmu_lock);
}

static __always_inline void kvm_mmu_read_lock(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_timed_read_lock(kvm, holder);
	else
		read_lock(&kvm->mmu_lock);
}

static __always_inline void kvm_mmu_read_unlock(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_end_read(kvm, holder);
	read_unlock(&kvm->mmu_lock);
}

static __always_inline void kvm_mmu_write_lock(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_timed_write_lock(kvm, holder);
	else
		write_lock(&kvm->mmu_lock);
}

static __always_inline void kvm_mmu_write_unlock(struct kvm *kvm)
{
	if (kvm_mmu_lock_is_timed())
		kvm_rs_end_write(kvm);
	write_unlock(&kvm->mmu_lock);
}

/* Return whether the lock was dropped. */
static __always_inline int kvm_mmu_yield_read(struct kvm *kvm, enum kvm_mmu_holder holder)
{
	if (kvm_mmu_lock_is_timed())
		return kvm_rs_timed_yield_read(kvm, holder);
	return cond_resched_rwlock_read(&kvm->mmu_lock);
}

static __always_inline int kvm_mmu_yield_write(struct kvm *kvm)
{
	if (kvm_mmu_lock_is_timed())
		return kvm_rs_timed_yield_write(kvm);
	return cond_resched_rwlock_write(&kvm->mmu_lock);
}

/* Counts a fault that is retried because an invalidation is pending. */
static __always_inline bool kvm_mmu_count_retry(struct kvm_vcpu *vcpu, bool retry)
{
#ifdef CONFIG_KVM_RUST_MMU
	if (unlikely(retry))
		vcpu->rs_stat.mmu_invalidate_retries++;
#endif
	return retry;
}

#endif /* _ASM_X86_KVM_MMU_LOCK_H */
