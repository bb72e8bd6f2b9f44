#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make run': dirty_log_perf_test on the C MMU and on the Rust MMU, in one boot,
# side by side; once where the clock counts instructions, once on two real
# processors. Tables on stdout, raw logs and JSON in build/logs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# measure NAME TITLE TEST VCPUS BYTES BOOT-OPTIONS...
measure()
{
	local name=$1 title=$2 test=$3 vcpus=$4 bytes=$5 logs=$BUILD/logs/$1
	shift 5
	say "$title"
	rm -rf "${logs:?}"
	"$TOP/scripts/boot.sh" --name "$name" --mem 4G "$@" -- \
		"/lab/guest/bench.sh /build/selftests/kvm/$test /results $vcpus $bytes" ||
		die "the boot '$name' failed: $(grep -hs '^error: ' "$logs/output" ||
			echo "see above"); logs: $logs"
	"$TOP/scripts/in-root" python3 -B "$TOP/scripts/table.py" "$logs" "$title" \
		"$BUILD/logs/$name.json"
	echo
}

"$TOP/scripts/bench-link.sh"
measure run-exact \
	"exact: 1 vCPU, 128 MiB of 2 MiB hugetlb pages, 1 instruction = 1 ns (-icount)" \
	dirty_log_perf_exclusive 1 128M --icount --timeout 1200
measure run-smp \
	"2 vCPUs on 2 processors (MTTCG), 64 MiB of 2 MiB hugetlb pages each, wall time" \
	dirty_log_perf_test 2 64M --smp 2 --thread multi --timeout 600
say "JSON: $BUILD/logs/run-exact.json $BUILD/logs/run-smp.json"
