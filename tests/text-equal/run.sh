#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# With KVM_RUST_MMU=n, is the code of arch/x86/kvm and virt/kvm upstream's?
# Compares the executable sections of every object with those of the pristine
# tree, byte for byte, and their relocations by symbol. Tables of line numbers
# are not code, and may differ.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

ours=$BUILD/mod-c theirs=$BUILD/mod-pristine
for d in "$ours" "$theirs"; do
	[[ -d $d ]] || die "no modules in $d; run 'make kernel pristine'"
done

# The instructions of all code sections, with relocations in their places; but
# for where in the pool a string lies: the pool has the names of source files,
# and the two trees are in folders whose names differ in length.
code()
{
	llvm-objdump-19 -dr --no-show-raw-insn --no-leading-addr "$1" |
		sed -E '/file format/d; s/(\.rodata\.str[0-9.]*)\+0x[0-9a-f]+/\1/'
}

compared=0 different=()
while read -r object; do
	if [[ ! -e $ours/$object ]]; then
		different+=("$object (missing)")
	elif ! cmp -s <(code "$ours/$object") <(code "$theirs/$object"); then
		different+=("$object")
	fi
	compared=$((compared + 1))
done < <(cd "$theirs" && find arch virt -name '*.o' ! -name '*.mod.o' ! -name '.*' \
	! -name kvm.o ! -name kvm-amd.o ! -name kvm-intel.o | sort)

((compared)) || die "there are no objects in $theirs; run 'make pristine'"
echo "compared $compared objects, ${#different[@]} differ"
((!${#different[@]})) || die "code differs from upstream's: ${different[*]}"
