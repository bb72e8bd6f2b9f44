#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: mmu_bench on the C MMU and on the Rust MMU, in one boot.
#   mmu-bench.sh RESULTS REPEATS MiB...
# RESULTS/lines gets lines "MMU MiB RUN OPERATION INSTRUCTIONS", in the order in
# which things ran; RESULTS/late lines "MMU MiB TDP_MMU OPERATION INSTRUCTIONS" of
# mmu_bench's second mode, at the first size.
set -euo pipefail

(($# >= 3)) || {
	echo "error: usage: mmu-bench.sh RESULTS REPEATS MiB..." >&2
	exit 1
}
results=$1 repeats=$2
shift 2

# Where a step waits for a kernel thread, that must not wait for the next tick.
echo full >/sys/kernel/debug/sched/preempt
# A real-time thread here spins for seconds at most, and must not be throttled.
echo -1 >/proc/sys/kernel/sched_rt_runtime_us

largest=0
for mib; do
	((mib <= largest)) || largest=$mib
done
echo $((largest / 2)) >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

: >"$results/lines"
: >"$results/late"
for mmu in c rust; do
	/lab/kvm-load $mmu
	for mib; do
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$mib" |
				sed "s/^/$mmu $mib $run /" >>"$results/lines"
		done
	done
	chrt -f 1 /build/bench/mmu_bench "$1" late | sed "s/^/$mmu $1 Y /" >>"$results/late"
	/lab/kvm-load $mmu tdp_mmu=N
	chrt -f 1 /build/bench/mmu_bench "$1" late | sed "s/^/$mmu $1 N /" >>"$results/late"
	/lab/kvm-unload
done
