#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Memslots that the root of the page tables does not reach: gfn_reach_test on a processor
# that allows such, on one MMU.
#   run.sh c|rust|upstream NAME      results in build/logs/NAME
# "upstream" is C with patches/upstream/ (scripts/modules.sh upstream). Without those C may
# map anything by the end of its test, so it has a boot of its own, and none without the TDP
# MMU. The test is the project's own: it is not part of the fork.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

(($# == 2)) || die "usage: run.sh c|rust|upstream NAME"
mmu=$1 name=$2 out=$BUILD/selftests kvm=$SRC/tools/testing/selftests/kvm
[[ -e $out/kvm/lib/kvm_util.o ]] || die "no selftests in $out; run 'make selftests'"

mapfile -t libs < <(find "$out/kvm/lib" "$out/kvm/libvfio" -name '*.o')
"$TOP/scripts/in-root" clang-19 -O2 -Wall -Wno-gnu-variable-sized-type-not-at-end -std=gnu99 \
	-D_GNU_SOURCE= -DCONFIG_64BIT -march=x86-64-v2 -fno-stack-protector -fno-PIE \
	-fno-builtin-memcmp -fno-builtin-memcpy -fno-builtin-memset -fno-builtin-strnlen \
	-fno-strict-aliasing -I"$SRC/tools/include" -I"$SRC/tools/arch/x86/include" \
	-isystem "$out/headers/usr/include" -I"$kvm/include" -I"$kvm/include/x86" -I"$kvm/x86" \
	-I"$SRC/tools/testing/selftests" -static -pthread -o "$out/kvm/x86/gfn_reach_test" \
	"$TOP/tests/reach/gfn_reach_test.c" "${libs[@]}" -ldl -luuid

list="LIST=/lab/tests/reach/reach.list /lab/tests/selftests/guest.sh -o"
case $mmu in
c)	command="$list gfn_reach_test c /results" ;;
rust)	command="$list gfn_reach_test rust /results
		$list gfn_reach-notdp rust /results/notdp" ;;
upstream)
	command="echo 16 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
		cd /lab/selftests/kvm
		/lab/kvm-load upstream && x86/gfn_reach_test &&
		/lab/kvm-load upstream tdp_mmu=N && x86/gfn_reach_test" ;;
*)	die "run.sh: '$mmu' is not c, rust or upstream" ;;
esac
"$TOP/scripts/boot.sh" --name "$name" --smp 2 --thread single --mem 4G \
	--cpu max,+svm,+npt,-la57,phys-bits=52 --timeout 1200 -- "$command"
