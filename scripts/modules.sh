#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build KVM's modules against a vmlinux:
#   modules.sh rust|c|pristine|upstream|plant-BUG [lab|debug|kasan|kcsan]
#   rust      the MMU in Rust
#   c         the same tree with CONFIG_KVM_RUST_MMU=n
#   pristine  upstream's tree, untouched: what "c" is compared with
#   upstream  that with patches/upstream/: what is to be fixed there
#   plant-BUG the MMU in Rust with tests/mutants/BUG.patch, which a test should find
#             (tests/mutants/run.sh), or a debug kernel report: nolock (mmu_lock not taken),
#             sleep (mmu_lock not dropped to allocate), norcu (a table freed at once), token (of a
#             lock of another VM), race (an SPTE read without a mark)
# All of them fit the one vmlinux, so one boot can load each in turn.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
enter_root "$@"

which=${1:-} flavour=${2:-lab}
suffix=$(suffix_of "$flavour")
out=$BUILD/linux$suffix
[[ -e $out/Module.symvers ]] || die "no kernel in $out; run 'make kernel' first"

# An external-module build reads its configuration from three files below
# include/ of the kernel's output and changes nothing there. So a variant is
# that output by symbolic links, with a copy of include/ in which the option is
# off: nothing else can differ, and nothing else is built again.
variant()
{
	local v=$BUILD/out-$which$suffix f name
	mkdir -p "$v/include"
	for f in "$out"/* "$out"/.config; do
		name=${f##*/}
		case $name in
		include) ;;
		# These differ, or belong to the other source tree.
		source|Makefile|.config) ;;
		*) [[ -e $v/$name ]] || ln -sfn "$f" "$v/$name" ;;
		esac
	done
	rsync -a --delete --exclude=/generated/autoconf.h --exclude=/generated/rustc_cfg \
		--exclude=/config/auto.conf --exclude=/config/KVM_RUST_MMU \
		"$out/include/" "$v/include/"
	for f in include/generated/autoconf.h include/generated/rustc_cfg \
		 include/config/auto.conf .config; do
		grep -v 'CONFIG_KVM_RUST_MMU' "$out/$f" >"$v/new"
		if cmp -s "$v/new" "$v/$f"; then
			rm "$v/new"
		else
			mv "$v/new" "$v/$f"
		fi
	done
	echo "$v"
}

# lay_over NAME SOURCE PATCH: the source with a patch, laid over it for this script and what
# it runs (in-root has made its mounts private).
lay_over()
{
	local work=$BUILD/$1 new=$BUILD/$1.new src=$2 f
	rm -rf "$new"
	while read -r f; do
		mkdir -p "$(dirname "$new/$f")"
		cp "$src/$f" "$new/$f"
	done < <(sed -n 's,^+++ b/,,p' "$3" | sort -u)
	patch -s -d "$new" -p1 <"$3" || die "$3 does not apply any more"
	while read -r f; do
		# What stays the same keeps its time, so that nothing is compiled in vain.
		if cmp -s "$new/$f" "$work/$f"; then
			mv "$work/$f" "$new/$f"
		fi
	done < <(sed -n 's,^+++ b/,,p' "$3" | sort -u)
	rm -rf "$work"
	mv "$new" "$work"
	while read -r f; do
		mount --bind "$work/$f" "$src/$f"
	done < <(sed -n 's,^+++ b/,,p' "$3" | sort -u)
}

# What compiling arch/x86/kvm reads, of the commit below the hook series.
pristine()
{
	[[ ! -e $PRISTINE/.complete ]] || return 0
	rm -rf "$PRISTINE"
	mkdir -p "$PRISTINE"
	git -C "$SRC" archive pristine-7.3 Makefile Kbuild Kconfig scripts \
		arch/x86 include virt kernel rust tools/include tools/arch |
		tar -C "$PRISTINE" -x
	touch "$PRISTINE/.complete"
}

src=$SRC
case $which in
rust)	o=$out ;;
plant-*)
	o=$out
	bug=$TOP/tests/mutants/${which#plant-}.patch
	[[ -e $bug ]] || die "there is no bug $bug to plant"
	lay_over "$which" "$SRC" "$bug" ;;
c)	o=$(variant) ;;
pristine|upstream)
	o=$(variant)
	src=$PRISTINE
	pristine
	if [[ $which = upstream ]]; then
		cat "$TOP"/patches/upstream/*.patch >"$BUILD/upstream.patch"
		lay_over upstream "$src" "$BUILD/upstream.patch"
	fi ;;
*)	die "modules.sh: '$which' is not rust, c, pristine, upstream or plant-BUG" ;;
esac

# KVM's objects lie at ../../../virt/kvm seen from its directory.
mod=$BUILD/mod-$which$suffix
# All objects but one are those without the bug.
[[ $which != plant-* || -e $mod || ! -e $BUILD/mod-rust$suffix ]] ||
	cp -a "$BUILD/mod-rust$suffix" "$mod"
mkdir -p "$mod/arch/x86/kvm" "$mod/virt/kvm"
make -C "$src" O="$o" LLVM=-19 -j"$JOBS" M=arch/x86/kvm MO="$mod/arch/x86/kvm" \
	${LAB_KCFLAGS:+KCFLAGS="$LAB_KCFLAGS"} modules
for k in kvm kvm-amd kvm-intel; do
	ln -sfn "arch/x86/kvm/$k.ko" "$mod/$k.ko"
done
ln -sfn "../linux$suffix/virt/lib/irqbypass.ko" "$mod/irqbypass.ko"
