#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make migrate': live migration between two QEMUs on the booted fork, on the C
# MMU and on the Rust MMU in one boot. All scenarios in real time, in several
# boots (parts) of a few minutes; and those that measure stalls where one
# instruction is one nanosecond.
#   run.sh                      all parts, then the tables
#   run.sh     part PART...     only these parts
#   run.sh     table [FILE]...  the tables of the parts that were run; a document
#                               FILE.md gets them between its marks, FILE.svg the plot;
#                               PARTS=some: of the last "run.sh SCENARIO..."
#   run.sh     show [PROBLEM...]
#                               what tools/kvm/mmu_lock_stat shows of a guest that suffers from each
#                               illness (of illnesses.py; all), on the Rust MMU: puts the tables, and
#                               two pictures of "storm", into the documentation
#   run.sh     modes [PART]... [FILE.md]
#                               what a guest feels that is logged by faults, and by D bits, where time
#                               is exact (modes-meter), and how far auto-converge throttles a fast
#                               writer (modes-writer): these parts, both by default, then their tables
#   run.sh     ci               two scenarios on the Rust MMU, for 'make test'
#   run.sh     SCENARIO...      only these scenarios, without the tables
# BACKENDS=, of hugetlb and thp: what backs the guest's memory there (both). MMUS=, of c and
# rust: which of them (both). DIRTY_LOG=dirty_bits: how Rust finds writes. EXACT=1: in time where
# one instruction is one nanosecond, and with 128 MiB. QEMU=ours: with the QEMU of contrib/qemu,
# which splits huge pages ahead, in two threads, on Rust.
# JSON, plot and logs in build/logs/migrate, or build/logs/migrate-ours.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

src=$TOP/tests/migrate out=$BUILD/migrate
build()
{
	local flags=(--target=x86_64-elf -ffreestanding -fno-pic -fno-stack-protector
		     -mno-red-zone -mgeneral-regs-only -Os -Wall -Werror)
	clang-19 "${flags[@]}" -c "$src/boot.S" -o "$out/boot.o"
	clang-19 "${flags[@]}" -c "$src/guest.c" -o "$out/guest.o"
	ld.lld-19 -static -e 0 -T "$src/guest.lds" "$out"/{boot,guest}.o -o "$out/guest.elf"
	llvm-objcopy-19 -O binary "$out/guest.elf" "$out/guest.rom"
	[[ $(stat -c %s "$out/guest.rom") = 65536 ]] || die "the guest does not fit 64 KiB"
	clang-19 -O2 -Wall -Werror -shared -fPIC -pthread -D_GNU_SOURCE \
		-idirafter "$TOP/arch/x86/include/uapi" -o "$out/split_ahead.so" "$src/split_ahead.c"
	clang-19 -O2 -Wall -Werror -shared -fPIC -D_GNU_SOURCE \
		-idirafter "$TOP/arch/x86/include/uapi" -o "$out/hold_split.so" "$src/hold_split.c"
}
if [[ ${LAB_INSIDE:-} ]]; then
	build
	exit
fi

# A boot each: its scenarios, and what backs the guest's memory.
declare -A scenarios=(
	[1]="completes cancelled cancel_running eager_off"
	[2]="back_and_forth eager_flipped dirty_ring split_ahead"
	[3]="multifd auto_converge post_copy notifiers hotplug"
	[exact]="completes cancelled cancel_running split_ahead"
	[meter]=completes
	[writer]=fast_writer
)
parts=({hugetlb,thp}-{1,2,3} hugetlb-exact)
modes=(modes-meter modes-writer)
logs=$BUILD/logs/migrate${QEMU:+-$QEMU}
[[ ! ${QEMU:-} ]] || scenarios[1]+=" split_cancelled"
case ${QEMU:-} in
"") ;;
ours)
	[[ -x $BUILD/qemu/qemu-system-x86_64 ]] || die "contrib/qemu is not built; run 'make qemu'" ;;
*)	die "QEMU=$QEMU: the only other one is QEMU=ours" ;;
esac

