#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# In the guest of scripts/boot.sh, as if it were a machine: a little of what 'make hw-check'
# does.   guest.sh MODULES OUT [MINUTES [quick]]
# MODULES is the end of the name of a directory: /build/mod-MODULES has the modules with the
# MMU in Rust; those with the MMU in C are of the same kernel. OUT gets the report.
set -euo pipefail
modules=$1 out=$2
shift 2
suffix=''
[[ ${lab_flavour:-lab} = lab ]] || suffix=-$lab_flavour
dir=$(mktemp -d)
for mmu in c rust; do
	from=/build/mod-$modules$suffix
	[[ $mmu = rust ]] || from=/build/mod-c$suffix
	mkdir "$dir/$mmu"
	for m in irqbypass kvm kvm-amd; do
		cp "$from/$m.ko" "$dir/$mmu/"
		echo "${m/-/_} $m.ko"
	done >"$dir/$mmu/list"
done
mkdir -p "$out"
exec "$(dirname "$(realpath "$0")")/check.sh" /build "$dir" "$out" "${1:-10}" "${@:2}"
