#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make try TEST=...': while a change is being made, the tests of one flow, on the C MMU
# and on the Rust MMU in one boot.
#   try.sh PATTERN...     ids of tests/selftests/{mmu,other}.list; "dirty_log_perf-*" is a pattern
# The logs are in build/logs/try.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

lists=(mmu other)
list='' options=''
for pattern; do
	found=''
	for l in "${lists[@]}"; do
		[[ ! $list || $l = "$list" ]] || continue
		while read -r id _; do
			[[ $id && $id != \#* ]] || continue
			# shellcheck disable=SC2053 # a pattern
			[[ $id = $pattern ]] || continue
			found=1 list=$l options+=" -o $id"
		done <"$TOP/tests/selftests/$l.list"
	done
	[[ $found ]] ||
		die "no test '$pattern'${list:+ in $list.list}; TEST= takes ids, or patterns of ids, of one of tests/selftests/{mmu,other}.list"
done
[[ $options ]] || die "no test; usage: make try TEST='huge_page_recovery-2m dirty_log_perf-*'"

logs=$BUILD/logs/try
rm -rf "${logs:?}"
status=0
"$TOP/scripts/boot.sh" --name try --smp 2 --thread single --mem 8G --append hugetlb_cma=3G \
	--timeout 7200 --stall 700 -- \
	"LIST=/lab/tests/selftests/$list.list /lab/tests/selftests/guest.sh $options c,rust /results" || status=$?
"$TOP/scripts/in-root" python3 -B "$TOP/tests/selftests/compare.py" "$logs/c.tap" "$logs/rust.tap" \
	>"$logs/compare.tap" || :
"$TOP/scripts/in-root" python3 -B "$TOP/tests/tap.py" summary "$logs/compare.tap" || status=1
say "what each test wrote: $logs/{c,rust}/ID.log"
exit "$status"
