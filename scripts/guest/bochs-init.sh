#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the guest in Bochs: what init.sh is in QEMU. All output goes to
# the serial line, where bochs.sh looks for the marks. Powers off at the end.
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
# Where there is a tool of its own, it stays.
for f in $(/bin/busybox --list); do
	[ -e "/bin/$f" ] || /bin/busybox ln -s busybox "/bin/$f"
done
export PATH=/lab:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# shellcheck source=scripts/guest/mounts.sh
. /mounts.sh
# The kernel's messages would mix with the command's output.
dmesg -n 1
# shellcheck source=/dev/null
. /env
stty -F /dev/ttyS0 115200
exec </dev/null >/dev/ttyS0 2>&1
echo
echo "LAB: begin"
bash -c "$(cat /command)"
echo "LAB: end $?"
# What the serial line still has to send would be lost; stty waits for it.
stty -F /dev/ttyS0 raw
sleep 1
poweroff -f
