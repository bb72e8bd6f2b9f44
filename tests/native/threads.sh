#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make threads': splitting ahead, recovering and CLEAR by one thread and by two, on two cores.
#   threads.sh [GIB [ROUNDS]]      (32, 20)
# Table on stdout; build/logs/threads.json has all numbers.
set -euo pipefail
# shellcheck source=tests/native/start.sh
. "$(dirname "$0")/start.sh"

gib=${1:-32} rounds=${2:-20}
load=$(cut -d ' ' -f 1 /proc/loadavg)
say "threads: $gib GiB in 2 MiB pages, $rounds rounds, one thread and two in turn; the load was $load before"
printf '%s GiB, %s rounds, %s, %s. The load was %s before.\n\n' "$gib" "$rounds" "$cpu" "$(date +%F)" "$load"
"$program" -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; median (quartiles); JSON: $json"
