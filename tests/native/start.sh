# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What contention.sh and threads.sh begin with: links the program of that name, and sets
# $program, $json, where its numbers go, and $cpu, what they are of.
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"
enter_root "$@"

name=$(basename "$0" .sh)
# shellcheck disable=SC2034 # the sourcing scripts use these
program=$BUILD/native/$name json=$BUILD/logs/$name.json
"$TOP/tests/native/link.sh" "$name"
mkdir -p "$BUILD/logs"
# shellcheck disable=SC2034
cpu=$(sed -n 's/^model name[^:]*: //p; T; q' /proc/cpuinfo)
