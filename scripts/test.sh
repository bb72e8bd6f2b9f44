#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test': every test, in stages. Each leaves build/logs/test/STAGE.tap, the
# sum of which is the last line: "N passed, N failed, N skipped".
#   test.sh [STAGE]...   only these stages (they are listed below)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

logs=$BUILD/logs/test
in_root=$TOP/scripts/in-root
all=(tools lab host text-equal series bench migrate selftests debug intel-pml)
# Only by name: another machine in Bochs takes about ten minutes, the list on shadow paging
# 40, and a package is a kernel.
more=(intel-ad intel-noad shadow-notdp shadow-nonpt deb)
# The stages that boot beforehand, two at a time, the longest first.
booting=(selftests debug intel-pml intel-ad intel-noad)

progress()
{
	printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

tool()
{
	"$in_root" python3 -B "$TOP/scripts/$1" "${@:2}"
}

# as_tap NAME COMMAND...: a command as one test, named after what it shows.
as_tap()
{
	local status=0
	echo "1..1"
	"${@:2}" >&2 || status=$?
	if ((status)); then
		echo "not ok 1 - $1 # exit status $status"
	else
		echo "ok 1 - $1"
	fi
}

# --- the stages: TAP on stdout, everything else on stderr

# What judges everything below must be able to fail.
stage_tools()
{
	"$in_root" python3 -B "$TOP/tests/tools/run.py"
}

stage_lab()
{
	"$TOP/tests/lab/run.sh"
}

# cargo's own report of the pure core's tests, turned into TAP.
stage_host()
{
	local log=$logs/cargo.log status=0 trust=()
	# Whom to trust is the machine's business: it may have a proxy of its own.
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	"$in_root" "${trust[@]}" env -C "$TOP/tools/testing/kvm-mmu-rs" \
		CARGO_TARGET_DIR="$BUILD/host" cargo test --no-fail-fast >"$log" 2>&1 || status=$?
	awk -v status="$status" '
		/^ *Running / { file = $(NF - 1) ": " }
		/^ *Doc-tests / { file = "doc: " }
		/^test .* \.\.\. / {
			name = file $2; n++
			if ($0 ~ /\.\.\. ok$/) print "ok " n " - " name
			else if ($0 ~ /\.\.\. ignored/) print "ok " n " - " name " # SKIP ignored"
			else { print "not ok " n " - " name; failed++ }
		}
		END {
			# A build that fails has no tests, and is no success.
			if (status && !failed) print "not ok " ++n " - cargo test # exit status " status
			print "1.." n
		}' "$log"
}

stage_text-equal()
{
	as_tap "with KVM_RUST_MMU=n, KVM's code is upstream's" "$TOP/scripts/text-equal.sh"
}

stage_series()
{
	as_tap "the fork is a series that git am takes" "$TOP/scripts/series.sh"
}

# What the MMU's improvements are worth, and that each is there.
stage_bench()
{
	"$TOP/scripts/bench.sh" test/bench 3 64 >&2
	tool bench.py --tap "$logs/bench"
}

# Two live migrations, where time is exact: how busy this machine is changes nothing.
stage_migrate()
{
	"$TOP/scripts/migrate.sh" ci >&2 || :
	tool migrate-table.py --tap "$logs/migrate" || :
}

stage_deb()
{
	"$TOP/tests/deb/run.sh"
}

# The emulator is stable where one thread runs all of the guest. The list keeps
# most tests on one of the two processors; the kernel uses both.
boot_list()
{
	local name=$1 limit=$2
	shift 2
	"$TOP/scripts/boot.sh" --name "test/$name" --smp 2 --thread single --mem 8G \
		--append "hugetlb_cma=3G kunit.enable=1 kunit.autorun=1" --timeout "$limit" "$@"
}

# What run-list.sh is told beside what to run.
list_options=()

# compare NAME C-TAP RUST-TAP [--subset] [-- BOOT-OPTIONS]: outcome by outcome;
# what differs is run again, on both MMUs in one boot.
compare()
{
	local name=$1 c=$2 rust=$3 subset=() only=() id again=$logs/$1-again
	shift 3
	[[ ${1:-} != --subset ]] || { subset=(--subset) && shift; }
	[[ ${1:-} != -- ]] || shift
	if tool compare.py "${subset[@]}" --differences "$logs/$name.again" "$c" "$rust" \
		>"$logs/$name.compare"; then
		cat "$logs/$name.compare"
		return
	fi
	while read -r id; do
		only+=(-o "$id")
	done <"$logs/$name.again"
	if ((${#only[@]})); then
		only+=("${list_options[@]}")
		boot_list "$name-again" 1800 "$@" -- "
			/lab/guest/run-list.sh ${only[*]} c /results/c | tee /results/c.tap
			/lab/guest/run-list.sh ${only[*]} rust /results/rust | tee /results/rust.tap" >&2 || :
	fi
	tool compare.py "${subset[@]}" --rerun "$again/c.tap" "$again/rust.tap" "$c" "$rust" || :
}

boot_selftests()
{
	boot_list selftests 3300 -- "
		/lab/guest/run-list.sh c /results/c | tee /results/c.tap
		/lab/guest/run-list.sh rust /results/rust | tee /results/rust.tap"
}

stage_selftests()
{
	compare selftests "$logs/selftests/c.tap" "$logs/selftests/rust.tap"
}

# A second TAP of the same boot: Rust's own tests, which ran on loading.
stage_kunit()
{
	tool tap.py kunit "$logs/selftests/rust/kunit"
}

# The MMU's part of the list with all of the kernel's checks; the rest, which
# adds nothing there but hours, is counted as skipped.
boot_debug()
{
	boot_list debug 3300 --kernel debug -- "
		TIMEOUT_FACTOR=6 /lab/guest/run-list.sh -s mmu rust /results/rust |
			tee /results/rust.tap"
}

stage_kunit-debug()
{
	tool tap.py kunit "$logs/debug/rust/kunit"
}

stage_debug()
{
	compare debug "$logs/selftests/c.tap" "$logs/debug/rust.tap" --subset -- \
		--kernel debug
}

# Intel machines, in Bochs. Nothing is run again: it repeats exactly. Its boot is given up
# after 20 minutes, so with less than that left there is none.
boot_intel()
{
	local left
	left=$(minutes_left)
	if ((left < 25)); then
		printf '1..1\nok 1 - the Intel machine # SKIP not run: %s\n' \
			"$left minutes are left, it wants 25" >"$logs/intel-$1.skip"
		return
	fi
	"$TOP/scripts/intel.sh" "$1" "test/intel-$1"
}

stage_intel()
{
	local logs=$logs/intel-$1
	if [[ -e $logs.skip ]]; then
		cat "$logs.skip"
		return
	fi
	tool compare.py "$logs/c.tap" "$logs/rust.tap" || :
	tool tap.py kunit "$logs/kunit" >"$logs.kunit.tap" || :
}

boot_intel-pml() { boot_intel pml; }
boot_intel-ad() { boot_intel ad; }
boot_intel-noad() { boot_intel noad; }
stage_intel-pml() { stage_intel pml; }
stage_intel-ad() { stage_intel ad; }
stage_intel-noad() { stage_intel noad; }

# The list on shadow paging only, on both MMUs in one boot.
stage_shadow()
{
	local name=shadow-$1 list_options=(-p "$2")
	boot_list "$name" 3300 -- "
		/lab/guest/run-list.sh ${list_options[*]} c /results/c | tee /results/c.tap
		/lab/guest/run-list.sh ${list_options[*]} rust /results/rust |
			tee /results/rust.tap" >&2 || :
	compare "$name" "$logs/$name/c.tap" "$logs/$name/rust.tap"
}
stage_shadow-notdp() { stage_shadow notdp kvm.tdp_mmu=N; }
stage_shadow-nonpt() { stage_shadow nonpt kvm_amd.npt=N; }

# --- running them

run_stage()
{
	local stage=$1 start=$SECONDS
	progress "$stage ..."
	"stage_$stage" >"$logs/$stage.tap" 2>"$logs/$stage.log" ||
		echo "Bail out! the stage ended with status $?, see $logs/$stage.log" \
			>>"$logs/$stage.tap"
	progress "$stage: $(tool tap.py summary "$logs/$stage.tap" | tail -n 1)" \
		"in $((SECONDS - start)) s"
}

# among WORD [WORD]...: whether the first is one of the others.
among()
{
	[[ " ${*:2} " = *" $1 "* ]]
}

wanted()
{
	among "$1" "${stages[@]}"
}

stages=("${@:-${all[@]}}")
for s in "${stages[@]}"; do
	[[ $(type -t "stage_$s") = function ]] ||
		die "no test stage '$s'; the stages are: ${all[*]} ${more[*]}"
done
# The debug kernel's outcomes are judged by those of the C MMU.
! wanted debug || wanted selftests || stages+=(selftests)
rm -rf "${logs:?}"
mkdir -p "$logs"
# A boot is a process group of its own, so that none of it outlives this.
set -m
# shellcheck disable=SC2317,SC2329 # called by the trap
end_boots()
{
	local job
	for job in $(jobs -pr); do
		kill -- "-$job" || :
	done
}
trap end_boots EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for s in "${all[@]}" "${more[@]}"; do
	among "$s" "${booting[@]}" || ! wanted "$s" || run_stage "$s"
done

# The debug kernel takes up to 20 minutes to build, and its list up to 45 to run, beside
# the other. Who has a limit (LAB_DEADLINE, seconds since the epoch) has it built, and
# run, only if that is sure to end in time, and is told of what was left out.
minutes_left()
{
	echo $(((${LAB_DEADLINE:-0} ? LAB_DEADLINE - $(date +%s) : 36000) / 60))
}

debug_missing()
{
	if (($(minutes_left) < 65)); then
		echo "not built: $(minutes_left) minutes are left, it wants 65"
		return
	fi
	progress "building the debug kernel ..." >&2
	if ! make -C "$TOP" -s debug >"$logs/debug-build.log" 2>&1; then
		echo "not built: see $logs/debug-build.log"
	elif (($(minutes_left) < 46)); then
		echo "not run: $(minutes_left) minutes are left, it wants 46"
	fi
}

if wanted debug; then
	why=$(debug_missing | tail -n 1)
	case $why in
	"not built: see"*)
		printf '1..1\nnot ok 1 - the debug kernel # %s\n' "$why" >"$logs/debug.tap" ;;
	"not "*)
		printf '1..1\nok 1 - the debug kernel # SKIP %s\n' "$why" >"$logs/debug.tap" ;;
	*) why='' ;;
	esac
	if [[ $why ]]; then
		progress "debug: $why"
		stages=("${stages[@]/#debug/}")
	fi
fi

# One processor is all that a boot uses, so two can be had at a time. What a
# boot that broke off has not run, the comparison finds missing.
free=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
slots=2
(($(nproc) >= 2 && free >= 14)) || slots=1
for s in "${booting[@]}"; do
	wanted "$s" || continue
	((slots--)) || { wait -n || :; slots=0; }
	progress "booting for $s ..."
	"boot_$s" >"$logs/boot-$s.log" 2>&1 &
done
wait
for s in "${booting[@]}"; do
	wanted "$s" || continue
	run_stage "$s"
	[[ $s != selftests ]] || run_stage kunit
	[[ $s != debug ]] || run_stage kunit-debug
done
files=()
for s in "${all[@]}" kunit kunit-debug "${more[@]}" intel-{pml,ad,noad}.kunit; do
	[[ ! -e $logs/$s.tap ]] || files+=("$logs/$s.tap")
done

echo
tool tap.py summary "${files[@]}"
