#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: dirty_log_perf_test on the C MMU, on the Rust MMU, and on that with D bits
# in place of faults (rust-bits) by turns, so that what changes with time concerns all.
#   guest.sh TEST LOGDIR VCPUS BYTES REPEATS
# TEST is the test's binary, BYTES the memory of each vCPU. LOGDIR gets
# SIDE/CONFIG.N.log, N up to REPEATS, and SIDE/CONFIG.identity, what the loaded
# module says it is.
set -euo pipefail

(($# == 5)) || {
	echo "error: usage: guest.sh TEST LOGDIR VCPUS BYTES REPEATS" >&2
	exit 1
}
test=$1 logdir=$2 vcpus=$3 bytes=$4 repeats=$5
kvm_load=${KVM_LOAD:-/lab/kvm-load}
kvm_unload=${KVM_UNLOAD:-/lab/kvm-unload}
params=/sys/module/kvm/parameters
iterations=2

# Where a step waits for a kernel thread, that must not wait for the next tick.
echo full >/sys/kernel/debug/sched/preempt
# A real-time thread here spins for seconds at most, and must not be throttled.
echo -1 >/proc/sys/kernel/sched_rt_runtime_us

identity()
{
	echo "engine=$(cat $params/mmu_engine 2>/dev/null || echo c)"
	# The build id tells two modules apart, whatever they say.
	echo "build=$(sha256sum </sys/module/kvm/notes/.note.gnu.build-id | cut -c1-16)"
	echo "eager_page_split=$(<$params/eager_page_split)"
	echo "tdp_mmu=$(<$params/tdp_mmu)"
	[[ ! -e $params/dirty_log ]] || echo "dirty_log=$(<$params/dirty_log)"
}

# On two processors the emulator sometimes ends a vCPU for no reason (SHUTDOWN), or forgets
# to wake one up, on upstream's MMU as well. So try again, and leave the evidence. What takes
# ten times as long as the longest run until then hangs.
limit=120
bench_once()
{
	local name=$1 attempt status began
	shift
	for attempt in 1 2 3; do
		# The first touch of memory is not what is compared.
		echo 3 >/proc/sys/vm/drop_caches
		status=0
		began=$SECONDS
		timeout "$limit" "$test" -v "$vcpus" -b "$bytes" -i $iterations \
			-s anonymous_hugetlb_2mb "$@" >"$dir/$name.log" 2>&1 </dev/null ||
			status=$?
		if ((status == 0)); then
			ran "$((SECONDS - began))"
			return 0
		fi
		echo "exit status $status" >>"$dir/$name.log"
		mv "$dir/$name.log" "$dir/$name.failed-$attempt.log"
	done
	echo "error: $name failed on $side, $attempt times; last: exit status $status" >&2
	return 1
}

# ran SECONDS: a run has ended after so long.
longest=2
ran()
{
	(($1 <= longest)) || longest=$1
	limit=$((longest * 10 < 120 ? longest * 10 : 120))
}

bench()
{
	local config=$1
	shift
	identity >"$dir/$config.identity"
	bench_once "$config.$n" "$@"
}

pages=$((vcpus * ${bytes%M} / 2))
echo $pages >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
for ((n = 1; n <= repeats; n++)); do
	# Take turns in being first.
	case $((n % 3)) in
	1) sides=(c rust rust-bits) ;;
	2) sides=(rust rust-bits c) ;;
	0) sides=(rust-bits c rust) ;;
	esac
	for side in "${sides[@]}"; do
		dir=$logdir/$side
		mkdir -p "$dir"
		"$kvm_load" "${side%-bits}"
		[[ $side != *-bits ]] || echo dirty_bits >$params/dirty_log
		for eager in Y N; do
			echo $eager >$params/eager_page_split
			suffix=''
			[[ $eager = Y ]] || suffix=-noeager
			bench legacy$suffix -g
			bench default$suffix
		done
		"$kvm_unload"
	done
done
dmesg >"$logdir/dmesg.log"
