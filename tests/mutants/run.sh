#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-mutants': whether the tests find the bugs that are planted in the MMU.
#   run.sh [BUG]...     tests/mutants/BUG.patch; all of which the head says
# "Found by: ID", a test of tests/selftests/mmu.list that has to fail; "kunit", a KUnit suite;
# "bench: NAME", a condition of tests/bench/report.py; or "hw-check: NAME", a probe of 'make
# hw-check', for what only shows on two processors at a time. (Those without are for kernels that
# check themselves, see tests/selftests/debug.sh.) Without a bug ("no-bug") each of these tests
# has to pass, and what it does on C is shown; that of the bench does in 'make test'.
# Modules are built for each, and all are run in one boot, or in more if one does not survive
# a bug. build/logs/mutants/BUG has what the tests wrote, and is used again until the bug, the
# modules or the test change: an interrupted run goes on where it was, and a few bugs can be
# run at a time. The TAP is on stdout.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

here=$TOP/tests/mutants logs=$BUILD/logs/mutants list=$TOP/tests/selftests/mmu.list
ns=(unshare --mount --propagation private)
((!EUID)) || ns+=(--map-root-user)
bugs=("$@")
(($#)) || mapfile -t bugs < <(grep -l '^Found by: ' "$here"/*.patch | sed 's,.*/,,; s,\.patch$,,')

# Among the bugs, "no-bug/ID" stands for modules without a bug.
# test_of BUG: the test that is run in the guest.
test_of()
{
	[[ ${by[$1]} != kunit ]] || { echo kvm_binary_stats_test; return; }
	echo "${by[$1]}"
}

# apart BUG: whether it has a boot of its own.
apart()
{
	[[ ${by[$1]} = bench:* || ${by[$1]} = hw-check:* ]]
}

# key BUG: what its result depends on.
key()
{
	local files=("$BUILD/mod-rust/arch/x86/kvm/kvm.ko") id words file
	id=$(test_of "$1")
	if [[ $1 = no-bug/* ]]; then
		files+=("$BUILD/mod-c/arch/x86/kvm/kvm.ko")
	else
		files+=("$here/$1.patch")
	fi
	if [[ $id = bench:* ]]; then
		files+=("$TOP"/tests/bench/*.*)
	elif [[ $id = hw-check:* ]]; then
		files+=("$TOP"/tests/hw-check/*.*)
	else
		# The program, among its arguments.
		read -ra words < <(grep "^$id " "$list")
		for file in "${words[@]}"; do
			file=$BUILD/selftests/kvm/$file
			[[ ! -f $file ]] || files+=("$file")
		done
	fi
	{
		sed -n "/^$id /p" "$list"
		cat "${files[@]}"
	} | sha256sum
}

# Once more in each boot that the kernel survives: filter_glob is what guest.sh leaves behind.
kunit=/sys/module/kunit/parameters/filter_glob
# guest_command BUG: what to run in the guest.
guest_command()
{
	local filter=none mmus=rust modules="LOAD_AS=plant-$1 KVM_LOAD=/lab/tests/selftests/load-as"
	[[ ${by[$1]} != kunit ]] || filter='*'
	[[ $1 != no-bug/* ]] || modules=''
	[[ $1 != no-bug/* || ${by[$1]} = kunit ]] || mmus=c,rust
	echo "mkdir -p /results/$1; echo -n '$filter' >$kunit; echo '$(key "$1")' >/results/$1/key
		$modules /lab/tests/selftests/guest.sh -o $(test_of "$1") $mmus /results/$1 || :
		echo ended >/results/$1/ended"
}

# evidence BUG: what says that it was found. A test that could not run has found nothing.
evidence()
{
	local log=$logs/$1 line id=${by[$1]}
	case $id in
	hw-check:*)
		grep -m1 "^  Rust: ${id#hw-check: }: " "$log/hw/report.txt" ;;
	bench:*)
		"$TOP/scripts/in-root" python3 -B "$TOP/tests/bench/report.py" --tap "$log" |
			grep -m1 "^not ok [0-9]* - ${id#bench: }\$" ;;
	kunit)	grep -hm1 '^ *not ok ' "$log"/rust/kunit/*.ktap ;;
	*)
		if [[ ! -e $log/ended ]]; then
			# The kernel did not survive it.
			grep -aohE -m1 '(BUG: |Oops: |Kernel panic).*' "$log/console.log"
			return
		fi
		line=$(grep -hm1 "^not ok [0-9]* - $id " "$log/rust.tap") || return 1
		[[ ! $line =~ 'setup failed:'|'timed out after' ]] || return 1
		# What the test itself says of it.
		echo "$line: $(grep -ahm1 -A1 -E '^not ok |Test Assertion Failure' "$log/rust/$id.log" |
			tr -s '\n ' ' ' || :)" ;;
	esac
}

# passed BUG: what says that there was nothing to find.
passed()
{
	local log=$logs/$1
	case ${by[$1]} in
	hw-check:*)
		grep -x "Nothing has failed on the MMU in Rust." "$log/hw/report.txt" ;;
	kunit)
		! grep -q '^ *not ok ' "$log"/rust/kunit/*.ktap &&
			cat "$log"/rust/kunit/*.ktap | grep -c '^ok ' ;;
	*)
		grep -hm1 "^ok [0-9]* - ${by[$1]} # time=" "$log/rust.tap" &&
			echo "on C: $(grep -hm1 " - ${by[$1]} # " "$log/c.tap" || echo no result)" ;;
	esac
}

# keep DIR: what a boot has left of each bug.
keep()
{
	local key bug
	for key in "$1"/*/key "$1"/no-bug/*/key; do
		[[ -e $key ]] || continue
		bug=${key%/key} bug=${bug#"$1/"}
		rm -rf "${logs:?}/$bug"
		mkdir -p "$(dirname "$logs/$bug")"
		mv "$1/$bug" "$logs/$bug"
		last=$bug
	done
}

declare -A by=()
for bug in "${bugs[@]}"; do
	[[ -e $here/$bug.patch ]] || die "there is no bug $here/$bug.patch"
	by[$bug]=$(sed -n 's/^Found by: //p' "$here/$bug.patch")
	[[ ${by[$bug]} ]] || die "$bug is for a kernel that checks itself; see tests/selftests/debug.sh"
	apart "$bug" || [[ ${by[$bug]} = kunit ]] || grep -q "^${by[$bug]} " "$list" ||
		die "$bug is found by ${by[$bug]}, which is not in $list"
done
for bug in "${bugs[@]}"; do
	without=no-bug/${by[$bug]%%:*}
	[[ ! ${by[$without]:-} && ${by[$bug]} != bench:* ]] || continue
	bugs+=("$without")
	by[$without]=${by[$bug]}
done
mkdir -p "$logs"

# What an interrupted run has left; that of its last bug is not complete.
for boot in "$logs"/boot-*; do
	[[ -d $boot ]] || continue
	for key in "$boot"/*/key "$boot"/no-bug/*/key; do
		[[ ! -e $key || -e ${key%/key}/ended ]] || rm "$key"
	done
	keep "$boot"
	rm -rf "$boot"
done

todo=()
for bug in "${bugs[@]}"; do
	if [[ -e $logs/$bug/key && $(<"$logs/$bug/key") = "$(key "$bug")" ]]; then
		say "$bug: as it was found on $(date -u -r "$logs/$bug/key" '+%F %R')"
		continue
	fi
	rm -rf "${logs:?}/$bug"
	todo+=("$bug")
	[[ $bug != no-bug/* ]] || continue
	"$TOP/scripts/modules.sh" "plant-$bug" >"$logs/$bug.build" 2>&1 ||
		die "the modules with the bug $bug were not built, see $logs/$bug.build"
done

n=0
while :; do
	command=''
	for bug in "${todo[@]}"; do
		apart "$bug" || [[ -e $logs/$bug/key ]] || command+="$(guest_command "$bug")"$'\n'
	done
	[[ $command ]] || break
	boot=$logs/boot-$((++n)) last=
	"$TOP/scripts/boot.sh" --name "mutants/boot-$n" --smp 2 --thread single --mem 8G \
		--append "hugetlb_cma=3G kunit.enable=1 kunit.autorun=1" --timeout 3600 --stall 700 -- \
		"$command" >"$boot.log" 2>&1 || :
	keep "$boot"
	[[ $last ]] || die "the boot has failed, see $boot.log"
	for bug in "${todo[@]}"; do
		apart "$bug" || [[ ! -e $logs/$bug/key || -e $logs/$bug/ended ]] ||
			cp "$boot/console.log" "$logs/$bug/"
	done
done

for bug in "${todo[@]}"; do
	[[ ${by[$bug]} = bench:* ]] || continue
	# Where the bench looks for the Rust MMU, there is that with the bug.
	# shellcheck disable=SC2016 # expanded by the inner shell
	"${ns[@]}" bash -c '
		mount --bind "$1/mod-plant-$2" "$1/mod-rust" && "$3/tests/bench/run.sh" "mutants/$2" 1 64' \
		- "$BUILD" "$bug" "$TOP" >"$logs/$bug.boot" 2>&1 || continue
	key "$bug" >"$logs/$bug/key"
done

# A TLB that is stale shows where the vCPU's processor runs on meanwhile: with a thread for each.
built=''
for bug in "${todo[@]}"; do
	[[ ${by[$bug]} = hw-check:* ]] || continue
	[[ $built ]] || "$TOP/tests/hw-check/run.sh" build >"$logs/hw-check.build" 2>&1 ||
		die "what hw-check needs was not built, see $logs/hw-check.build"
	built=1
	modules=rust
	[[ $bug = no-bug/* ]] || modules=plant-$bug
	mkdir -p "$logs/$bug"
	"$TOP/scripts/boot.sh" --name "mutants/$bug" --smp 2 --timeout 900 --stall 300 -- \
		"/lab/tests/hw-check/guest.sh $modules /results/hw 10 quick" \
		>"$logs/$bug.boot" 2>&1 || :
	[[ ! -e $logs/$bug/hw/report.txt ]] || key "$bug" >"$logs/$bug/key"
done

echo "1..${#bugs[@]}"
echo "# commit $(git -C "$TOP" describe --always --dirty --exclude='*')"
n=0 missed=0
for bug in "${bugs[@]}"; do
	if [[ $bug = no-bug/* ]]; then
		if line=$(passed "$bug"); then
			line=${line//$'\n'/; } line=${line//$'\r'/}
			echo "ok $((++n)) - $bug # ${line//#/}"
		else
			echo "not ok $((++n)) - $bug # fails without a bug, see $logs/$bug"
			missed=$((missed + 1))
		fi
	elif line=$(evidence "$bug"); then
		line=${line//#/} line=${line//$'\r'/}
		echo "ok $((++n)) - $bug # found: $line"
	else
		echo "not ok $((++n)) - $bug # not found by ${by[$bug]}, see $logs/$bug"
		missed=$((missed + 1))
	fi
done
((!missed))
