// SPDX-License-Identifier: GPL-2.0
/*
 * What userspace is shown of the statistics that rust_lock_stats.c keeps: the binary statistics,
 * and mmu_lock_stats in debugfs. Nothing is locked: see the head of that file.
 */

#include "rust_bindings.h"

#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/kvm_mmu_lock.h>

const char * const kvm_rs_holders[KVM_MMU_NR_HOLDERS + 1] = {
	[KVM_MMU_ENABLE] = "enable",
	[KVM_MMU_CLEAR] = "clear",
	[KVM_MMU_GET] = "get",
	[KVM_MMU_DISABLE] = "disable",
	[KVM_MMU_RMAP] = "rmap",
	[KVM_MMU_NOTIFIER] = "notifier",
	[KVM_MMU_ZAP] = "zap",
	[KVM_MMU_NX_RECOVERY] = "nx_recovery",
	[KVM_MMU_FAULT] = "fault",
	[KVM_MMU_OTHER] = "other",
};

static const char * const causes[] = {
	[KVM_MMU_FAULT_MISSING] = "missing",
	[KVM_MMU_FAULT_LOGGED] = "logged",
	[KVM_MMU_FAULT_SPLIT] = "split",
	[KVM_MMU_FAULT_SPURIOUS] = "spurious",
	[KVM_MMU_FAULT_NX] = "nx",
	[KVM_MMU_FAULT_INVALIDATION] = "invalidation",
	[KVM_MMU_FAULT_OTHER] = "other",
};

static void add(struct kvm_mmu_times *sum, const struct kvm_mmu_times *from)
{
	/* Others count meanwhile. */
	struct kvm_mmu_times times = data_race(*from);
	int i;

	sum->ns += times.ns;
	sum->max_ns = max(sum->max_ns, times.max_ns);
	for (i = 0; i < KVM_MMU_HIST_COUNT; i++)
		sum->hist[i] += times.hist[i];
}

/* What all faults of the VM held. */
static void sum_holds_of_faults(struct kvm *kvm, struct kvm_mmu_times *sum)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	memset(sum, 0, sizeof(*sum));
	kvm_for_each_vcpu(i, vcpu, kvm)
		add(sum, &vcpu->rs_stat.mmu_hold);
}

/* Which statistics have no file of their own in debugfs: those in mmu_lock_stats. */
bool kvm_rs_skips_vm_stat(const struct kvm_stats_desc *desc)
{
	return desc->offset >= sizeof(struct kvm_vm_stat) +
			       offsetof(struct kvm_rs_vm_stat, mmu_write_wait);
}

bool kvm_rs_skips_vcpu_stat(const struct kvm_stats_desc *desc)
{
	return desc->offset >= sizeof(struct kvm_vcpu_stat);
}

ssize_t kvm_rs_vm_stats_read(struct kvm *kvm, char __user *buffer, size_t size, loff_t *pos)
{
	struct {
		struct kvm_vm_stat stat;
		struct kvm_rs_vm_stat rs_stat;
	} *stats __free(kfree) = kmalloc(sizeof(*stats), GFP_KERNEL);

	BUILD_BUG_ON(offsetof(typeof(*stats), rs_stat) != sizeof(stats->stat));
	if (!stats)
		return -ENOMEM;
	/* Others count meanwhile. As a value, data_race() would have it on the stack. */
	data_race(memcpy(&stats->stat, &kvm->stat, sizeof(stats->stat)));
	/* The same. */
	data_race(memcpy(&stats->rs_stat, &kvm->rs_stat, sizeof(stats->rs_stat)));
	sum_holds_of_faults(kvm, &stats->rs_stat.mmu_hold[KVM_MMU_FAULT]);
	return kvm_stats_read(kvm->stats_id, &kvm_vm_stats_header, &kvm_vm_stats_desc[0], stats,
			      sizeof(*stats), buffer, size, pos);
}

