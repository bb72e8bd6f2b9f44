#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make run': dirty_log_perf_test on Debian's own kernel, on the kvm modules that it comes
# with and on ours, by faults and by D bits, in one boot, side by side; once where the clock counts instructions,
# once on two real processors. Builds what is missing for that, and nothing else. Tables on
# stdout, raw logs and JSON in build/logs. KERNEL= names another release.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=scripts/progress.sh
. "$TOP/scripts/progress.sh"

steps=5
# both FUNCTION COMMAND...: one beside the other; fails if one of them does.
both()
{
	local other status=0
	"$1" &
	other=$!
	"${@:2}" || status=$?
	wait "$other" || status=$?
	return "$status"
}

# How many runs of the test have ended, for those who wait.
runs_of()
{
	local logs given_up
	logs=$(find "$BUILD/logs/$1" -mindepth 2 -name '*.log' 2>/dev/null | wc -l)
	given_up=$(find "$BUILD/logs/$1" -mindepth 2 -name '*.failed-*.log' 2>/dev/null | wc -l)
	echo "$((logs - given_up)) of $2 runs of the test$( ((!given_up)) || echo ", $given_up given up")"
}

# measure NAME USUAL RUNS TITLE TEST VCPUS BYTES REPEATS BOOT-OPTIONS...
measure()
{
	local name=$1 usual=$2 runs=$3 title=$4 test=$5 vcpus=$6 bytes=$7 repeats=$8
	local logs=$BUILD/logs/$1 attempt why
	shift 8
	# The emulator can hang with two processors, on upstream's MMU as well.
	for attempt in 1 2; do
		rm -rf "${logs:?}"
		if progress "$title" "$usual" "$BUILD/logs/$name.boot" "runs_of $name $runs" \
			"$TOP/scripts/boot.sh" --kernel "$release" --name "$name" --mem 4G "$@" -- \
			"/lab/tests/dirty_log_perf/guest.sh /build/selftests/kvm/$test /results $vcpus $bytes $repeats"; then
			break
		fi
		number=$((number - 1))
		why=$(grep -hs -m1 '^error: ' "$logs/output" "$BUILD/logs/$name.boot") || why="error: see $logs"
		why=${why#error: }
		((attempt < 2)) || die "the boot '$name' failed twice: $why; logs: $logs"
		rm -rf "${logs:?}.failed"
		mv "$logs" "$logs.failed"
		say "the boot '$name' failed: $why; logs: $logs.failed; once more"
	done
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/dirty_log_perf/report.py" "$logs" \
		"$title; Linux $release, C: kvm.ko of the distribution" "$BUILD/logs/$name.json"
	echo
}

build_test()
{
	make -s -C "$TOP" build/stamp/run-selftests
}

mkdir -p "$BUILD/logs" "$STAMP"
export LAB_RUN=1
"$TOP/scripts/preflight.sh"
step "the toolchain root, Debian packages" 240 root "$TOP/scripts/root.sh"
step "the kernel's source and the series, and Debian's kernel" 60 source \
	both "$TOP/scripts/source.sh" "$TOP/scripts/package/debian-kernel.sh" ${KERNEL:+"$KERNEL"}
release=$("$TOP/scripts/package/debian-kernel.sh" ${KERNEL:+"$KERNEL"})
step "KVM's modules for $release, and the test" 220 "distro-$release" \
	both build_test make -s -C "$TOP" "build/stamp/distro-$release"

measure run-exact 100 12 \
	"exact: 1 vCPU, 64 MiB of 2 MiB hugetlb pages, 1 instruction = 1 ns (-icount)" \
	dirty_log_perf_exclusive 1 64M 1 --icount --timeout 1200
measure run-smp 180 48 \
	"2 vCPUs on 2 processors (MTTCG), 32 MiB of 2 MiB hugetlb pages each, wall time, median of 4" \
	dirty_log_perf_test 2 32M 4 --smp 2 --thread multi --timeout 900
say "JSON: $BUILD/logs/run-exact.json $BUILD/logs/run-smp.json"
