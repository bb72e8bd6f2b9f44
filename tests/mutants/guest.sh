#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# In the guest: load the Rust MMU with a bug planted (scripts/modules.sh plant-BUG)
# and run what should make the kernel report it.  guest.sh BUG REPORT
# REPORT is a regular expression for what it should say.
# All that the kernel says is on the console, also if it does not survive the bug.
set -euo pipefail
dmesg -n 8
/lab/kvm-load "plant-$1"
echo 16 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
# Ends when there is that report: some bugs would make the test hang.
/lab/selftests/kvm/x86/mmu_race_test -t 20 &
for _ in $(seq 120); do
	sleep 1
	if grep -qE "$2" <<<"$(dmesg)" || ! kill -0 $! 2>/dev/null; then
		break
	fi
done
dmesg | grep -E 'BUG:|WARNING:' || :
