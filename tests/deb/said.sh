# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# What PID 1 of the machines on which the package of modules is tried has in common: what it
# says on the console, and the kernel's messages.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
say()
{
	echo "check: $*" >/dev/console
}

engine()
{
	cat /sys/module/kvm/parameters/mmu_engine 2>/dev/null || echo none
}

mount_all()
{
	mountpoint -q /proc || mount -t proc proc /proc
	mountpoint -q /sys || mount -t sysfs sys /sys
	mountpoint -q /dev || mount -t devtmpfs dev /dev
	mount -t tmpfs tmpfs /tmp
	mount -t tmpfs tmpfs /run
}

# Exchanges the modules for those of the package.
exchange()
{
	kvm-rs-reload >/dev/console 2>&1
	say "reload=$?"
	say "engine=$(engine)"
	say "from=$(modinfo -F filename kvm | sed "s,.*/$(uname -r)/,,")"
}

# Removes the package, and exchanges the modules for those of the kernel.
go_back()
{
	dpkg -r "kvm-rs-modules-$(uname -r)" >/dev/console 2>&1
	say "removed=$?"
	sh /run/kvm-rs-reload >/dev/console 2>&1
	say "back_reload=$?"
	say "back_engine=$(engine)"
	say "left=$(find "/lib/modules/$(uname -r)/updates" -name '*.ko*' 2>/dev/null | wc -l)"
}

# The kernel's messages that are more than information, without their times.
messages()
{
	dmesg -l emerg,alert,crit,err,warn,notice | sed 's/^\[[^]]*\] //'
}

# say_messages BEFORE AFTER: how many are new, and no taint. What was said before may be said
# again.
say_messages()
{
	taints='loading out-of-tree module taints kernel|module verification failed: signature'
	grep -vxFf "$1" "$2" | sort -u >/tmp/new
	say "taints=$(grep -cE "$taints" /tmp/new)"
	grep -vE "$taints" /tmp/new >/tmp/other
	say "other_messages=$(wc -l </tmp/other)"
	cat /tmp/other >/dev/console
}

# The end: nothing comes back.
finish()
{
	say "done"
	sync
	mount -o remount,ro /
	echo b >/proc/sysrq-trigger
	sleep 60
}
