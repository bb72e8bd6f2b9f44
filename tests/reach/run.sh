#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Memslots that the root of the page tables does not reach: gfn_reach_test on a processor
# that allows such, on one MMU.
#   run.sh c|rust NAME      results in build/logs/NAME
# C may map anything by the end of its test, so it has a boot of its own, and none without
# the TDP MMU. tests/upstream/run.sh runs it on C with patches/upstream/.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

(($# == 2)) || die "usage: run.sh c|rust NAME"
mmu=$1 name=$2
"$TOP/tests/selftests/build-own.sh" "$TOP/tests/reach/gfn_reach_test.c"

list="LIST=/lab/tests/reach/reach.list /lab/tests/selftests/guest.sh -o"
case $mmu in
c)	command="$list gfn_reach_test c /results" ;;
rust)	command="$list gfn_reach_test rust /results
		$list gfn_reach-notdp rust /results/notdp" ;;
*)	die "run.sh: '$mmu' is not c or rust" ;;
esac
"$TOP/scripts/boot.sh" --name "$name" --smp 2 --thread single --mem 4G \
	--cpu max,+svm,+npt,-la57,phys-bits=52 --timeout 1200 -- "$command"
