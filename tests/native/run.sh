#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make bench-native': what dirty logging costs on this machine's silicon, one thread.
#   run.sh [GIB [ROUNDS]]      (64, 20)
#   run.sh -d [GIB [ROUNDS]]   only logging by D bits (64, 100)
# Table on stdout; build/logs/bench-native.json, or bench-native-bits.json, has all numbers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

only=() name=bench-native usual=20
if [[ ${1:-} = -d ]]; then
	shift
	only=(-d) name=bench-native-bits usual=100
fi
gib=${1:-64} rounds=${2:-$usual} json=$BUILD/logs/$name.json
"$TOP/tests/native/link.sh" bench-native
mkdir -p "$BUILD/logs"

cpu=$(sed -n 's/^model name[^:]*: //p; T; q' /proc/cpuinfo)
say "bench-native: $gib GiB in 2 MiB pages, $rounds rounds, C and Rust in turn"
"$BUILD/native/bench-native" "${only[@]}" -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; median (quartiles); JSON: $json"
