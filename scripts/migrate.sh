#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make migrate': live migration between two QEMUs on the booted fork, on the C
# MMU and on the Rust MMU in one boot, in two boots: all scenarios in real time,
# and those that measure stalls where one instruction is one nanosecond.
#   migrate.sh [SCENARIO]...   only these scenarios, in the first boot only
# BACKENDS=, of hugetlb and thp: what backs the guest's memory there (both).
# Tables on standard output, JSON and the plot in build/logs/migrate*.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

src=$TOP/tests/guest/migrate out=$BUILD/migrate
build()
{
	local flags=(--target=x86_64-elf -ffreestanding -fno-pic -fno-stack-protector
		     -mno-red-zone -mgeneral-regs-only -Os -Wall -Werror)
	clang-19 "${flags[@]}" -c "$src/boot.S" -o "$out/boot.o"
	clang-19 "${flags[@]}" -c "$src/guest.c" -o "$out/guest.o"
	ld.lld-19 -static -e 0 -T "$src/guest.lds" "$out"/{boot,guest}.o -o "$out/guest.elf"
	llvm-objcopy-19 -O binary "$out/guest.elf" "$out/guest.rom"
	[[ $(stat -c %s "$out/guest.rom") = 65536 ]] || die "the guest does not fit 64 KiB"
}
if [[ ${LAB_INSIDE:-} ]]; then
	build
	exit
fi

mkdir -p "$out"
"$TOP/scripts/in-root" "$TOP/scripts/migrate.sh"

# migrate NAME DRIVER-OPTIONS BACKENDS MIB BOOT-OPTIONS...
migrate()
{
	local name=$1 options=$2 backends=$3 mib=$4
	shift 4
	rm -rf "${BUILD:?}/logs/$name"
	"$TOP/scripts/boot.sh" --name "$name" --smp 1 --mem 4G "$@" -- \
		"/lab/guest/migrate/run.sh '$options' '$backends' $mib" || status=1
}

status=0 backends=${BACKENDS:-hugetlb thp}
if (($#)); then
	migrate migrate "-s 40 $(printf -- '-o %s ' "$@")" "$backends" 64 \
		--thread single --timeout 1800
	exit "$status"
fi
migrate migrate "-s 40" "$backends" 64 --thread single --timeout 2400
migrate migrate-exact "-o completes -o cancel_running" hugetlb 128 --icount --timeout 1800
"$TOP/scripts/in-root" python3 -B "$TOP/scripts/migrate-table.py" "$BUILD/logs" || status=1
exit "$status"
