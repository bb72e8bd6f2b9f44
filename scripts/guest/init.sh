#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Second half of the guest's PID 1: mounts what tests expect, runs the command
# that boot.sh left in the results share, and leaves its status and dmesg there.
#   /lab        kvm-load, kvm-unload, selftests/kvm, tests/
#   /build      the checkout's build/, read-only
#   /results    this run's directory in build/logs, writable
p9()
{
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$3" "$1" "$2"
}

p9 results /results cache=none || exit 1
# shellcheck source=scripts/guest/mounts.sh
. /run/checkout/scripts/guest/mounts.sh
mount --bind /run/checkout/build /build
ln -s /run/checkout/scripts/guest/kvm-load /run/checkout/scripts/guest/kvm-unload /lab/
ln -s /run/checkout/tests /lab/tests
mkdir /lab/selftests
ln -s /build/selftests/kvm /lab/selftests/kvm
ip link set lo up
cd /root || exit 1
# The kernel's messages are the serial console's, not the command's.
dmesg -n 4

# shellcheck source=/dev/null
. /results/env
touch /results/booted
if [[ -e /results/interactive ]]; then
	echo 'The fork is up. kvm is loaded below; leave with "exit" or ctrl-d.'
	setsid -c bash -c "$(</results/command)" <>/dev/console >&0 2>&1
else
	# Raw, so that a newline stays one byte.
	stty -F /dev/ttyS1 raw -echo
	bash -c "$(</results/command)" </dev/null >/dev/ttyS1 2>&1
fi
status=$?
dmesg >/results/dmesg
echo "$status" >/results/status.new
mv /results/status.new /results/status
sync
echo b >/proc/sysrq-trigger
sleep 60
