#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build KVM's selftests, upstream's and ours, statically: the guest needs no
# library of a certain version.   selftests.sh [TEST]...   only these
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
enter_root "$@"

out=$BUILD/selftests
targets=("${@/#/$out/kvm/}")
# selftests/rseq builds its helper for kvm there as well.
mkdir -p "$out/kvm" "$out/headers"
make -s -C "$SRC" O="$out/headers" LLVM=-19 LOCALVERSION= headers
# OUTPUT is lib.mk's way to build outside of the source. The lab's own guest
# programs use the same library and come out beside them. A base directory of ccache's
# would make make miss the headers: the dependencies would name other targets than make's.
CCACHE_BASEDIR='' make -C "$SRC/tools/testing/selftests/kvm" -j"$JOBS" ARCH=x86 \
	OUTPUT="$out/kvm" LINUX_HDR_PATH="$out/headers/usr/include/" \
	KHDR_INCLUDES="-isystem $out/headers/usr/include" \
	EXTRA_CFLAGS="-Wno-error" \
	LDFLAGS="-static -pthread -no-pie" "${targets[@]:-all}"
((!$#)) || exit 0
cp -u "$SRC/tools/testing/selftests/kvm/x86/nx_huge_pages_test.sh" "$out/kvm/x86/"
