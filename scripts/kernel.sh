#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Configure and build vmlinux:  kernel.sh [lab|debug|kasan|kcsan]
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
enter_root "$@"

flavour=${1:-lab}
out=$BUILD/linux$(suffix_of "$flavour")
mkdir -p "$out"

configs=("$TOP/configs/lab.config")
[[ $flavour = lab ]] || configs+=("$TOP/configs/$flavour.config")
cat "${configs[@]}" >"$out/.lab.config"
# Without the hook series, as while it is being written, there is no option.
if grep -qs KVM_RUST_MMU "$SRC/arch/x86/kvm/mmu/Kconfig"; then
	cat "$TOP/configs/rust.config" >>"$out/.lab.config"
fi

# LOCALVERSION= (empty): the release must not depend on the state of the git tree.
mk=(make -C "$SRC" O="$out" LLVM=-19 LOCALVERSION=)
"${mk[@]}" -s KCONFIG_ALLCONFIG="$out/.lab.config" allnoconfig

# Kconfig silently drops an option whose dependencies are not met.
missing=$(awk '
	/^# CONFIG_[A-Z0-9_]+ is not set$/ { want[$2] = "n" }
	/^CONFIG_/ { i = index($0, "="); want[substr($0, 1, i - 1)] = substr($0, i + 1) }
	END {
		while ((getline line <ARGV[2]) > 0)
			if (line ~ /^CONFIG_/) {
				i = index(line, "=")
				have[substr(line, 1, i - 1)] = substr(line, i + 1)
			}
		for (o in want)
			if ((o in have ? have[o] : "n") != want[o])
				printf "%s=%s ", o, want[o]
	}' "$out/.lab.config" "$out/.config" </dev/null)
[[ -z $missing ]] ||
	die "the $flavour configuration asks for what Kconfig does not grant: $missing; see configs/ and the dependencies in build/src"

# KVM's modules are built apart, twice (modules.sh), so not once more here. The
# make variable only keeps kbuild out of arch/x86/kvm: the code still sees KVM=m.
"${mk[@]}" -j"$JOBS" CONFIG_KVM= all
