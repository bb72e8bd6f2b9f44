#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: brownout on the C MMU and on the Rust MMU, in one boot.
#   brownout.sh RESULTS MiB REPEATS
# RESULTS gets "lines", each an MMU and a line of the program's output. Status 3:
# the emulated processor misbehaved, see tests/brownout/brownout.c.
set -euo pipefail

(($# == 3)) || {
	echo "error: usage: brownout.sh RESULTS MiB REPEATS" >&2
	exit 1
}
results=$1 mib=$2 repeats=$3

echo $((mib / 2)) >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
for mmu in c rust; do
	/lab/kvm-load $mmu
	/build/bench/brownout "$mib" "$repeats" >"$results/$mmu.out" || {
		status=$?
		echo "error: brownout on the MMU '$mmu' ended with status $status" >&2
		exit $status
	}
	/lab/kvm-unload
	sed "s/^/$mmu /" "$results/$mmu.out"
done >"$results/lines"
