#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the guest: run a list of KVM selftests on one MMU or on several in turn.
#   guest.sh [-s SUBSET] [-o ID]... [-p PARAMETER=VALUE]... MMU[,MMU]... DIR
# MMU is c or rust. With both, a dozen tests run on one, then the same on the other,
# and so on: a boot that is cut off has the same tests on both.
# -s runs only the tests whose needs name SUBSET, -o only those with these ids.
# -p loads kvm with that parameter (kvm.NAME=V, kvm_amd.NAME=V) for each test; what
# a test needs comes after it, and so wins.
# DIR gets MMU.tap, and DIR/MMU/ gets ID.log (output), ID.splat (kernel reports),
# dmesg.log, and kunit/SUITE.ktap of the KUnit suites that ran when the module was
# loaded first. Each line of a TAP also goes to stdout, behind "MMU.tap| ".
# LIST is the list (mmu.list).
# TIMEOUT_FACTOR multiplies the list's time limits, which are for a quiet machine
# and the lab's kernel (2). On a machine that is not as fast as the one that they are
# for, lab_speed (percent of the time it takes there, see tests/calibrate.sh)
# multiplies them as well.
# BUDGET is how many seconds all of this may take: what cannot run by then is named
# as skipped ("not run: ..."). TURN is how many tests a turn has, if not a dozen.
# SHARE=N gives a test at most N times an equal share of what is left of that, or ten
# seconds if that is more. One that needs more is named as skipped: it must not use up the
# time of many others.
# PART=K/N runs only the K-th of N parts of what is selected.
# SMP=1 gives all processors to every test.
# Comments in the TAP say on what it was run, for tests/selftests/matrix.py: "# mmu",
# "# modules" if these are others (load-as), "# kernel", "# commit", "# date", and
# "# machine" wherever that changes.
# A kernel report (WARN, BUG, lockdep, RCU, Oops) fails the test it follows,
# and the load of the module itself is a test as well.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
list=${LIST:-$here/mmu.list}
selftests=${SELFTESTS:-/lab/selftests/kvm}
kvm_load=${KVM_LOAD:-/lab/kvm-load}
kvm_unload=${KVM_UNLOAD:-/lab/kvm-unload}
mm=/sys/kernel/mm
splats='WARNING:|BUG:|BUG at|Oops|general protection fault|INFO: task|'
splats+='rcu:.*(stall|detected)|suspicious RCU|possible (circular|recursive)|'
splats+='inconsistent lock|held lock freed|bad unlock balance|lock held when|'
splats+='nested lock was not taken|sleeping function called|UBSAN|KASAN|KFENCE|KCSAN|'
splats+='Kernel panic|unable to handle|soft lockup|Call Trace:|kvm: .*hung'

die()
{
	echo "error: selftests/guest.sh: $*"
	exit 1
}

# tap LINE: one line of the current MMU's TAP.
tap()
{
	printf '%s\n' "$*" >>"$dir/$mmu.tap"
	printf '%s.tap| %s\n' "$mmu" "$*"
}