ssize_t kvm_rs_vcpu_stats_read(struct kvm_vcpu *vcpu, char __user *buffer, size_t size, loff_t *pos)
{
	struct {
		struct kvm_vcpu_stat stat;
		struct kvm_rs_vcpu_stat rs_stat;
	} *stats __free(kfree) = kmalloc(sizeof(*stats), GFP_KERNEL);

	BUILD_BUG_ON(offsetof(typeof(*stats), rs_stat) != sizeof(stats->stat));
	if (!stats)
		return -ENOMEM;
	/* The vCPU counts meanwhile. */
	data_race(memcpy(&stats->stat, &vcpu->stat, sizeof(stats->stat)));
	/* The same. */
	data_race(memcpy(&stats->rs_stat, &vcpu->rs_stat, sizeof(stats->rs_stat)));
	return kvm_stats_read(vcpu->stats_id, &kvm_vcpu_stats_header, &kvm_vcpu_stats_desc[0],
			      stats, sizeof(*stats), buffer, size, pos);
}

static void show_times(struct seq_file *m, const char *who, const char *what,
		       const struct kvm_mmu_times *from)
{
	/* Others count meanwhile. */
	struct kvm_mmu_times times = data_race(*from);
	u64 count = 0;
	int i;

	for (i = 0; i < KVM_MMU_HIST_COUNT; i++)
		count += times.hist[i];
	seq_printf(m, "%s %s count=%llu ns=%llu max_ns=%llu hist=", who, what, count, times.ns,
		   times.max_ns);
	for (i = 0; i < KVM_MMU_HIST_COUNT; i++) {
		if (times.hist[i])
			seq_printf(m, "%llu:%llu,", 1ULL << i, times.hist[i]);
	}
	seq_putc(m, '\n');
}

/*
 * A line for each statistic. In a histogram, "N:COUNT" says how many times were shorter than N ns
 * and not shorter than half of that; the last bucket has no upper bound.
 */
static int lock_stats_show(struct seq_file *m, void *v)
{
	struct kvm_mmu_times faults;
	struct kvm *kvm = m->private;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	char name[32];
	int n;

	seq_printf(m, "mmu_lock_stats %c\n", static_key_enabled(&kvm_mmu_lock_stats) ? 'Y' : 'N');
	show_times(m, "vm", "write_wait", &kvm->rs_stat.mmu_write_wait);
	for (n = 0; n < KVM_MMU_FAULT; n++) {
		snprintf(name, sizeof(name), "hold_%s", kvm_rs_holders[n]);
		show_times(m, "vm", name, &kvm->rs_stat.mmu_hold[n]);
	}
	sum_holds_of_faults(kvm, &faults);
	show_times(m, "vm", "hold_fault", &faults);

	kvm_for_each_vcpu(i, vcpu, kvm) {
		const struct kvm_rs_vcpu_stat *stat = &vcpu->rs_stat;
		char who[16];

		snprintf(who, sizeof(who), "vcpu%d", vcpu->vcpu_id);
		show_times(m, who, "lock_wait", &stat->mmu_lock_wait);
		seq_printf(m, "%s invalidate_retries count=%llu\n", who,
			   READ_ONCE(stat->mmu_invalidate_retries));
		for (n = 0; n <= KVM_MMU_OTHER; n++)
			seq_printf(m, "%s wait_for_%s ns=%llu\n", who, kvm_rs_holders[n],
				   READ_ONCE(stat->mmu_wait_for[n]));
		for (n = 0; n < KVM_MMU_NR_CAUSES; n++) {
			snprintf(name, sizeof(name), "fault_%s", causes[n]);
			show_times(m, who, name, &stat->mmu_fault[n]);
		}
	}
	return 0;
}

static int lock_stats_open(struct inode *inode, struct file *file)
{
	struct kvm *kvm = inode->i_private;
	int err;

	if (!kvm_get_kvm_safe(kvm))
		return -ENOENT;
	err = single_open(file, lock_stats_show, kvm);
	if (err)
		kvm_put_kvm(kvm);
	return err;
}

static int lock_stats_release(struct inode *inode, struct file *file)
{
	kvm_put_kvm(inode->i_private);
	return single_release(inode, file);
}

static const struct file_operations lock_stats_fops = {
	.owner = THIS_MODULE,
	.open = lock_stats_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = lock_stats_release,
};

void kvm_rs_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("mmu_lock_stats", 0444, kvm->debugfs_dentry, kvm, &lock_stats_fops);
}
