#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test': every test, in stages. Each leaves build/logs/test/STAGE.tap, the
# sum of which is the last line: "N passed, N failed, N skipped".
#   run.sh [STAGE]...   only these stages (they are listed below)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

logs=$BUILD/logs/test
in_root=$TOP/scripts/in-root
# Those that a tight deadline must not leave out come first.
all=(tools model host sim text-equal series lab modules bench migrate reach selftests-1 selftests-2 intel-pml
     debug-1 debug-2)
# Only by name: another machine in Bochs takes about ten minutes, the list on shadow paging
# 40, and a package is a kernel. "other" is KVM's selftests that say nothing about the MMU.
more=(other intel-ad intel-noad shadow-notdp shadow-nonpt deb)
# These are boots of minutes, of which the results are judged when all have ended.
booting=(selftests-{1,2} debug-{1,2} other intel-{pml,ad,noad} shadow-{notdp,nonpt})
# What a stage takes, in minutes of the machine that calibrate.sh knows, if that is more
# than one. A stage that the deadline leaves less time for is not begun. A list of tests
# stops by itself in time; it is not begun for less than this.
declare -A minutes=([host]=2 [sim]=6 [lab]=2 [modules]=8 [bench]=4 [migrate]=3 [reach]=3 [deb]=30
	[selftests-1]=3 [selftests-2]=3 [debug-1]=4 [debug-2]=4 [other]=3
	[intel-pml]=12 [intel-ad]=12 [intel-noad]=12 [shadow-notdp]=5 [shadow-nonpt]=5)
# What is left to do when the last boot has ended.
judging=4

