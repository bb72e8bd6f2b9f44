#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: mmu_bench on the C MMU and on the Rust MMU, in one boot.
#   guest.sh RESULTS REPEATS MiB...
# RESULTS/lines gets lines "MMU MiB RUN OPERATION INSTRUCTIONS", in the order in
# which things ran; RESULTS/late lines "MMU MiB TDP_MMU OPERATION INSTRUCTIONS" of
# mmu_bench's second mode, at the first size, and with pages of 1 GiB (AMD).
#   guest.sh -l RESULTS REPEATS MiB
# RESULTS/lines gets only what mmu_bench's third mode measures; MMU is c, rust, or rust-bits, which
# is Rust with kvm.dirty_log=dirty_bits.
#   guest.sh -s RESULTS REPEATS MiB
# RESULTS/lines gets only what mmu_bench's fourth mode measures; MMU is rust-stats-N or -Y, which is
# Rust with that kvm.mmu_lock_stats.
set -euo pipefail

only=''
if [[ ${1:-} = -[ls] ]]; then
	only=$1
	shift
fi
(($# >= 3)) || {
	echo "error: usage: guest.sh RESULTS REPEATS MiB..." >&2
	exit 1
}
results=$1 repeats=$2
shift 2

# Where a step waits for a kernel thread, that must not wait for the next tick.
echo full >/sys/kernel/debug/sched/preempt
# A real-time thread here spins for seconds at most, and must not be throttled; nor must the
# scheduler's servers run other threads before it because it has starved them.
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
for f in /sys/kernel/debug/sched/{fair,ext}_server/cpu*/runtime; do
	[[ ! -e $f ]] || echo 0 >"$f"
done

# Where the functions are that are measured by the call; the plugin reads it.
functions()
{
	local -A names=([c]='__rmap_add pte_list_add pte_list_remove tdp_mmu_free_sp_rcu_callback'
			[rust]='kvm_rs_rmap_add kvm_rs_pte_list_add kvm_rs_pte_list_remove
				_R.*support3rcu8callback.*RemovedSp.* free_unused_pages')
	local name
	for name in ${names[$1]}; do
		awk -v name="^$name\$" '$3 ~ name && $4 == "[kvm]" { print $1; n++ }
			END { exit n != 1 }' /proc/kallsyms || {
			echo "error: MMU $1 has no $name" >&2
			return 1
		}
	done
}

largest=0
for mib; do
	((mib <= largest)) || largest=$mib
done
echo $((largest / 2)) >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

stats()
{
	local on run
	for on in N Y; do
		/lab/kvm-load rust mmu_lock_stats=$on
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$1" stats |
				sed "s/^/rust-stats-$on $1 $run /" >>"$results/lines"
		done
	done
}

if [[ $only = -s ]]; then
	: >"$results/late"
	/lab/kvm-load rust
	functions rust >"$results/functions"
	stats "$1"
	/lab/kvm-unload
	exit
fi

if [[ $only = -l ]]; then
	: >"$results/late"
	for mmu in c rust rust-bits; do
		case $mmu in
		rust-bits) /lab/kvm-load rust dirty_log=dirty_bits ;;
		*) /lab/kvm-load "$mmu" ;;
		esac
		functions "${mmu%-bits}" >"$results/functions"
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$1" log |
				sed "s/^/$mmu $1 $run /" >>"$results/lines"
		done
		/lab/kvm-unload
	done
	exit
fi

: >"$results/lines"
: >"$results/late"
# As long as there is no memory cgroup, nothing looks for what is to be uncharged.
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/bench

for mmu in c rust; do
	/lab/kvm-load $mmu
	functions $mmu >"$results/functions"
	for mib; do
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$mib" |
				sed "s/^/$mmu $mib $run /" >>"$results/lines"
		done
	done
	for ((run = 1; run <= repeats; run++)); do
		chrt -f 1 /build/bench/mmu_bench "$1" free |
			sed "s/^/$mmu $1 $run /; s/free-recovered/free-uncharged/" >>"$results/lines"
	done
	# Page tables are charged to the memory cgroup of the VMM, and uncharged when they are freed.
	(
		echo $BASHPID >/sys/fs/cgroup/bench/cgroup.procs
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$1" free |
				sed "s/^/$mmu $1 $run /" >>"$results/lines"
		done
	)
	if [[ $mmu = rust && -d /sys/module/kvm_amd ]]; then
		stats "$1"
		/lab/kvm-load rust fault_around_pages=16
		for ((run = 1; run <= repeats; run++)); do
			chrt -f 1 /build/bench/mmu_bench "$1" stats |
				sed "s/^/rust-around-16 $1 $run /" >>"$results/lines"
		done
		/lab/kvm-load rust
	fi
	# On Bochs' slow clock the thread that wakes up would take most of the processor.
	if [[ -d /sys/module/kvm_amd ]]; then
		chrt -f 1 /build/bench/mmu_bench "$1" late |
			sed "s/^/$mmu $1 Y /" >>"$results/late"
		echo 1 >/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
		chrt -f 1 /build/bench/mmu_bench 1024 late-1g |
			sed "s/^/$mmu 1024 Y /" >>"$results/late"
		echo 0 >/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
		/lab/kvm-load $mmu tdp_mmu=N
		chrt -f 1 /build/bench/mmu_bench "$1" late |
			sed "s/^/$mmu $1 N /" >>"$results/late"
	elif ! grep -q Y /sys/module/kvm_intel/parameters/pml; then
		echo "error: kvm_intel has no PML" >&2
		exit 1
	fi
	/lab/kvm-unload
done
