#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the machine that the package is installed on: says what runs there,
# and removes the package that check.remove= names on the command line.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
say()
{
	echo "check: $*" >/dev/console
}

mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp

say "release=$(uname -r)"
modprobe kvm_amd
engine=/sys/module/kvm/parameters/mmu_engine
[ -d /sys/module/kvm ] || say "no kvm"
if [ -e $engine ]; then
	say "mmu_engine=$(cat $engine)"
elif [ -d /sys/module/kvm ]; then
	say mmu_engine=none
fi
[ ! -c /dev/kvm ] || say dev_kvm=yes

remove=$(sed -n 's/.*check\.remove=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ "$remove" ]; then
	dpkg -r "$remove" >/dev/console 2>&1
	say "removed=$?"
else
	# By its path: it reads itself.
	/sbin/huge_page_recovery_test -i 1 -n 4 -s thp >/dev/console 2>&1
	say "selftest=$?"
	say "splats=$(dmesg | grep -cE 'WARNING:|BUG:|Oops|Call Trace:')"
fi
say "done"
sync
mount -o remount,ro /
echo b >/proc/sysrq-trigger
sleep 60
