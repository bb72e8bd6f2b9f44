#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Look whether this machine can be checked, and copy the modules of both MMUs: what they are
# to be loaded with is in the machine's own configuration, which check.sh does not see.
#   modules.sh DIR       to DIR/c and DIR/rust, see take.sh
# Changes nothing but DIR. While a VM runs, that is an error.
# shellcheck source=tests/hw-check/take.sh
. "$(dirname "$0")/take.sh"
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
mkdir -p "$dir"
modprobe --show-depends $vendor >"$dir/depends" || die "modprobe does not know $vendor; run depmod"
while read -r insmod path parameters; do
	[ "$insmod" = insmod ] || continue
	file=${path##*/}
	name=${file%%.ko*}
	case $name in
	kvm|kvm-amd|kvm-intel) ;;
	# Others stay loaded, whichever the MMU is.
	*) continue ;;
	esac
	take "$dir/rust" "$path" "$parameters" ||
		die "$path cannot be copied to $dir; is there room?"
	for stock in "/lib/modules/$release/kernel/arch/x86/kvm/$name".ko*; do
		[ "$stock" != "$path" ] || continue
		[ -e "$stock" ] || continue
		take "$dir/c" "$stock" "$parameters" ||
			die "$stock cannot be copied to $dir; is there room?"
	done
done <"$dir/depends"
[ -s "$dir/rust/list" ] || die "KVM is no module of this kernel, so that nothing can be exchanged; use one with KVM=m"
