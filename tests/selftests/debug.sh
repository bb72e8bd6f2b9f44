#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-debug': the MMU's part of the list of selftests, and a stress, on a
# kernel that checks itself; and bugs that are planted, to see that it would say so.
#   debug.sh lockdep|kasan|kcsan
#   PART=K/N   only the K-th of N parts of the list, without the plants
#   TESTS=     only the tests of mmu.list and other.list with these ids, without the plants
#   MMUS=rust  only on this MMU (c rust)
#   PLANTS=    these plants, or none (those of the kernel)
# build/logs/test-debug/WHICH[-KofN] has c.tap, rust.tap and, of each plant,
# plant-BUG/console.log. Ends with a summary line, as 'make test' does.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

# What each kernel is for, and what it calls the bug that should not escape it. A
# use after free is not found in the same place each time.
declare -A reports=()
smp='' append='kunit.enable=1 kunit.autorun=1' only=()
which=${1:-}
case $which in
lockdep)
	flavour=debug
	reports=([nolock]='WARNING: .*(support/helpers|kvm_rs)'
		[sleep]='BUG: sleeping function called from invalid context') ;;
kasan)
	flavour=kasan
	# KASAN is silent after its first report. With five levels that is the kernel's
	# own at times: an interrupt while identify_cpu() has no feature bits, LA57 among
	# them, makes the direct map look wild.
	append+=" kasan_multi_shot no5lvl"
	# The other is what CONFIG_KVM_PROVE_MMU checks of tokens: one is that of another VM.
	reports=([norcu]='BUG: KASAN: [a-z-]*use-after-free in'
		[token]='WARNING: .*mmu/rust/sync\.rs') ;;
kcsan)
	flavour=kcsan
	# Each test gets both processors. The emulator runs them in turn, and switches to the
	# other where one waits (PAUSE). KCSAN waits to see whether somebody else makes the
	# access that it has picked, so that is when the other runs.
	smp=1
	# KUnit's suites are one thread, and take two minutes here.
	append=''
	# Those in which several have to do with the page tables at once, and that end in
	# minutes: access_tracking-idle and mmu_lock_fairness-2m, whose threads spin, do not.
	only=(mmu_race_test mmu_race-nested memslot_modification_stress_test
	      huge_page_recovery-2m huge_page_recovery-thp demand_paging_test
	      nested_dirty_log_test dirty_log_test-log dirty_log_test-clear
	      dirty_log_test-ring mmu_stress-2m dirty_bits-race dirty_bits-clear dirty_bits-model
	      dirty_bits-nested)
	reports=([race]='BUG: KCSAN: data-race in .*(kvm_rust_mmu|kvm_tdp_mmu_)') ;;
*)	die "debug.sh: unknown kernel '$which'; use lockdep, kasan or kcsan" ;;
esac
part=${PART:-} mmus=${MMUS-c rust}
list=(-s mmu)
if [[ ${TESTS:-} ]]; then
	# Also those that are not run by default.
	read -ra only <<<"$TESTS"
	list=()
	for id in "${only[@]}"; do
		grep -q "^$id " "$TOP"/tests/selftests/{mmu,other}.list || die "debug.sh: there is no test '$id'"
	done
fi
plants=()
[[ $part || ${TESTS:-} ]] || plants=("${!reports[@]}")
[[ ! ${PLANTS+x} ]] || read -ra plants <<<"$PLANTS"
name=test-debug/$which${part:+-${part/\//of}}
logs=$BUILD/logs/$name

make -C "$TOP" -s "$flavour" >&2
mkdir -p "$logs"
# Those that are named may be of either list; the others are mmu.list's.
tests=/lab/tests/selftests/mmu.list
if ((${#only[@]})); then
	tests=/results/tests.list
	cat "$TOP"/tests/selftests/{mmu,other}.list >"$logs/tests.list"
fi
rm -rf "$logs"/{c,rust}{,.tap} "$logs"/*.tap

boot()
{
	"$TOP/scripts/boot.sh" --kernel "$flavour" --smp 2 --thread single --mem 8G \
		--append "hugetlb_cma=3G $append" "$@"
}

# A test passes if the kernel has reported the bug, whatever came of it then.
try_plant()
{
	local bug=$1 log
	"$TOP/scripts/modules.sh" "plant-$bug" "$flavour" >"$logs/plant-$bug.log" 2>&1 ||
		die "the modules with the plant $bug were not built, see $logs/plant-$bug.log"
	boot --name "$name/plant-$bug" --timeout 300 -- \
		"/lab/tests/mutants/guest.sh $bug '${reports[$bug]}'" >&2 || :
	log=$logs/plant-$bug/console.log
	if grep -aqE "${reports[$bug]}" "$log"; then
		echo "ok 1 - plant $bug # $(tr -d '\r' <"$log" | grep -aoE -m1 "${reports[$bug]}.*")"
	else
		echo "not ok 1 - plant $bug # the kernel did not report it, see $log"
	fi
}

files=()
if [[ $mmus ]]; then
	for mmu in $mmus; do
		files+=("$logs/$mmu.tap")
	done
	boot --name "$name" --timeout "${TIMEOUT:-14400}" --stall 2000 -- \
		"LIST=$tests PART=$part SMP=$smp TIMEOUT_FACTOR=6 /lab/tests/selftests/guest.sh \
			${list[*]} ${only[*]/#/-o } ${mmus// /,} /results" || :
fi
for bug in "${plants[@]}"; do
	{
		echo "1..1"
		try_plant "$bug"
	} | tee "$logs/plant-$bug.tap"
	files+=("$logs/plant-$bug.tap")
done
# The C MMU's failures are upstream's, and no reason to fail; those that both have
# are expected.
if [[ " $mmus " = *" c "* && " $mmus " = *" rust "* ]]; then
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/selftests/compare.py" "$logs/c.tap" "$logs/rust.tap" \
		>"$logs/compare.tap" || :
	files=("$logs/compare.tap" "${files[@]:2}")
fi
echo
"$TOP/scripts/in-root" python3 -B "$TOP/tests/tap.py" summary "${files[@]}"
