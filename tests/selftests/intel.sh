#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Run tests/selftests/intel.list on both MMUs in one boot of Bochs, which is an
# Intel machine:   intel.sh MACHINE NAME [ID]...
#   MACHINE  pml: EPT with A/D bits and PML;  ad: EPT with A/D bits, no PML;
#            noad: EPT without A/D bits (kvm_intel.eptad=0)
#   NAME     log directory build/logs/NAME
#   ID       only these tests; or else all, those called dirty_bits-* on "ad" only: there is no
#            choice on the others
# build/logs/NAME then has c.tap, rust.tap, kunit/ and, of each MMU, the
# output of the tests that did not pass.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

(($# >= 2)) || die "usage: intel.sh pml|ad|noad NAME [ID]..."
append="kunit.enable=1 kunit.autorun=1"
case $1 in
pml) cpu=skylake ;;
ad) cpu=haswell ;;
noad) cpu=skylake append+=" kvm_intel.eptad=0" ;;
*) die "intel.sh: unknown machine '$1'; use pml, ad or noad" ;;
esac
name=$2
shift 2
ids=("$@")
(($#)) || mapfile -t ids < <(awk -v ad="$([[ $cpu = haswell ]] && echo 1)" '
	!/^#/ && NF && (ad || $1 !~ /^dirty_bits-/) { print $1 }' "$TOP/tests/selftests/intel.list")
only=("${ids[@]/#/-o }")

# The programs that the list names are all that the guest gets.
with=()
while read -r f; do
	with+=(--with "${f#./}")
done < <(grep -v '^#' "$TOP/tests/selftests/intel.list" |
	 grep -oE '(\./|x86/)[^ ]+' | sed 's|^\./||' | sort -u; echo x86/nx_huge_pages_test)

status=0
"$TOP/scripts/bochs.sh" --name "$name" --cpu "$cpu" --append "$append" --timeout 1500 --stall 500 \
	"${with[@]}" -- "
	export LIST=/lab/tests/selftests/intel.list
	/lab/tests/selftests/guest.sh ${only[*]} c,rust /results
	for mmu in c rust; do
		sed -n 's/^not ok [0-9]* - \([^ ]*\).*/\1/p' /results/\$mmu.tap | while read -r id; do
			for f in /results/\$mmu/\$id.log /results/\$mmu/\$id.splat; do
				[ ! -e \$f ] || { echo \"=== \$mmu-\${f##*/}\"; tail -n 60 \$f; }
			done
		done
	done
	for f in /results/rust/kunit/*; do
		[ ! -e \$f ] || { echo \"=== kunit/\${f##*/}\"; cat \$f; }
	done" || status=$?

# The serial line has all: the TAP behind the name of its file, as it came about, and then
# whole files. A boot that was cut off has said what it had until then.
out=$BUILD/logs/$name
rm -rf "${out:?}/kunit" "$out"/{c,rust}.tap "$out"/{c,rust}-*.{log,splat}
mkdir -p "$out/kunit"
awk -v out="$out" '
	/^(c|rust)\.tap\| / { sub(/\|$/, "", $1); tap = $1; sub(/^[^ ]* /, ""); print >(out "/" tap); next }
	/^=== / { file = out "/" $2; next }
	file { print >file }' "$out/output"
exit "$status"
