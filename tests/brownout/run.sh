#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make brownout': how long a vCPU's faults in one memslot take, while dirty
# logging is enabled, cleared and disabled in another; C | Rust, in one boot.
#   brownout.sh [--icount] [NAME [MiB [REPEATS]]]      (brownout 1024 5)
# Two processors that run at the same time need two of the machine's cores, and
# what else runs there shows in the longest times. With --icount one thread runs
# both in turn, and an instruction is a nanosecond: nothing else shows, but a
# processor also waits for the turn of the other.
# Table on stdout; build/logs/NAME has JSON and raw lines.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

time=(--thread multi) limit=170
if [[ ${1:-} = --icount ]]; then
	time=(--icount) limit=900
	shift
fi
name=${1:-brownout} mib=${2:-1024} repeats=${3:-5}
bench=$BUILD/bench logs=$BUILD/logs/$name
mkdir -p "$bench"
"$TOP/scripts/in-root" clang-19 -O2 -Wall -Wextra -Werror -static -pthread \
	-isystem "$BUILD/selftests/headers/usr/include" \
	-o "$bench/brownout" "$TOP/tests/brownout/brownout.c"

load()
{
	cut -d' ' -f1 /proc/loadavg
}

say "brownout: $mib MiB, $repeats times, C and Rust (log: $logs)"
rm -rf "${logs:?}"
before=$(load) status=0
"$TOP/scripts/boot.sh" --name "$name" --smp 2 --mem 4G "${time[@]}" --timeout "$limit" -- \
	"/lab/tests/brownout/guest.sh /results $mib $repeats" || status=$?
# With two threads QEMU's processors have misbehaved, under the C MMU as well.
if ((status == 3)) && [[ ${time[*]} = *multi* ]]; then
	die "brownout: no result: the guest did what its code cannot do, or hung. QEMU with two threads does that at times; if --icount shows it too, it is the MMU's fault (log: $logs)"
elif ((status)); then
	die "brownout: failed with status $status (log: $logs)"
fi
printf '%s %s\n' "$before" "$(load)" >"$logs/load"
echo "${time[*]}" >"$logs/time"
"$TOP/scripts/in-root" python3 -B "$TOP/tests/brownout/report.py" "$logs"
