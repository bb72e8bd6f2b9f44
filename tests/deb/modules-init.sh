#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the machine that the package of modules is installed on. The package meets this
# Debian's own dpkg, depmod and modprobe; the tests' programs are those of the lab's root,
# over 9p, in /mnt.
# shellcheck source=tests/deb/said.sh
. /sbin/check-said
share()
{
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$3" "$1" "$2"
}

in_lab()
{
	chroot /mnt /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

perf_test()
{
	in_lab /build/selftests/kvm/dirty_log_perf_test -v 1 -b 32M -i "$1" \
		-s anonymous_hugetlb_2mb
}

hw_check=/mnt/run/checkout/tests/hw-check

mount_all
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -a 9pnet_virtio 9p virtio_rng
share root /mnt cache=loose,ro
mount --rbind /proc /mnt/proc
mount --rbind /sys /mnt/sys
mount --rbind /dev /mnt/dev
for d in tmp run root; do
	mount -t tmpfs tmpfs /mnt/$d
done
mkdir /mnt/run/checkout
share checkout /mnt/run/checkout cache=loose,ro
mount --bind /mnt/run/checkout/build /mnt/build
share results /mnt/results cache=none
echo 100 >/proc/sys/vm/nr_hugepages

# 1. As Debian is.
say "release=$(uname -r)"
modprobe kvm_amd
say "stock_engine=$(engine)"
perf_test 2 >/mnt/results/stock.log 2>&1
say "stock_test=$?"
messages >/tmp/before

# 2. The package, while a VM runs.
# It has no vCPU, so that it takes no time from depmod. No function, whose shell would be
# killed in its place.
chroot /mnt /usr/bin/python3 -B -c 'import fcntl, time
kvm = open("/dev/kvm")
vm = fcntl.ioctl(kvm, 0xae01, 0)
print("vm", vm, flush=True)
time.sleep(3600)' >/tmp/vm 2>&1 &
vm=$!
while ! grep -q "^vm [0-9]" /tmp/vm && kill -0 $vm; do
	sleep 1
done
dpkg -i /root/modules.deb >/dev/console 2>&1
say "installed=$?"
say "while_vm_engine=$(engine)"
sh $hw_check/modules.sh /mnt/tmp/hw >/tmp/hw 2>&1
say "while_vm_hw_check=$?"
say "while_vm_hw_check_errors=$(grep -c '^error: VMs are running' /tmp/hw)"
kvm-rs-reload >/tmp/reload 2>&1
say "while_vm_reload=$?"
cat /tmp/reload >/dev/console
say "while_vm_errors=$(grep -c '^error: VMs are running' /tmp/reload)"
kill -0 $vm && say vm_lives=yes
say "after_refusal_engine=$(engine)"
kill $vm
wait $vm
sh $hw_check/modules.sh /mnt/tmp/hw >/tmp/hw 2>&1
say "stock_hw_check=$?"
say "stock_hw_check_errors=$(grep -c '^error: the MMU that is loaded is the one in C' /tmp/hw)"

# 3. Ours.
exchange
perf_test 2 >/mnt/results/rust.log 2>&1
say "test=$?"
# A scenario clears the kernel's buffer.
messages >/tmp/after
in_lab env RAM_MIB=64 python3 -B /run/checkout/tests/migrate/driver.py -s 40 -o completes \
	hugetlb /build/migrate/guest.rom /results/migrate >/mnt/results/migrate.log 2>&1
say "migration=$?"
cat /mnt/results/migrate.log >/dev/console

# 4. A little of 'make hw-check', which exchanges the modules, and says so in the log.
settings()
{
	cat /proc/sys/vm/nr_hugepages /sys/kernel/mm/lru_gen/enabled \
		/sys/kernel/mm/transparent_hugepage/enabled /sys/fs/cgroup/cgroup.subtree_control
}
settings >/tmp/settings
messages >>/tmp/after
said=$(dmesg | wc -l)
sh $hw_check/modules.sh /mnt/tmp/hw >/dev/console 2>&1
say "hw_check_machine=$?"
mkdir /mnt/results/hw-check
in_lab /run/checkout/tests/hw-check/check.sh /build /tmp/hw /results/hw-check 10 quick \
	>/mnt/results/hw-check.log 2>&1
say "hw_check=$?"
cat /mnt/results/hw-check.log >/dev/console
say "hw_check_report=$(grep -c '"commit"' /mnt/results/hw-check/report.json)"
settings | cmp -s - /tmp/settings && say hw_check_settings=kept
[ "$(dmesg | wc -l)" -ge "$said" ] && say hw_check_log=kept
dmesg >/mnt/results/dmesg.hw-check
dmesg -C
kvm-rs-reload >/dev/console 2>&1
say "hw_check_engine=$(engine)"

# 5. And back.
go_back
perf_test 2 >/mnt/results/back.log 2>&1
say "back_test=$?"

messages >>/tmp/after
say_messages /tmp/before /tmp/after
cp /tmp/new /mnt/results/dmesg.new
dmesg >/mnt/results/dmesg
finish
