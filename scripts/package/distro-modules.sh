#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build KVM's modules with the MMU in Rust for a distribution's kernel, with the compiler
# and the configuration of that, and see whether they fit it.
#   distro-modules.sh RELEASE       (debian-kernel.sh has fetched it)
#   distro-modules.sh check RELEASE [DIR]   only look at what is in DIR
# build/mod-rust-RELEASE has ours, build/mod-c-RELEASE the distribution's own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
enter_root "$@"

only_check=''
[[ ${1:-} != check ]] || { only_check=1 && shift; }
release=${1:?distro-modules.sh: no RELEASE}
dir=$(kernel_dir "$release")
[[ -e $dir/.complete ]] || die "the kernel $release is not here; run scripts/package/debian-kernel.sh $release"
headers=$dir/usr/src/linux-headers-$release modules=$dir/lib/modules/$release/kernel
for f in .config Module.symvers vmlinux; do
	[[ -s $headers/$f ]] ||
		die "the headers of $release have no $f, so nothing can be built or checked against that kernel; use one that has it (KERNEL=)"
done
out=$BUILD/linux-$release mod=${2:-$BUILD/mod-rust-$release} stock=$BUILD/mod-c-$release
log=$BUILD/logs/modules-$release.make
mkdir -p "$out" "$stock" "$BUILD/logs"

# of OPTION: its value in the distribution's configuration.
of()
{
	sed -n "s/^CONFIG_$1=\"\{0,1\}\(.*[^\"]\)\"\{0,1\}\$/\1/p" "$headers/.config"
}

# --- is everything as it was when the distribution built its kernel?

tools()
{
	local version want have
	version=$(make -s -C "$SRC" kernelversion)
	[[ $release = "$version"[+-]* ]] ||
		die "the kernel $release is not of Linux $version, which build/src is; take another KERNEL=, or the source of that one (KSRC=)"
	cc=$(of CC_VERSION_TEXT)
	cc=${cc%% *}
	want=$(of GCC_VERSION)
	have=$("$SRC/scripts/cc-version.sh" "$cc" 2>/dev/null | cut -d' ' -f2) || have=none
	[[ $want && $have = "$want" ]] ||
		die "$release was built with $(of CC_VERSION_TEXT), but $cc here is ${have:-none}; use a toolchain root of that release"
	want=$(of RUSTC_VERSION_TEXT)
	[[ $want ]] || die "the kernel $release is configured without RUST; use one that has CONFIG_RUST=y"
	have=$("${RUSTC:-rustc}" --version 2>/dev/null) || have="not installed"
	[[ $have = "$want" ]] ||
		die "rustc is '$have', and $release was built with '$want', so that types of Rust may differ; install that version"
	want=$(of PAHOLE_VERSION)
	have=$("$SRC/scripts/pahole-version.sh" "${PAHOLE:-pahole}") || :
	[[ $have = "$want" ]] ||
		die "pahole is version $have, and $release was built with $want, so that Kconfig would change structures; install dwarves of that version"
}

configure()
{
	local changed
	{
		cat "$headers/.config"
		echo CONFIG_KVM_RUST_MMU=y
	} >"$out/.distro.new"
	if ! cmp -s "$out/.distro.new" "$out/.distro"; then
		cp "$out/.distro.new" "$out/.config"
		"${mk[@]}" -s olddefconfig
		# What Kconfig does not grant here, it drops without a word.
		changed=$(diff <(grep '^CONFIG_' "$out/.distro.new" | sort) \
			<(grep '^CONFIG_' "$out/.config" | sort) |
			sed -n 's/^[<>] CONFIG_//p' | grep -v '^CC_VERSION_TEXT=' | xargs) || :
		[[ -z $changed ]] ||
			die "Kconfig changes the configuration of $release here: ${changed:0:300}; what the distribution built it with is missing (a compiler, pahole, a tool)"
		mv "$out/.distro.new" "$out/.distro"
	fi
	rm -f "$out/.distro.new"
}

