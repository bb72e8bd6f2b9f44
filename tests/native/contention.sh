#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make contention': who waits how long for mmu_lock on this machine's silicon.
#   contention.sh [GIB [ROUNDS]]      (4, 20)
# Tables on stdout; build/logs/contention.json has all numbers.
set -euo pipefail
# shellcheck source=tests/native/start.sh
. "$(dirname "$0")/start.sh"

gib=${1:-4} rounds=${2:-20}
say "contention: each party a thread, for the checks only"
"$program" -g 1 -s 10 >&2
load=$(cut -d ' ' -f 1 /proc/loadavg)
say "contention: $gib GiB in 2 MiB pages, $rounds rounds, C and Rust in turn, two minutes in all; the load is $load"
"$program" -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; JSON: $json"