# boot NAME SCENARIOS BACKENDS DRIVER-OPTIONS MIB BOOT-OPTIONS...
boot()
{
	local name=$1 options
	# shellcheck disable=SC2086 # words
	options="$4 ${QEMU:+--ours 2} $(printf -- '-o %s ' $2)"
	rm -rf "${BUILD:?}/logs/$name"
	mkdir -p "$BUILD/logs/$name"
	printf '%s\n' "${MMUS:-c rust}" "$3" "$2" >"$BUILD/logs/$name/wanted"
	"$TOP/scripts/boot.sh" --name "$name" --smp 1 --mem 4G "${@:6}" \
		${DIRTY_LOG:+--append "kvm.dirty_log=$DIRTY_LOG"} -- \
		"MMUS='${MMUS:-c rust}' /lab/tests/migrate/guest.sh '$options' '$3' $5"
}

part()
{
	local wanted=${scenarios[${1#*-}]:-} how
	[[ " ${parts[*]} ${modes[*]} " = *" $1 "* ]] ||
		die "migrate/run.sh: no part '$1'; the parts are: ${parts[*]} ${modes[*]}"
	case $1 in
	# The writer leaves nothing to others on its processor, unless it is throttled. As it hardly
	# sleeps, the emulator has nothing to skip: there an instruction is 16 ns, and all that is of
	# time is 16 times as slow.
	modes-*)
		[[ $1 = *-meter ]] && how=("" 128 --smp 1) || how=("-s 16" 24 --smp 2 --shift 4)
		MMUS=${MMUS:-c rust rust-bits} boot "${logs##*/}/$1" "$wanted" hugetlb "${how[@]}" \
			--icount --timeout 1800 ;;
	*-exact)
		boot "${logs##*/}/$1" "$wanted" "${1%-*}" "" 128 --icount --timeout 1200 ;;
	*)	boot "${logs##*/}/$1" "$wanted" "${1%-*}" "-s 40" 64 --thread single --timeout 1200 ;;
	esac
}

table()
{
	[[ ! ${PARTS:-} ]] || read -ra parts <<<"$PARTS"
	printf '%s\n' "${parts[@]}" >"$logs/parts"
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/migrate/report.py" "$@" "$logs"
}

mkdir -p "$out"
"$TOP/scripts/in-root" "$TOP/tests/migrate/run.sh"

status=0
case ${1:-} in
"")
	rm -rf "${logs:?}"
	for p in "${parts[@]}"; do
		part "$p" || status=1
	done
	table || status=1 ;;
part)
	for p in "${@:2}"; do
		part "$p" || status=1
	done ;;
table)
	table "${@:2}" || status=1 ;;
show)
	ill=("${@:2}")
	# What "writes" finds that leaving the guest takes, "clear" and "storm" are compared with.
	(($# > 1)) || ill=(enable writes clear storm nx cpu)
	MMUS=rust boot migrate/show "${ill[*]}" thp "" 64 --icount --smp 2 --timeout 1200 || exit
	docs=$TOP/Documentation/virt/kvm/x86
	for name in "${ill[@]}"; do
		{ printf '\n::\n\n'; sed 's/./  &/' "$logs/show/rust/$name.txt"; echo; } |
			"$TOP/tests/into.py" "$docs/rust-mmu.rst" "$name"
	done
	[[ " ${ill[*]} " != *" storm "* ]] || for picture in table record; do
		cp "$logs/show/rust/$picture.svg" "$docs/mmu-lock-$picture.svg"
	done ;;
modes)
	shift
	chosen=()
	while [[ ${1:-} = modes-* ]]; do
		chosen+=("$1")
		shift
	done
	((${#chosen[@]})) || chosen=("${modes[@]}")
	for p in "${chosen[@]}"; do
		part "$p" || status=1
	done
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/migrate/report.py" --modes "$@" "${chosen[@]/#/$logs/}" ||
		status=1 ;;
ci)
	QEMU='' MMUS=rust boot test/migrate "completes cancelled" hugetlb "" 64 --icount --timeout 600 ||
		status=1 ;;
*)
	how=("-s 40" 64 --thread single)
	[[ ! ${EXACT:-} ]] || how=("" 128 --icount)
	boot "${logs##*/}/some" "$*" "${BACKENDS:-hugetlb thp}" "${how[@]}" --timeout 1800 ||
		status=1 ;;
esac
exit "$status"
