#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Link upstream's dirty_log_perf_test, from the objects that the selftests'
# build left, with tests/dirty_log_perf/exclusive.c, for the exact boot of run.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

[[ -e $BUILD/selftests/kvm/dirty_log_perf_test.o ]] ||
	die "no selftests in $BUILD/selftests; run 'make selftests'"
cd "$BUILD/selftests/kvm"
clang-19 -O2 -Wall -Wextra -Werror -isystem "$BUILD/selftests/headers/usr/include" \
	-c "$TOP/tests/dirty_log_perf/exclusive.c" -o exclusive.o
mapfile -t libs < <(find lib libvfio -name '*.o' 2>/dev/null)
clang-19 -static -pthread -Wl,--wrap=ioctl,--wrap=clock_gettime -o dirty_log_perf_exclusive \
	dirty_log_perf_test.o exclusive.o "${libs[@]}" -ldl -luuid
