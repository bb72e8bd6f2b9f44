#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# In the guest of scripts/boot.sh, as if it were a machine: a little of what 'make hw-check'
# does.   guest.sh MODULES OUT [MINUTES [quick]]
# MODULES is the end of the name of a directory: /build/mod-MODULES has the modules with the
# MMU in Rust; those with the MMU in C are of the same kernel. OUT gets the report.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=tests/hw-check/take.sh
. "$here/take.sh"
modules=$1 out=$2
shift 2
suffix=''
[[ ${lab_flavour:-lab} = lab ]] || suffix=-$lab_flavour
dir=$(mktemp -d)
for m in irqbypass kvm kvm-amd; do
	take "$dir/c" "/build/mod-c$suffix/$m.ko"
	take "$dir/rust" "/build/mod-$modules$suffix/$m.ko"
done
mkdir -p "$out"
exec "$here/check.sh" /build "$dir" "$out" "${1:-10}" "${@:2}"
