#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make build-matrix': compile the MMU, its Rust and the C beside it, with each option of
# the kernel that it depends on switched over, with GCC on the configuration of Debian's
# kernel and with clang on that of the lab. TAP on stdout, logs in build/logs/build-matrix.
# An option that changes no object has not been switched over, and fails.
#   run.sh [gcc|clang] [OPTION]...       only these, after "base", which switches nothing
#                                        over
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

all=(base HYPERV KVM_HYPERV KVM_XEN KVM_SMM KVM_AMD_SEV INTEL_TDX_HOST KVM_PROVE_MMU)
if [[ ! ${LAB_INSIDE:-} ]]; then
	LAB_RELEASE=$("$TOP/scripts/package/debian-kernel.sh" ${KERNEL:+"$KERNEL"})
	export LAB_RELEASE LAB_ENV=LAB_RELEASE
fi
enter_root "$@"

compilers=(gcc clang)
case ${1:-} in
gcc|clang) compilers=("$1") && shift ;;
esac
options=(base)
for option in "${@:-${all[@]}}"; do
	[[ $option = base ]] || options+=("$option")
done
# The last two are what SEV and TDX change.
objects=(mmu/rust/rust_mmu.o mmu/rust/rust_shim.o mmu/mmu.o mmu/spte.o x86.o svm/svm.o vmx/main.o)
logs=$BUILD/logs/build-matrix
mkdir -p "$logs"

# variant BASE OPTION: BASE by symbolic links, with a copy of include/ in which OPTION has
# the other value (see modules.sh). Says which one.
variant()
{
	local base=$1 option=$2 o=(CONFIG_"$2") f name to=off
	rm -rf "$work"
	mkdir -p "$work"
	for f in "$base"/* "$base"/.config; do
		name=${f##*/}
		[[ $name = @(include|source|Makefile) ]] || ln -s "$f" "$work/$name"
	done
	cp -a "$base/include" "$work/"
	[[ $option != base ]] || { echo "as it is" && return; }
	# One without the other is none.
	[[ $option != INTEL_TDX_HOST ]] || o+=(CONFIG_KVM_INTEL_TDX)
	grep -qx "${o[0]}=[ym]" "$base/include/config/auto.conf" || to=on
	# What it selects; others may have selected that as well, so it stays when SEV goes.
	[[ $option-$to != KVM_AMD_SEV-on ]] || o+=(CONFIG_ARCH_HAS_CC_PLATFORM
		CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
		CONFIG_HAVE_KVM_ARCH_GMEM_{CONVERT,RECLAIM,INVALIDATE,POPULATE})
	for name in "${o[@]}"; do
		sed -i "/^$name=/d" "$work/include/config/auto.conf"
		sed -i -E "/ $name(_MODULE)? /d" "$work/include/generated/autoconf.h"
		sed -i "/^--cfg=$name\(=.*\)\?\$/d" "$work/include/generated/rustc_cfg"
		[[ $to = on ]] || continue
		echo "$name=y" >>"$work/include/config/auto.conf"
		echo "#define $name 1" >>"$work/include/generated/autoconf.h"
		printf -- '--cfg=%s\n--cfg=%s="y"\n' "$name" "$name" >>"$work/include/generated/rustc_cfg"
	done
	echo "$to"
}

n=0 status=0
echo "1..$((${#compilers[@]} * ${#options[@]}))"
for c in "${compilers[@]}"; do
	if [[ $c = gcc ]]; then
		base=$BUILD/linux-$LAB_RELEASE
		cc=(CC="$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\).*/\1/p' "$base/.config")")
	else
		base=$BUILD/linux cc=(LLVM=-19)
	fi
	work=$BUILD/out-matrix-$c mod=$BUILD/mod-matrix-$c
	[[ -e $base/include/config/auto.conf ]] ||
		die "nothing is built in $base; run 'make modules-deb' (gcc) or 'make lab' (clang) first"
	base_made=''
	for option in "${options[@]}"; do
		n=$((n + 1))
		log=$logs/$c-$option.log
		to=$(variant "$base" "$option")
		# Kbuild does not see that an option has changed here, so compile all of it anew.
		rm -rf "$mod"
		mkdir -p "$mod/mmu/rust"
		failed=''
		make -C "$SRC" O="$work" "${cc[@]}" -j"$JOBS" M=arch/x86/kvm MO="$mod" \
			"${objects[@]}" >"$log" 2>&1 || failed=1
		warned=$(grep -E '^warning|: warning: ' "$log" | grep -v 'compiler differs') || :
		if [[ ! $failed && ! $warned ]]; then
			made=$(cd "$mod" && sha256sum "${objects[@]}")
			if [[ $option = base ]]; then
				base_made=$made
			elif [[ $made = "$base_made" ]]; then
				echo "not ok $n - $c: $option $to # no object has changed"
				status=1
				continue
			fi
			echo "ok $n - $c: $option $to"
		else
			echo "not ok $n - $c: $option $to # see $log"
			status=1
		fi
	done
	rm -rf "$work"
done
exit "$status"