progress()
{
	printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

tool()
{
	"$in_root" python3 -B "$TOP/tests/$1" "${@:2}"
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

# The model of machines that are not here: its lock, and that it says what has been measured.
stage_model()
{
	"$TOP/tests/model/run.sh" test
}

stage_lab()
{
	"$TOP/tests/lab/run.sh"
}

# cargo's own report of the pure core's tests, turned into TAP.
stage_host()
{
	local log=$logs/cargo.log status=0
	"$TOP/tests/host/run.sh" --no-fail-fast >"$log" 2>&1 || status=$?
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

# Every interleaving, for two minutes, and that planted bugs are found.
stage_sim()
{
	"$TOP/tests/sim/run.sh" ci
}

stage_text-equal()
{
	as_tap "with KVM_RUST_MMU=n, KVM's code is upstream's" "$TOP/tests/text-equal/run.sh"
}

stage_series()
{
	as_tap "the fork is a series that git am takes" "$TOP/scripts/package/series.sh"
}

# The package of modules on a Debian with its own kernel.
stage_modules()
{
	"$TOP/tests/deb/modules.sh"
}

# What the MMU's improvements are worth, and that each is there.
stage_bench()
{
	"$TOP/tests/bench/run.sh" test/bench 3 64 >&2
	tool bench/report.py --tap "$logs/bench"
}

# Two live migrations, where time is exact: how busy this machine is changes nothing.
stage_migrate()
{
	"$TOP/tests/migrate/run.sh" ci >&2 || :
	tool migrate/report.py --tap "$logs/migrate" || :
}

# Memslots that no root reaches.
stage_reach()
{
	"$TOP/tests/reach/run.sh" c test/reach-c >&2 || :
	"$TOP/tests/reach/run.sh" rust test/reach-rust >&2 || :
	tool selftests/compare.py "$logs/reach-c/c.tap" "$logs/reach-rust/rust.tap" || :
	cp "$logs/reach-rust/notdp/rust.tap" "$logs/reach-notdp.tap"
}

stage_deb()
{
	"$TOP/tests/deb/run.sh"
}

# The emulator is stable where one thread runs all of the guest. The list keeps
# most tests on one of the two processors; the kernel uses both.
#   boot_list NAME LIST-OPTIONS MMUS BOOT-OPTIONS...
# The guest stops in time by itself, and the boot is given up if no test ends any more.
boot_list()
{
	local name=$1 options=$2 mmus=$3 budget
	shift 3
	budget=$(($(minutes_left) * 60 - judging * 60))
	"$TOP/scripts/boot.sh" --name "test/$name" --smp 2 --thread single --mem 8G \
		--append "hugetlb_cma=3G kunit.enable=1 kunit.autorun=1" \
		--timeout 14400 --stall "$stall" --deadline "$((deadline - 60))" "$@" -- \
		"BUDGET=$budget ${list_env[*]} /lab/tests/selftests/guest.sh $options $mmus /results"
}

# For how long no test ends, at most: five minutes is the longest limit in the list.
stall=700
# Options of selftests/guest.sh other than what to run.
list_env=()

# compare NAME C-TAP[,C-TAP]... RUST-TAP OPTIONS [-- BOOT-OPTIONS]: outcome by outcome;
# what differs is run again, on both MMUs in one boot. OPTIONS are selftests/guest.sh's.
compare()
{
	local name=$1 c=$2 rust=$3 options=$4 subset=() only=() id again=$logs/$1-again
	shift 4
	[[ ${1:-} != --subset ]] || { subset=(--subset) && shift; }
	[[ ${1:-} != -- ]] || shift
	if tool selftests/compare.py "${subset[@]}" --differences "$logs/$name.again" "$c" "$rust" \
		>"$logs/$name.compare"; then
		cat "$logs/$name.compare"
		return
	fi
	while read -r id; do
		only+=(-o "$id")
	done <"$logs/$name.again"
	if ((${#only[@]} && $(minutes_left) > 2)); then
		judging=0 boot_list "$name-again" "${only[*]} $options" c,rust "$@" >&2 || :
	fi
	tool selftests/compare.py "${subset[@]}" --rerun "$again/c.tap" "$again/rust.tap" "$c" "$rust" || :
}

# Two halves, so that two boots share the time.
boot_selftests()
{
	local list_env=("PART=$1/2")
	boot_list "selftests-$1" "" c,rust
}

# Rust's own tests ran when the module was loaded. The other half's are the same.
stage_selftests()
{
	local logs_of=$logs/selftests-$1
	compare "selftests-$1" "$logs_of/c.tap" "$logs_of/rust.tap" ""
	[[ $1 != 1 ]] || tool tap.py kunit "$logs_of/rust/kunit" >"$logs/kunit.tap" || :
}

# The list with all of the kernel's checks. Its outcomes are judged by those of the C MMU
# without them.
boot_debug()
{
	local stall=2000 list_env=("PART=$1/2" TIMEOUT_FACTOR=6)
	boot_list "debug-$1" "-s mmu" rust --kernel debug
}

stage_debug()
{
	compare "debug-$1" "$logs/selftests-1/c.tap,$logs/selftests-2/c.tap" \
		"$logs/debug-$1/rust.tap" "" --subset -- --kernel debug
	[[ $1 != 1 ]] || tool tap.py kunit "$logs/debug-1/rust/kunit" >"$logs/kunit-debug.tap" || :
}

# KVM's selftests that have nothing to do with the MMU.
boot_other()
{
	local list_env=(LIST=/lab/tests/selftests/other.list)
	boot_list other "" c,rust
}

stage_other()
{
	local list_env=(LIST=/lab/tests/selftests/other.list)
	compare other "$logs/other/c.tap" "$logs/other/rust.tap" ""
}

# Intel machines, in Bochs. Nothing is run again: it repeats exactly.
boot_intel()
{
	"$TOP/tests/selftests/intel.sh" "$1" "test/intel-$1"
}

stage_intel()
{
	local logs=$logs/intel-$1
	tool selftests/compare.py "$logs/c.tap" "$logs/rust.tap" || :
	tool tap.py kunit "$logs/kunit" >"$logs.kunit.tap" || :
}

# The list on shadow paging only, on both MMUs in one boot.
declare -A shadow=([notdp]=kvm.tdp_mmu=N [nonpt]=kvm_amd.npt=N)
boot_shadow()
{
	boot_list "shadow-$1" "-p ${shadow[$1]}" c,rust
}

stage_shadow()
{
	local logs_of=$logs/shadow-$1
	compare "shadow-$1" "$logs_of/c.tap" "$logs_of/rust.tap" "-p ${shadow[$1]}"
}

# --- running them

# call KIND STAGE: stage_bench for "bench", stage_intel with "pml" for "intel-pml".
call()
{
	if [[ $(type -t "$1_$2") = function ]]; then
		"$1_$2"
	else
		"$1_${2%-*}" "${2##*-}"
	fi
}

minutes_left()
{
	echo $(((deadline - $(date +%s)) / 60))
}

# lacks_time MINUTES: whether fewer are left; then $why says so.
lacks_time()
{
	local left
	left=$(minutes_left)
	why="not run: $left minutes are left, it wants $1"
	((left < $1))
}

# skip STAGE WHY: the one way in which a stage is left out.
skip()
{
	progress "$1: $2"
	printf '1..1\nok 1 - all of %s # SKIP %s\n' "$1" "$2" >"$logs/$1.tap"
}

run_stage()
{
	local stage=$1 start=$SECONDS status why
	call stage "$stage" >"$logs/$stage.tap" 2>"$logs/$stage.log" || {
		status=$?
		why=$(grep '^error: ' "$logs/$stage.log" | tail -n 1) || :
		echo "Bail out! the stage ended with status $status${why:+, $why}, see $logs/$stage.log" \
			>>"$logs/$stage.tap"
	}
	why=''
	if ! grep -q '^1\.\.' "$logs/$stage.tap"; then
		# CI shows nothing but what is printed, and keeps of that the end.
		{
			echo "$stage has no result; its log ends with:"
			tail -n 20 "$logs/$stage.log"
		} >"$logs/$stage.failed"
		why=", the end of its log is printed before the summary"
	fi
	progress "$stage: $(tool tap.py summary "$logs/$stage.tap" | tail -n 1)" \
		"in $((SECONDS - start)) s$why"
}

# A stage, or the boot that it judges; unless there is no time for it.
run_job()
{
	local stage=$1 need why
	need=$(scaled "${minutes[$stage]:-1}")
	if lacks_time $((need + judging)); then
		skip "$stage" "$why"
		return
	fi
	progress "$stage ..."
	if among "$stage" "${booting[@]}"; then
		date +%s >"$logs/$stage.running"
		call boot "$stage" >"$logs/boot-$stage.log" 2>&1 ||
			progress "$stage: $(grep -h '^error: ' "$logs/boot-$stage.log" || echo "the boot failed")"
		rm "$logs/$stage.running"
	else
		run_stage "$stage"
	fi
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

# Whether a stage is wanted and has no result yet.
pending()
{
	wanted "$1" && [[ ! -e $logs/$1.tap ]]
}

# How far the running boots are, by their TAP, and how long they will take at that rate.
how_far()
{
	local running stage started taps
	for running in "$logs"/*.running; do
		[[ -e $running ]] || continue
		stage=${running##*/} stage=${stage%.running} started=$(<"$running")
		# awk reads nothing at all if one of them is missing.
		mapfile -t taps < <(compgen -G "$logs/$stage/*.tap")
		((${#taps[@]})) || continue
		awk -v now="$(date +%s)" -v started="$started" -v stage="$stage" '
			FNR == 1 { name = FILENAME; sub(/\.tap$/, "", name); sub(/.*\//, "", name) }
			/^1\.\./ { plan[name] = substr($1, 4) + 0 }
			/^(not )?ok / { done[name]++ }
			/^not ok / && !/# TODO/ { bad++ }
			END {
				for (name in plan) {
					text = text sprintf(", %s %d of %d", name, done[name], plan[name])
					all += plan[name]; so_far += done[name]
				}
				if (!all)
					exit
				text = stage text
				if (bad)
					text = text sprintf(", %d not ok", bad)
				if (so_far > 3)
					text = text sprintf(", about %d min left",
						((now - started) * (all / so_far - 1) + 59) / 60)
				print text
			}' "${taps[@]}" || :
	done
}

watch_boots()
{
	local line
	while sleep "${LAB_PROGRESS:-60}"; do
		while read -r line; do
			progress "$line"
		done < <(how_far)
	done
}

stages=()
for s in "${@:-${all[@]}}"; do
	case $s in
	selftests|debug) stages+=("$s-1" "$s-2") ;;
	*) stages+=("$s") ;;
	esac
done
for s in "${stages[@]}"; do
	among "$s" "${all[@]}" "${more[@]}" ||
		die "no test stage '$s'; the stages are: selftests debug ${all[*]} ${more[*]}"
done
# The debug kernel's outcomes are judged by those of the C MMU.
for s in 1 2; do
	! wanted "debug-$s" || wanted "selftests-$s" || stages+=("selftests-$s")
done
rm -rf "${logs:?}"
mkdir -p "$logs"
watcher=''
# A job is a process group of its own, so that none of it outlives this. What one of them
# does to a terminal must not stop it: nobody would continue it.
set -m
trap '' TTIN TTOU TSTP
# shellcheck disable=SC2317,SC2329 # called by the trap
end_jobs()
{
	local job
	for job in $(jobs -pr) ${watcher:+"$watcher"}; do
		kill -- "-$job" || :
	done
}
trap end_jobs EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$TOP/tests/calibrate.sh"
# A time limit can be set (LAB_DEADLINE, in seconds since the epoch).
deadline=${LAB_DEADLINE:-$(($(date +%s) + 36000))}

# The debug kernel is the one thing here that is built: with both processors, before they
# are shared.
if wanted debug-1 || wanted debug-2; then
	if ! lacks_time "$(scaled 45)"; then
		why=''
		progress "building the debug kernel, which takes up to $(scaled 13) minutes ..."
		make -C "$TOP" -s debug >"$logs/debug-build.log" 2>&1 || why=failed
	fi
	if [[ $why ]]; then
		for s in debug-1 debug-2; do
			wanted "$s" || continue
			if [[ $why = failed ]]; then
				printf '1..1\nnot ok 1 - all of %s # not built, see %s\n' \
					"$s" "$logs/debug-build.log" >"$logs/$s.tap"
			else
				skip "$s" "$why"
			fi
		done
	fi
fi

# One processor is all that a job uses, so two can run at a time.
free=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
slots=2
(($(nproc) >= 2 && free >= 14)) || slots=1
watch_boots &
watcher=$!
# It is no job of the shell's, which would report its end.
disown "$watcher"
declare -A jobs=()
# Wait until a job has ended, and see that it has left a result, whatever ended it. "wait -n"
# does not tell of a job that ended before it was called.
job_ended()
{
	local pid status=0 stage
	while :; do
		for pid in "${!jobs[@]}"; do
			kill -0 "$pid" 2>/dev/null || break 2
		done
		sleep 0.5
	done
	stage=${jobs[$pid]}
	unset "jobs[$pid]"
	wait "$pid" || status=$?
	((status)) || return 0
	progress "$stage: its job ended with status $status"
	echo "Bail out! its job ended with status $status, see $logs/$stage.log" >>"$logs/$stage.tap"
}
for s in "${all[@]}" "${more[@]}"; do
	pending "$s" || continue
	((${#jobs[@]} < slots)) || job_ended
	run_job "$s" &
	jobs[$!]=$s
done
while ((${#jobs[@]})); do
	job_ended
done
kill -- "-$watcher"
watcher=''
for s in "${booting[@]}"; do
	! pending "$s" || run_stage "$s"
done
files=()
for s in "${all[@]}" reach-notdp kunit kunit-debug "${more[@]}" intel-{pml,ad,noad}.kunit; do
	[[ ! -e $logs/$s.tap ]] || files+=("$logs/$s.tap")
done

echo
for s in "$logs"/*.failed; do
	[[ ! -e $s ]] || cat "$s"
done
tool tap.py summary "${files[@]}"
