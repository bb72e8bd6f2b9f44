#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Check the protocols of the MMU against the kernel's memory model: each litmus test
# of Documentation/litmus-tests/kvm-mmu, by herd7.   run.sh [--update]
# What herd7 must say is in the file "expected" there; --update writes it.
# herd7 is not in Debian; rust-mmu.rst says how to get it. Without it, the tests
# are skipped, by name.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

tests=$TOP/Documentation/litmus-tests/kvm-mmu
model=$SRC/tools/memory-model

if ! command -v herd7 >/dev/null; then
	for t in "$tests"/*.litmus; do
		say "litmus test $(basename "$t" .litmus): skipped, no herd7 on PATH"
	done
	exit 0
fi
[[ -e $model/linux-kernel.cfg ]] || die "no memory model in $model; run 'make source'"

# The verdict, the states, and what is flagged; not how long it took.
judge()
{
	local t
	echo "# SPDX-License-Identifier: GPL-2.0"
	cd "$model"
	for t in "$tests"/*.litmus; do
		herd7 -conf linux-kernel.cfg "$t" |
			sed -n '/^Test /p; /^States /,/^Ok$\|^No$/p; /^Observation /p; /^Flag /p'
	done
}

# Each file says itself what is to be found.
claims()
{
	local t claim name
	for t in "$tests"/*.litmus; do
		name=$(basename "$t" .litmus)
		claim=$(sed -n 's/^ \* Result: //p' "$t")
		grep -q "^Observation $name $claim " <<<"$1" ||
			die "litmus test $name: its file says $claim, herd7 says otherwise"
	done
}

found=$(judge)
claims "$found"
if [[ ${1:-} = --update ]]; then
	printf '%s\n' "$found" >"$tests/expected"
else
	diff -u "$tests/expected" - <<<"$found" ||
		die "herd7 says something else than $tests/expected"
fi
say "$(grep -c '^Test ' <<<"$found") litmus tests: as expected"
