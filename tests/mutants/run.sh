#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-mutants': whether the tests find the bugs that are planted in the MMU.
#   run.sh [BUG]...     tests/mutants/BUG.patch; all of which the head says
# "Found by: ID", a test of tests/selftests/mmu.list that has to fail; "kunit", a KUnit suite;
# or "bench", a condition of tests/bench/report.py. (Those without are for kernels that check
# themselves, see tests/selftests/debug.sh.)
# Modules are built for each, and all are run in one boot, or in more if one does not survive
# a bug. build/logs/mutants/BUG has what the tests wrote. The TAP is on stdout.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

here=$TOP/tests/mutants logs=$BUILD/logs/mutants
ns=(unshare --mount --propagation private)
((!EUID)) || ns+=(--map-root-user)
bugs=("$@")
(($#)) || mapfile -t bugs < <(grep -l '^Found by: ' "$here"/*.patch | sed 's,.*/,,; s,\.patch$,,')

# Once more in each boot that the kernel survives: filter_glob is what guest.sh leaves behind.
kunit=/sys/module/kunit/parameters/filter_glob
# guest_command BUG: what to run in the guest.
guest_command()
{
	local id=${by[$1]} filter=none
	[[ $id != kunit ]] || id=kvm_binary_stats_test filter='*'
	echo "mkdir -p /results/$1; echo '$filter' >$kunit; echo begins >/results/$1/begun
		LOAD_AS=plant-$1 KVM_LOAD=/lab/tests/selftests/load-as \
			/lab/tests/selftests/guest.sh -o $id rust /results/$1 || :"
}

# What says that the bug was found.
evidence()
{
	local log=$logs/$1
	case ${by[$1]} in
	bench)
		"$TOP/scripts/in-root" python3 -B "$TOP/tests/bench/report.py" --tap "$log" |
			grep -m1 '^not ok ' ;;
	kunit)	grep -hm1 '^ *not ok ' "$log"/rust/kunit/*.ktap ;;
	*)
		grep -hm1 "^not ok [0-9]* - ${by[$1]} " "$log/rust.tap" ||
			# The kernel did not survive it.
			grep -aohE -m1 '(BUG: |Oops: |Kernel panic).*' "$log/console.log" ;;
	esac
}

declare -A by=()
rm -rf "${logs:?}"
mkdir -p "$logs"
for bug in "${bugs[@]}"; do
	[[ -e $here/$bug.patch ]] || die "there is no bug $here/$bug.patch"
	by[$bug]=$(sed -n 's/^Found by: //p' "$here/$bug.patch")
	[[ ${by[$bug]} ]] || die "$bug is for a kernel that checks itself; see tests/selftests/debug.sh"
	"$TOP/scripts/modules.sh" "plant-$bug" >"$logs/$bug.build" 2>&1 ||
		die "the modules with the bug $bug were not built, see $logs/$bug.build"
done

for bug in "${bugs[@]}"; do
	[[ ${by[$bug]} = bench ]] || continue
	# Where the bench looks for the Rust MMU, there is that with the bug.
	# shellcheck disable=SC2016 # expanded by the inner shell
	"${ns[@]}" bash -c '
		mount --bind "$1/mod-plant-$2" "$1/mod-rust" && "$3/tests/bench/run.sh" "mutants/$2" 3 64' \
		- "$BUILD" "$bug" "$TOP" >"$logs/$bug.boot" 2>&1 || :
done

n=0
while :; do
	command=''
	for bug in "${bugs[@]}"; do
		[[ ${by[$bug]} = bench || -e $logs/$bug/begun ]] ||
			command+="$(guest_command "$bug")"$'\n'
	done
	[[ $command ]] || break
	boot=$logs/boot-$((++n))
	"$TOP/scripts/boot.sh" --name "mutants/boot-$n" --smp 2 --thread single --mem 8G \
		--append "hugetlb_cma=3G kunit.enable=1 kunit.autorun=1" --timeout 3600 --stall 700 -- \
		"$command" >"$boot.log" 2>&1 || :
	began=("$boot"/*/begun)
	[[ -e ${began[0]} ]] || die "the boot has failed, see $boot.log"
	for bug in "${bugs[@]}"; do
		[[ -e $boot/$bug/begun ]] || continue
		mv "$boot/$bug" "$logs/$bug"
		last=$bug
	done
	grep -qs ' - kvm-unload' "$logs/$last/rust.tap" || cp "$boot/console.log" "$logs/$last/"
done

echo "1..${#bugs[@]}"
n=0 missed=0
for bug in "${bugs[@]}"; do
	if line=$(evidence "$bug"); then
		line=${line//#/} line=${line//$'\r'/}
		echo "ok $((++n)) - $bug # found: $line"
	else
		echo "not ok $((++n)) - $bug # not found by ${by[$bug]}, see $logs/$bug"
		missed=$((missed + 1))
	fi
done
((!missed))
