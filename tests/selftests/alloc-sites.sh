#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make alloc-sites': let each allocation of the Rust MMU fail on the debug kernel,
# and count which of its allocation sites have been among them.
#   alloc-sites.sh [WAY]...    (tdp nested notdp nonpt; none: no boot)
# Each way is one boot, with its log in build/logs/alloc-sites/WAY; what is counted
# is what all of them have left there. build/logs/alloc-sites/sites is for tests/selftests/matrix.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

declare -A how=([tdp]='' [nested]='' [notdp]=kvm.tdp_mmu=N [nonpt]=kvm_amd.npt=0)
ways=("$@")
(($#)) || ways=(tdp nested notdp nonpt)
[[ ${ways[*]} != none ]] || ways=()
for way in "${ways[@]}"; do
	option=''
	[[ $way != nested ]] || option=-2
	say "alloc-sites: $way"
	"$TOP/scripts/boot.sh" --kernel debug --name "alloc-sites/$way" --smp 2 --thread single \
		--timeout 900 --append log_buf_len=16M -- "
		echo 8 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
		/lab/kvm-load rust ${how[$way]}
		dmesg -C
		taskset -c 0 /lab/selftests/kvm/x86/mmu_enomem_test -v $option"
done
{
	# What each boot was told of itself.
	sed -n 's/.*lab_commit=\([^ ]*\) lab_date=\([^ ]*\).*/# \2 \1/p' \
		"$BUILD"/logs/alloc-sites/*/env | sort -u
	"$TOP/scripts/in-root" python3 -B "$TOP/tests/selftests/alloc-sites.py" "$BUILD/mod-rust-debug" \
		"$BUILD"/logs/alloc-sites/*/dmesg
} | tee "$BUILD/logs/alloc-sites/sites"