build()
{
	mkdir -p "$mod/arch/x86/kvm" "$mod/virt/kvm"
	"${mk[@]}" -j"$JOBS" modules_prepare
	[[ $(<"$out/include/config/kernel.release") = "$release" ]] ||
		die "this build calls itself $(<"$out/include/config/kernel.release"), not $release; is build/src what the distribution has?"
	for f in Module.symvers vmlinux; do
		cmp -s "$headers/$f" "$out/$f" || cp "$headers/$f" "$out/$f"
	done
	"${mk[@]}" -j"$JOBS" M=arch/x86/kvm MO="$mod/arch/x86/kvm" modules 2>&1 | tee "$log"
	! grep -q 'warning: objtool' "$log" ||
		die "objtool warns of $(grep -m1 'warning: objtool' "$log"); see $log"
	for k in "${ours[@]}"; do
		ln -sfn "arch/x86/kvm/$k.ko" "$mod/$k.ko"
	done
}

# The distribution's own, for the other column and to compare with. Others than those that
# we replace may use KVM's headers, and then have to agree with them: kvmgt does.
unpack()
{
	local f name
	for f in arch/x86/kvm/{kvm,kvm-amd,kvm-intel} virt/lib/irqbypass; do
		name=${f##*/}
		[[ -e $stock/$name.ko ]] || xz -dc "$modules/$f.ko.xz" >"$stock/$name.ko"
	done
	users=()
	while read -r f; do
		name=${f##*/}
		[[ -e $stock/${name%.xz} ]] || xz -dc "$modules/${f#kernel/}" >"$stock/${name%.xz}"
		case $name in
		kvm-amd.*|kvm-intel.*) ;;
		*) users+=("$stock/${name%.xz}") ;;
		esac
	done < <(sed -n 's,^\([^:]*\):.* kernel/arch/x86/kvm/kvm\.ko.*,\1,p' \
		"$dir/lib/modules/$release/modules.dep")
}

# --- would they fit?

# undefined FILE: the symbols that it wants from others.
undefined()
{
	llvm-nm-19 --undefined-only --format=just-symbols "$1" | sort -u
}

fits()
{
	local k here there missing said status
	for k in "${ours[@]}"; do
		[[ -e $mod/$k.ko ]] || die "there is no $k.ko in $mod; build it first"
		here=$(modinfo -F vermagic "$mod/$k.ko")
		there=$(modinfo -F vermagic "$stock/$k.ko")
		[[ $here = "$there" ]] ||
			die "$k.ko has the vermagic '$here', the distribution's has '$there', so that it cannot be loaded; is KERNEL= the kernel that was built for?"
		missing=$(comm -23 <(undefined "$mod/$k.ko") \
			<(awk '{ print $2 }' "$headers/Module.symvers" \
				"$mod/arch/x86/kvm/Module.symvers" | sort -u) | xargs)
		[[ -z $missing ]] ||
			die "$k.ko needs what the kernel $release does not export: $missing; is build/src the source of that kernel?"
	done
	# And what others want of KVM, ours must have.
	for k in "${users[@]}"; do
		missing=$(comm -12 <(undefined "$k") \
			<(awk '$3 == "arch/x86/kvm/kvm" { print $2 }' "$headers/Module.symvers" | sort) |
			comm -23 - <(awk '{ print $2 }' "$mod/arch/x86/kvm/Module.symvers" | sort) | xargs)
		[[ -z $missing ]] || die "${k##*/} of the distribution needs of kvm.ko what ours does not export: $missing; export it in patches/"
	done
	! llvm-objdump-19 --reloc "$mod/kvm.ko" | grep -w rust_support_need_break >/dev/null ||
		die "the helpers are calls, which makes the MMU slow; install clang and llvm of the LLVM that rustc has"
	status=0
	said=$(python3 -B "$TOP/scripts/package/btf.py" "$headers/vmlinux" "${users[@]}" \
		-- "$mod"/{kvm,kvm-amd,kvm-intel}.ko) || status=$?
	((!status)) ||
		die "${said%%$'\n'*}: with that, it would corrupt memory under $release; build from the source and the configuration of that kernel, with pahole installed"
	say "modules for $release: $said with vmlinux and ${#users[@]} other users of KVM's headers"
}

ours=(kvm kvm-amd kvm-intel)
if [[ ! $only_check ]]; then
	tools
	# Its release must not depend on the state of the git tree.
	mk=(make -C "$SRC" O="$out" CC="$cc" HOSTCC="$cc" LOCALVERSION="${release#"$(make -s -C "$SRC" kernelversion)"}")
	configure
	build
fi
unpack
# Only into a directory of our own: what is merely checked stays as it is.
[[ $only_check ]] || cp -u "$stock/irqbypass.ko" "$mod/"
fits
