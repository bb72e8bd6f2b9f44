#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make hw-check', as root: see on this machine, on which the package of 'make modules-deb'
# is installed, whether the MMU works on its TLB, and what it costs.
#   run.sh [MINUTES]           how long all of it may take (20)
#   run.sh machine             only say whether it can be checked
#   run.sh build               only build
# build/hw-check/report.txt and report.json are what to send in.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

src=$TOP/tests/hw-check out=$BUILD/hw-check
# What 'make hw-check' needs beside the selftests.
build()
{
	local flags=(--target=x86_64-elf -ffreestanding -fno-pic -fno-stack-protector
		     -mno-red-zone -mgeneral-regs-only -O2 -Wall -Wextra -Werror)
	local user=(clang-19 -O2 -Wall -Wextra -Werror -static -pthread
		    -isystem "$BUILD/selftests/headers/usr/include")
	mkdir -p "$out"
	clang-19 "${flags[@]}" -c "$src/tlb_guest.c" -o "$out/guest.o"
	ld.lld-19 -static -e start -T "$src/tlb_guest.lds" "$out/guest.o" -o "$out/guest.elf"
	llvm-objcopy-19 -O binary "$out/guest.elf" "$out/guest.bin"
	"${user[@]}" -DTLB_GUEST="\"$out/guest.bin\"" -o "$out/tlb" "$src/tlb.c"
	"${user[@]}" -o "$out/mmu_bench" "$TOP/tests/bench/mmu_bench.c"
}
if [[ ${LAB_INSIDE:-} ]]; then
	build
	exit
fi
case ${1:-} in
build)
	mkdir -p "$BUILD/migrate"
	"$TOP/scripts/in-root" "$src/run.sh"
	"$TOP/scripts/in-root" "$TOP/tests/migrate/run.sh"
	exit ;;
machine)
	mkdir -p "$out"
	exec "$src/modules.sh" "$out/modules" ;;
esac

minutes=${1:-20}
if [[ $minutes != +([0-9]) ]] || ((minutes < 5 || minutes > 1440)); then
	die "MINUTES=$minutes is not from 5 to 1440"
fi
mkdir -p "$out"
"$src/modules.sh" "$out/modules"
"$src/run.sh" build
# shellcheck disable=SC2317,SC2329 # called by the trap
reload()
{
	sh "$TOP/scripts/package/kvm-rs-reload" >&2
}
trap reload EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
eval "$(guest_env "$(uname -r)")"
mkdir -p "$out/results"
status=0
LAB_ENV="lab_commit lab_date" "$TOP/scripts/in-root" "$src/check.sh" "$BUILD" "$out/modules" \
	"$out/results" "$minutes" || status=$?
for f in report.txt report.json; do
	[[ ! -e $out/results/$f ]] || cp "$out/results/$f" "$out/"
done
[[ -e $out/results/report.json ]] || die "the checks did not come to their end; logs: $out/results"
say "to send in: $out/report.txt $out/report.json"
exit "$status"
