#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: the migration scenarios on the C MMU, then on the Rust MMU. "rust-bits" in
# MMUS is Rust with kvm.dirty_log=dirty_bits.
#   run.sh DRIVER-OPTIONS BACKENDS [MIB]
# MIB is the memory of the guest (64). /results gets MMU/BACKEND.json and the logs of QEMU.
set -euo pipefail

options=$1 backends=$2 status=0
export RAM_MIB=${3:-64}
here=$(dirname "$(realpath "$0")")
# For two guests, and for what is plugged in or moved away.
echo $((RAM_MIB + 36)) >/proc/sys/vm/nr_hugepages
# Where a step waits for a kernel thread, that must not wait for the next tick.
echo full >/sys/kernel/debug/sched/preempt
for mmu in ${MMUS:-c rust}; do
	case $mmu in
	rust-bits) /lab/kvm-load rust dirty_log=dirty_bits ;;
	*)	/lab/kvm-load "$mmu" ;;
	esac
	for backend in $backends; do
		# shellcheck disable=SC2086 # options are words
		python3 -B "$here/driver.py" $options "$backend" \
			/build/migrate/guest.rom "/results/$mmu" \
			2>>"/results/$mmu-$backend.progress" || status=1
	done
	/lab/kvm-unload
done
exit $status
