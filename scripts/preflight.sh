#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Before hours of work: is there room for it? Limits can be overridden, which
# is also how their messages are tested.
# LAB_RUN= is set when it is for 'make run' alone, which builds no kernel.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

[[ $(uname -m) = x86_64 ]] ||
	die "this machine is $(uname -m); the lab builds and boots x86_64 only"

# What is already built needs no more room.
want=12288
[[ ! ${LAB_RUN:-} ]] || want=6144
if [[ ! -e $BUILD/stamp/linux && ! (${LAB_RUN:-} && -e $BUILD/stamp/run-selftests) ]]; then
	need_mb "$BUILD" "${LAB_MIN_DISK_MB:-$want}"
fi
if [[ ! -e $(root_dir)/.complete ]]; then
	need_mb "$CACHE" "${LAB_MIN_CACHE_MB:-4096}"
fi

mem=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)
# A machine sold with 4 GiB shows a little less.
want=${LAB_MIN_MEM_MB:-3700}
((mem >= want)) ||
	die "this machine has $mem MiB of memory, $want are needed; use a bigger one"
