#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds tests that are the project's own, and not part of the fork, among KVM's selftests.
#   build-own.sh SOURCE...      each is a program of that name in x86/
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

out=$BUILD/selftests kvm=$SRC/tools/testing/selftests/kvm
[[ -e $out/kvm/lib/kvm_util.o ]] || die "no selftests in $out; run 'make selftests'"

mapfile -t libs < <(find "$out/kvm/lib" "$out/kvm/libvfio" -name '*.o')
for source; do
	program=${source##*/}
	"$TOP/scripts/in-root" clang-19 -O2 -Wall -Wno-gnu-variable-sized-type-not-at-end -std=gnu99 \
		-D_GNU_SOURCE= -DCONFIG_64BIT -march=x86-64-v2 -fno-stack-protector -fno-PIE \
		-fno-builtin-memcmp -fno-builtin-memcpy -fno-builtin-memset -fno-builtin-strnlen \
		-fno-strict-aliasing -I"$SRC/tools/include" -I"$SRC/tools/arch/x86/include" \
		-isystem "$out/headers/usr/include" -I"$kvm/include" -I"$kvm/include/x86" -I"$kvm/x86" \
		-I"$SRC/tools/testing/selftests" -static -pthread -o "$out/kvm/x86/${program%.c}" \
		"$source" "${libs[@]}" -ldl -luuid
done
