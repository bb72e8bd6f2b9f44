#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make bench': what each ioctl on the page tables costs, C | Rust, in one boot:
# instructions, atomic read-modify-writes, and how mmu_lock is held.
#   run.sh [NAME [REPEATS [MiB]...]]      (bench 3 64 256 1024)
# Tables on stdout; build/logs/NAME has JSON, plot and raw lines.
#   run.sh -l [NAME [REPEATS [MiB]]]      only the ways to log writes (bench-log 3 64)
#   run.sh -s [NAME [REPEATS [MiB]]]      only what kvm.mmu_lock_stats costs (bench-stats 3 64)
# VENDOR=intel: on EPT with PML, in Bochs, where an instruction takes 20 ns. There is no
# plugin, so only instructions are counted, and those of interrupts are among them
# (bench-intel 3 64).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

only=''
case ${1:-} in
-l|-s)
	only=$1
	shift
	[[ $only = -l ]] && default='bench-log' || default='bench-stats'
	set -- "${1:-$default}" "${2:-3}" "${3:-64}" ;;
esac
name=${1:-bench} repeats=${2:-3} sizes="${*:3}" bench=$BUILD/bench
sizes=${sizes:-64 256 1024} logs=$BUILD/logs/$name
mkdir -p "$bench"
cc=("$TOP/scripts/in-root" clang-19 -O2 -Wall -Wextra -Werror)
"${cc[@]}" -static -pthread -isystem "$BUILD/selftests/headers/usr/include" \
	-o "$bench/mmu_bench" "$TOP/tests/bench/mmu_bench.c"
"${cc[@]}" -fPIC -shared -fvisibility=hidden \
	-o "$bench/libcount.so" "$TOP/tests/bench/count.c"

case ${VENDOR:-amd} in
amd) ;;
intel)
	name=${1:-bench-intel} sizes="${*:3}"
	sizes=${sizes:-64} logs=$BUILD/logs/$name
	say "bench: $sizes MiB, $repeats times each, C and Rust, Intel (log: $logs)"
	rm -rf "${logs:?}"
	"$TOP/scripts/bochs.sh" --name "$name" --cpu skylake --timeout 1800 \
		--file bench/mmu_bench -- "
		/lab/tests/bench/guest.sh /results $repeats $sizes && cat /results/lines"
	mv "$logs/output" "$logs/lines"
	echo 20 >"$logs/scale"
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/bench/report.py" "$logs"
	say "JSON: $logs/bench.json"
	exit ;;
*)	die "bench/run.sh: unknown vendor '$VENDOR'; use amd or intel" ;;
esac

# The plugin knows the kernel's functions by their addresses, which stay: nokaslr.
plugin=$bench/libcount.so,out=$bench/counts.$$,functions=$logs/functions
for f in _raw_{read,write}_{lock,unlock} __switch_to; do
	addr=$(awk -v f="$f" '$3 == f { print $1 }' "$BUILD/linux/System.map")
	[[ $addr ]] || die "the kernel has no $f; is it inlined? see configs/lab.config"
	plugin+=,$f=$addr
done

say "bench: $sizes MiB, $repeats times each, C and Rust (log: $logs)"
rm -rf "${logs:?}"
"$TOP/scripts/boot.sh" --name "$name" --icount --mem 6G --append "nokaslr hugetlb_cma=1G" \
	--timeout 1800 \
	--plugin "$plugin" -- "/lab/tests/bench/guest.sh $only /results $repeats $sizes"
mv "$bench/counts.$$" "$logs/counts"
"$TOP/scripts/in-root" python3 -B "$TOP/tests/bench/report.py" "$logs"
say "JSON and plot: $logs/bench.json $logs/bench.svg"
