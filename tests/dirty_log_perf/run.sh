#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make run': dirty_log_perf_test on the C MMU and on the Rust MMU, in one boot,
# side by side; once where the clock counts instructions, once on two real
# processors. Tables on stdout, raw logs and JSON in build/logs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

# measure NAME TITLE TEST VCPUS BYTES REPEATS BOOT-OPTIONS...
measure()
{
	local name=$1 title=$2 test=$3 vcpus=$4 bytes=$5 repeats=$6 logs=$BUILD/logs/$1
	local attempt why
	shift 6
	say "$title"
	# The emulator can hang with two processors, on upstream's MMU as well.
	for attempt in 1 2; do
		rm -rf "${logs:?}"
		if "$TOP/scripts/boot.sh" --name "$name" --mem 4G "$@" -- \
			"/lab/tests/dirty_log_perf/guest.sh /build/selftests/kvm/$test /results $vcpus $bytes $repeats"; then
			break
		fi
		why=$(grep -hs '^error: ' "$logs/output" || echo "see above")
		((attempt < 2)) || die "the boot '$name' failed twice: $why; logs: $logs"
		rm -rf "${logs:?}.failed"
		mv "$logs" "$logs.failed"
		say "the boot '$name' failed: $why; logs: $logs.failed; once more"
	done
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/dirty_log_perf/report.py" "$logs" "$title" \
		"$BUILD/logs/$name.json"
	echo
}

"$TOP/tests/dirty_log_perf/link.sh"
measure run-exact \
	"exact: 1 vCPU, 128 MiB of 2 MiB hugetlb pages, 1 instruction = 1 ns (-icount)" \
	dirty_log_perf_exclusive 1 128M 1 --icount --timeout 1200
measure run-smp \
	"2 vCPUs on 2 processors (MTTCG), 64 MiB of 2 MiB hugetlb pages each, wall time, median of 3" \
	dirty_log_perf_test 2 64M 3 --smp 2 --thread multi --timeout 900
say "JSON: $BUILD/logs/run-exact.json $BUILD/logs/run-smp.json"
