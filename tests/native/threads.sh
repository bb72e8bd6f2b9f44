#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make threads': splitting ahead, recovering and CLEAR by one thread and by two, on two cores.
#   threads.sh [GIB [ROUNDS]]      (32, 20)
# Table on stdout; build/logs/threads.json has all numbers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

gib=${1:-32} rounds=${2:-20} json=$BUILD/logs/threads.json
"$TOP/tests/native/link.sh" threads
mkdir -p "$BUILD/logs"

cpu=$(sed -n 's/^model name[^:]*: //p; T; q' /proc/cpuinfo)
load=$(cut -d ' ' -f 1 /proc/loadavg)
say "threads: $gib GiB in 2 MiB pages, $rounds rounds, one thread and two in turn; the load was $load before"
"$BUILD/native/threads" -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; median (quartiles); JSON: $json"