# KCSAN reports the data races of all the kernel. What is tested here are those of the
# MMU: a function from one of its objects is on one of the two stacks, and not because
# an interrupt or the scheduler came in between. Those of upstream's C, in kcsan.known,
# do not count. All stay in dmesg.log.
drop_other_races()
{
	if [[ ${lab_flavour:-} != kcsan ]]; then
		cat
		return
	fi
	awk '
		FILENAME != "-" {
			if (NF == 1) mmu[$1]
			else if ($1 !~ /^#/) known[$1 " / " $2]
			next
		}
		function finish()
		{
			if (race != "" && ours && !(race in known))
				print report
			race = ""
		}
		/BUG: KCSAN: data-race in / {
			finish()
			report = race = $0
			sub(/.*data-race in /, "", race)
			gsub(/ \[[a-z_]*\]/, "", race)
			ours = 0
			next
		}
		race == "" { print; next }
		{ report = report "\n" $0 }
		/=================================$/ { finish() }
		/ by (task|interrupt)/ { other = 0 }
		/ (__schedule|asm_[a-z_]*)\+/ { other = 1 }
		NF > 1 && $NF == "[kvm]" && !other {
			split($(NF - 1), frame, "+")
			if (frame[1] in mmu) ours = 1
		}
		END { finish() }' \
		"$logdir/functions" "$here/kcsan.known" -
}

# Move the kernel's log to LOGDIR. Fails if there is a report, kept in $1.
check_dmesg()
{
	local log lost
	log=$(dmesg)
	dmesg -C
	printf '== %s\n%s\n' "${1##*/}" "$log" >>"$logdir/dmesg.log"
	# To have no memory is no bug, but told with a call trace. It is told so often that the
	# kernel's buffer may have lost the oldest lines: the log then begins within such a report.
	lost=$(awk '/ invoked oom-killer: |, mode:0x.*nodemask=/ { exit }
		/no killable processes|pages hwpoisoned/ { print NR; exit }' <<<"$log")
	[[ ! $lost ]] || echo "# lines of the kernel's log were lost" >>"$1.log"
	log=$(sed ${lost:+-e "1,${lost}d"} -e '/ invoked oom-killer: /,/no killable processes/d' \
		-e '/, mode:0x[0-9a-f]*(.*nodemask=/,/pages hwpoisoned/d' <<<"$log" |
		drop_other_races)
	if grep -qE "$splats" <<<"$log"; then
		printf '%s\n' "$log" >"$1.splat"
		return 1
	fi
}

# Load kvm with parameters, unless it already has them.
load_kvm()
{
	[[ $loaded != "$*" ]] || return 0
	[[ $loaded = none ]] || "$kvm_unload"
	loaded=none
	"$kvm_load" "$mmu" "$@" || return
	engine=$(cat /sys/module/kvm/parameters/mmu_engine 2>/dev/null || echo c)
	[[ $engine = "$mmu" ]] || {
		echo "loaded MMU $mmu, but the module is $engine"
		return 1
	}
	loaded=$*
}

# reserve SIZE N: N huge pages beside those that were reserved before, which are others'.
declare -A reserved=()
reserve()
{
	local file=$mm/hugepages/hugepages-$1kB/nr_hugepages want
	# Not every processor has those of 1 GiB.
	[[ -e $file || $2 != 0 ]] || return 0
	: "${reserved[$1]:=$(<"$file")}"
	want=$((reserved[$1] + $2))
	[[ $(<"$file") != "$want" ]] || return 0
	if (($(<"$file") < want)); then
		# Huge pages come out of what is free in one piece.
		sync
		echo 3 >/proc/sys/vm/drop_caches
		echo 1 >/proc/sys/vm/compact_memory
	fi
	echo "$want" >"$file"
	[[ $(<"$file") = "$want" ]] || {
		echo "got $(<"$file") huge pages of $1 kB, not $want"
		return 1
	}
}

# provide HUGE-2M HUGE-1G LRU-GEN THP: what the memory management has for tests.
provide()
{
	reserve 2048 "$1" &&
	reserve 1048576 "$2" &&
	{ [[ ! -e $mm/lru_gen && $3 = 0 ]] || echo "$3" >$mm/lru_gen/enabled; } &&
	echo "$4" >$mm/transparent_hugepage/enabled
}

# Establish what one test needs, undoing what the one before needed.
setup()
{
	local need params=("${common[@]}") huge2m=0 huge1g=0 lru_gen=0 thp=madvise
	for need in ${1//,/ }; do
		case $need in
		2m=*) huge2m=${need#*=} ;;
		1g=*) huge1g=${need#*=} ;;
		lru_gen) lru_gen=7 ;;
		thp) thp=always ;;
		kvm.*=*|kvm_amd.*=*) params+=("$need") ;;
		esac
	done
	load_kvm "${params[@]}" && provide "$huge2m" "$huge1g" "$lru_gen" "$thp"
}

# What page tables guests have now: the vendor and what it makes of them.
declare -A machine=()
say_machine()
{
	local now m=${MODULES:-/sys/module}
	is() { [[ $(cat "$m/${1%/*}/parameters/${1#*/}" 2>/dev/null) = [Y1] ]]; }
	if ! is kvm/tdp_mmu || { ! is kvm_amd/npt && ! is kvm_intel/ept; }; then
		now=shadow
	elif is kvm_amd/npt; then
		now=amd
	elif is kvm_intel/pml; then
		now=intel-pml
	elif is kvm_intel/eptad; then
		now=intel-ad
	else
		now=intel-noad
	fi
	[[ $now = "${machine[$mmu]:-}" ]] || tap "# machine $now"
	machine[$mmu]=$now
}

# How many seconds are left of BUDGET.
seconds_left()
{
	echo $((${BUDGET:-1000000} - SECONDS))
}

