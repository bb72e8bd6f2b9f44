#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make bench-native': what dirty logging costs on this machine's silicon, one thread.
#   run.sh [GIB [ROUNDS]]      (64, 20)
# Table on stdout; build/logs/bench-native.json has all numbers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

gib=${1:-64} rounds=${2:-20} json=$BUILD/logs/bench-native.json
"$TOP/tests/native/link.sh" bench-native
mkdir -p "$BUILD/logs"

cpu=$(sed -n 's/^model name[^:]*: //p; T; q' /proc/cpuinfo)
say "bench-native: $gib GiB in 2 MiB pages, $rounds rounds, C and Rust in turn"
"$BUILD/native/bench-native" -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; median (quartiles); JSON: $json"
