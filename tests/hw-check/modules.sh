#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Look whether this machine can be checked, and copy the modules of both MMUs: what they are
# to be loaded with is in the machine's own configuration, which check.sh does not see.
#   modules.sh DIR       DIR/{c,rust}/list: a line "NAME FILE [PARAMETER=VALUE]..." each
# Changes nothing but DIR. While a VM runs, that is an error.
die()
{
	echo "error: $*" >&2
	exit 1
}

dir=$1
release=$(uname -r)
reload=$(dirname "$0")/../../scripts/package/kvm-rs-reload
[ "$dir" ] || die "usage: modules.sh DIR"
[ "$(id -u)" = 0 ] || die "only root can load modules and use the counters; run it with sudo"
if grep -qw svm /proc/cpuinfo; then
	vendor=kvm_amd
elif grep -qw vmx /proc/cpuinfo; then
	vendor=kvm_intel
else
	die "this processor has neither SVM nor VMX, or the firmware has switched it off; use a machine that runs VMs"
fi
[ -d /sys/module/$vendor ] || die "$vendor is not loaded; load it (modprobe $vendor)"
sh "$reload" check || exit 1
[ -e /sys/module/kvm/parameters/mmu_engine ] ||
	die "the MMU that is loaded is the one in C; install the package of 'make modules-deb', and run kvm-rs-reload"

rm -rf "$dir"
mkdir -p "$dir/c" "$dir/rust"
modprobe --show-depends $vendor >"$dir/depends" || die "modprobe does not know $vendor; run depmod"
while read -r insmod path parameters; do
	[ "$insmod" = insmod ] || continue
	file=${path##*/}
	name=$(echo "${file%%.ko*}" | tr - _)
	case $name in
	kvm|kvm_amd|kvm_intel) ;;
	# Others stay loaded, whichever the MMU is.
	*) continue ;;
	esac
	cp "$path" "$dir/rust/" || die "$path cannot be copied to $dir; is there room?"
	echo "$name $file $parameters" >>"$dir/rust/list"
	for stock in "/lib/modules/$release/kernel/arch/x86/kvm/${file%%.ko*}".ko*; do
		[ "$stock" != "$path" ] || continue
		[ -e "$stock" ] || continue
		cp "$stock" "$dir/c/" || die "$stock cannot be copied to $dir; is there room?"
		echo "$name ${stock##*/} $parameters" >>"$dir/c/list"
	done
done <"$dir/depends"
[ -s "$dir/rust/list" ] || die "KVM is no module of this kernel, so that nothing can be exchanged; use one with KVM=m"
[ -s "$dir/c/list" ] || rm -rf "$dir/c"