# How many seconds the next test gets at most, with the list's limit of $1.
most()
{
	local limit=$1 share
	((limit <= $(seconds_left))) || limit=$(seconds_left)
	if [[ ${SHARE:-} ]]; then
		share=$(($(seconds_left) * SHARE / (${#ids[@]} * ${#mmus[@]} - begun)))
		((share >= 10)) || share=10
		((limit <= share)) || limit=$share
	fi
	echo "$limit"
}

# Whether too few are left for any test.
over()
{
	(($(seconds_left) < 15))
}

# run_test ID TIMEOUT NEEDS COMMAND: sets status, reason and seconds.
run_test()
{
	local log=$logdir/$1.log start=$EPOCHREALTIME command=$4 cpus=0 limit
	[[ ,$3, != *,smp,* && ! ${SMP:-} ]] || cpus=$(</sys/devices/system/cpu/online)
	status=0 reason=
	if over; then
		status=4 reason="not run: no time is left" seconds=0
		return
	fi
	limit=$(most "$2")
	begun=$((begun + 1))
	if ! setup "$3" >"$log" 2>&1; then
		status=setup reason="setup failed: $(tail -n 1 "$log")"
	else
		say_machine
		# The list's command is words and redirections of ours.
		(cd "$selftests" && exec timeout -k 5 "$limit" taskset -c "$cpus" bash -c "$command") \
			>>"$log" 2>&1 </dev/null || status=$?
	fi
	[[ ,$3, != *,unloads,* ]] || loaded=none
	if ! check_dmesg "$logdir/$1"; then
		status=splat
		reason="kernel report: $(grep -m1 -oE "($splats).*" "$logdir/$1.splat")"
	elif [[ $status = 4 ]]; then
		reason=$(grep -aoE -m1 '(SKIP|Skip|skip).*|Requirement not met.*' "$log" ||
			echo "no reason given")
		reason=${reason#SKIP}
		reason=${reason# - }
	elif [[ $status = 124 || $status = 137 ]] && ((limit < $2)); then
		status=4 reason="not run: cut off after $limit seconds, "
		if over; then
			reason+="no time is left"
		else
			reason+="its share of the time"
		fi
	elif [[ $status = 124 || $status = 137 ]]; then
		reason="timed out after $limit seconds"
	elif [[ $status != 0 && ! $reason ]]; then
		reason="exit status $status"
	fi
	seconds=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $start }")
	# One line, without what TAP gives a meaning to.
	reason=$(tr '#\n' '  ' <<<"${reason:0:200}")
}

subset='' only=() common=()
usage="usage: guest.sh [-s SUBSET] [-o ID]... [-p PARAMETER=VALUE]... MMU[,MMU]... DIR"
while getopts s:o:p: opt; do
	case $opt in
	s) subset=$OPTARG ;;
	o) only+=("$OPTARG") ;;
	p)
		common+=("$OPTARG")
		[[ $OPTARG = kvm.*=* || $OPTARG = kvm_amd.*=* ]] || die "$usage"
		;;
	*) die "$usage" ;;
	esac
done
shift $((OPTIND - 1))
(($# == 2)) || die "$usage"
IFS=, read -ra mmus <<<"$1"
dir=$2
for mmu in "${mmus[@]}"; do
	[[ $mmu = c || $mmu = rust ]] || die "there is no MMU '$mmu'; $usage"
	mkdir -p "$dir/$mmu/kunit"
	rm -f "$dir/$mmu.tap"
done
[[ -d $selftests ]] || die "no selftests at $selftests; run 'make selftests'"

factor=$((${TIMEOUT_FACTOR:-2} * ${lab_speed:-100}))
ids=() timeouts=() needs=() commands=() reasons=()
while read -r id limit need command; do
	[[ $id && $id != \#* ]] || continue
	[[ ! $subset || ,$need, = *,$subset,* ]] || continue
	[[ ${#only[@]} = 0 || " ${only[*]} " = *" $id "* ]] || continue
	ids+=("$id") timeouts+=($((limit * factor / 100))) needs+=("$need")
	commands+=("${command%% # *}") reasons+=("${command#*" # "}")
done <"$list"
if [[ ${PART:-} ]]; then
	# Neighbours are alike: spread them, so that each part takes as long.
	part=${PART%/*} parts=${PART#*/}
	for i in "${!ids[@]}"; do
		((i % parts == part - 1)) || unset "ids[i]" "timeouts[i]" "needs[i]" "commands[i]" "reasons[i]"
	done
	ids=("${ids[@]}") timeouts=("${timeouts[@]}") needs=("${needs[@]}")
	commands=("${commands[@]}") reasons=("${reasons[@]}")
fi
((${#ids[@]})) || die "no test in $list is selected"

# access_tracking_perf_test moves itself to a memory cgroup.
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control || :

use()
{
	mmu=$1 logdir=$dir/$1 loaded=none
}

# The first turn of an MMU begins with its module. KUnit's suites run then, and would run
# again each time it is loaded. Fails if there can be no second turn.
begin()
{
	local suite name
	if [[ ${lab_flavour:-} = kcsan ]]; then
		find "/build/mod-$mmu-kcsan/arch/x86/kvm/mmu" -name '*.o' -exec nm --defined-only {} + |
			awk 'tolower($2) == "t" { print $3 }' >"$logdir/functions"
		[[ -s $logdir/functions ]] || die "there are no objects of the MMU $mmu"
		[[ $(</sys/kernel/debug/kcsan) = *"enabled: 1"* ]] || die "KCSAN is switched off"
	fi
	check_dmesg "$logdir/boot" || tap "# kernel report before kvm was loaded, see boot.splat"
	if ! load_kvm >"$logdir/kvm-load.log" 2>&1; then
		tap "not ok 1 - kvm-load # $(tail -n 1 "$logdir/kvm-load.log")"
		tap "Bail out! kvm does not load on MMU $mmu"
		return 1
	fi
	say_machine
	if ! check_dmesg "$logdir/kvm-load"; then
		tap "not ok 1 - kvm-load # kernel report, see kvm-load.splat"
	else
		tap "ok 1 - kvm-load"
	fi
	for suite in /sys/kernel/debug/kunit/*/results; do
		[[ -e $suite ]] || continue
		name=${suite%/results}
		cat "$suite" >"$logdir/kunit/${name##*/}.ktap"
	done
	[[ $mmu != rust || ! -w $kunit_filter ]] || echo none >"$kunit_filter"
}
kunit_filter=/sys/module/kunit/parameters/filter_glob

# run_one I: the I-th of the selected tests, and its line of TAP.
run_one()
{
	local i=$1 line
	run_test "${ids[i]}" "${timeouts[i]}" "${needs[i]}" "${commands[i]}"
	line="$((i + 2)) - ${ids[i]} #"
	if [[ ,${needs[i]}, = *,expect=chance,* && $status != setup && $status != splat ]]; then
		reason="its outcome is chance: ${reasons[i]} (this time: ${reason:-passed})"
		status=4
	fi
	case $status in
	0) tap "ok $line time=${seconds}s" ;;
	4)
		[[ ,${needs[i]}, != *,expect=rust,* ]] ||
			reason="is for the Rust MMU only: ${reasons[i]} ($reason)"
		tap "ok $line SKIP $reason"
		;;
	*)
		[[ ,${needs[i]}, != *,expect=cfail,* ]] ||
			reason="TODO fails on C too: ${reasons[i]} ($reason)"
		[[ ,${needs[i]}, != *,expect=better,* ]] ||
			reason="TODO must pass on Rust only: ${reasons[i]} ($reason)"
		tap "not ok $line $reason time=${seconds}s"
		;;
	esac
}

# Every turn ends with the module unloaded: a reference that leaked, or a page that is
# freed late, shows up there. The last turn reports what became of it.
declare -A unloading=()
end_turn()
{
	provide 0 0 0 madvise >"$logdir/kvm-unload.log" 2>&1 || :
	if ! "$kvm_unload" >>"$logdir/kvm-unload.log" 2>&1; then
		unloading[$mmu]=$(tail -n 1 "$logdir/kvm-unload.log")
	elif ! check_dmesg "$logdir/kvm-unload"; then
		unloading[$mmu]="kernel report, see kvm-unload.splat"
	fi
}

begun=0 at_once=${#ids[@]}
((${#mmus[@]} == 1)) || at_once=${TURN:-12}
declare -A gone=()
for mmu in "${mmus[@]}"; do
	tap "TAP version 13"
	tap "1..$((${#ids[@]} + 2))"
	tap "# mmu $mmu"
	[[ ! ${LOAD_AS:-} ]] || tap "# modules $LOAD_AS"
	tap "# kernel ${lab_flavour:-lab}"
	tap "# commit ${lab_commit:-unknown}"
	tap "# date ${lab_date:-unknown}"
done
for ((from = 0; from < ${#ids[@]}; from += at_once)); do
	for mmu in "${mmus[@]}"; do
		[[ ! ${gone[$mmu]:-} ]] || continue
		use "$mmu"
		if ((from == 0)) && ! begin; then
			gone[$mmu]=1
			continue
		fi
		# What is only skipped wants no module.
		loads=1
		((!from)) || ! over || loads=''
		for ((i = from; i < from + at_once && i < ${#ids[@]}; i++)); do
			run_one "$i"
		done
		[[ ! $loads ]] || end_turn
	done
done
for mmu in "${mmus[@]}"; do
	[[ ! ${gone[$mmu]:-} ]] || continue
	last="$((${#ids[@]} + 2)) - kvm-unload"
	if [[ ${unloading[$mmu]:-} ]]; then
		tap "not ok $last # ${unloading[$mmu]}"
	else
		tap "ok $last"
	fi
done
