#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-upstream': that upstream's KVM fails what patches/upstream/ mend, and does not
# with them, but for 0005: two boots, of the same tests (upstream.list). The logs are in
# build/logs/upstream; the TAP is on stdout.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

logs=$BUILD/logs/upstream
rm -rf "${logs:?}"
mkdir -p "$logs"
"$TOP/tests/selftests/build-own.sh" "$TOP/tests/reach/gfn_reach_test.c" \
	"$TOP/tests/upstream/dirty_ring_signal_test.c"
for modules in pristine upstream; do
	"$TOP/scripts/modules.sh" "$modules" >"$logs/modules-$modules.log" 2>&1 ||
		die "the modules were not built, see $logs/modules-$modules.log"
	# What the last test leaves behind on the first of them is anything, so nothing follows.
	"$TOP/scripts/boot.sh" --name "upstream/$modules" --smp 2 --thread single --mem 6G \
		--cpu max,+svm,+npt,-la57,phys-bits=52 --append hugetlb_cma=1G --timeout 1200 -- "
		LOAD_AS=$modules KVM_LOAD=/lab/tests/selftests/load-as \
		LIST=/lab/tests/upstream/upstream.list \
			/lab/tests/selftests/guest.sh c /results" >"$logs/boot-$modules.log" 2>&1 || :
done
"$TOP/scripts/in-root" python3 -B "$TOP/tests/selftests/compare.py" \
	"$logs/pristine/c.tap" "$logs/upstream/c.tap"
