#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: dirty_log_perf_test with vCPUs in L2 (huge pages), and with
# shadow pages only (tdp_mmu=N, small pages), on the C MMU and on the Rust MMU.
#   scripts/boot.sh --icount -- /lab/tests/bench/nested.sh
# REPEATS (3) is how often each is run.
# Prints instructions for 2 MiB of memory, the least of some runs: the clock also
# counts what else the machine does meanwhile.
set -euo pipefail

test=${TEST:-/lab/selftests/kvm/dirty_log_perf_test}
kvm_load=${KVM_LOAD:-/lab/kvm-load}
repeats=${REPEATS:-3} mib=64
out=$(mktemp)

echo full >/sys/kernel/debug/sched/preempt
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
echo $((mib / 2)) >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

# bench MMU NAME ARGUMENTS...
bench()
{
	local mmu=$1 name=$2 n log
	shift 2
	for ((n = 0; n < repeats; n++)); do
		echo 3 >/proc/sys/vm/drop_caches
		log=$(timeout 120 "$test" -v 1 -b "${mib}M" -i 2 "$@" 2>&1) || {
			echo "error: $name failed on MMU $mmu: $(tail -n 3 <<<"$log")" >&2
			return 1
		}
		# "Iteration 2 get dirty log time: 0.001s" and the like
		awk -v mmu="$mmu" -v name="$name" -v regions=$((mib / 2)) '
			/time: / && !/average|dirty memory/ {
				step = $0
				sub(/ time: .*/, "", step)
				sub(/s$/, "", $NF)
				printf "%s\t%s\t%s\t%.0f\n", mmu, name, step, $NF * 1e9 / regions
			}' <<<"$log" >>"$out"
	done
}

for mmu in c rust; do
	"$kvm_load" $mmu
	bench $mmu "L2, legacy" -n -g -s anonymous_hugetlb_2mb
	bench $mmu "L2, initially-all-set" -n -s anonymous_hugetlb_2mb
	"$kvm_load" $mmu tdp_mmu=N
	bench $mmu "shadow, 4 KiB, legacy" -g -s anonymous
done

awk -F '\t' '
	{
		key = $2 "\t" $3
		if (!(key in seen)) { order[++n] = key; seen[key] = 1 }
		if (!(($1, key) in min) || $4 < min[$1, key]) min[$1, key] = $4
	}
	END {
		printf "%-24s %-34s %9s %9s %8s\n", "configuration", "step", "C", "Rust", "Rust / C"
		for (i = 1; i <= n; i++) {
			split(order[i], part, "\t")
			c = min["c", order[i]]
			rust = min["rust", order[i]]
			printf "%-24s %-34s %9d %9d %8.2f\n", part[1], part[2], c, rust, c ? rust / c : 0
		}
	}' "$out"
