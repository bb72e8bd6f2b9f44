# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# What both guests' PID 1 mount, in QEMU and in Bochs, once there are /proc, /sys and /dev.
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
for f in /proc/self/fd:fd fd/0:stdin fd/1:stdout fd/2:stderr; do
	ln -sfn "${f%%:*}" "/dev/${f##*:}"
done
