#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make modules-deb' from end to end: on a Debian with its own kernel the package of modules
# is installed, used for a test and a live migration, and removed again, without a reboot.
# If that kernel has no 9p (KERNEL=, the flavour for clouds), the machine has nothing of the
# lab but that test. TAP on stdout.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
# shellcheck source=tests/deb/machine.sh
. "$here/machine.sh"

release=$("$TOP/scripts/package/debian-kernel.sh" ${KERNEL:+"$KERNEL"})
# The tree is made once for each kernel.
machine "modules${KERNEL:+-$KERNEL}"
short=''
grep -q '^CONFIG_9P_FS=' "$(kernel_dir "$release")/usr/src/linux-headers-$release/.config" || short=1
package=$(echo "$BUILD/deb/kvm-rs-modules-${release}"_*.deb)
if [[ ! -e $package ]]; then
	echo "Bail out! there is no package for $release; run 'make modules-deb'"
	exit
fi
[[ $short ]] || "$TOP/tests/hw-check/run.sh" build

# --- the machine

# Its kernel is from backports, with the linux-base that this wants.
# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
new_tree "linux-image-$release,initramfs-tools,kmod,lz4" \
	--setup-hook='printf "Package: linux-*\nPin: release n=*-backports\nPin-Priority: 990\n" >"$1/etc/apt/preferences.d/linux"' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo COMPRESS=lz4 >"$1/etc/initramfs-tools/conf.d/lz4"'
install -m 644 "$here/said.sh" "$tree/sbin/check-said"
if [[ $short ]]; then
	install -m 755 "$here/short-init.sh" "$tree/sbin/check-init"
	install -m 755 "$BUILD/selftests/kvm/dirty_log_perf_test" "$tree/sbin/"
else
	install -m 755 "$here/modules-init.sh" "$tree/sbin/check-init"
fi
install -m 644 "$package" "$tree/root/modules.deb"
check "its files make a disk image" make_image 3G

# expect: a line "KEY=VALUE NAME" of stdin is a check of what the machine says.
expect()
{
	local said name
	while read -r said name; do
		check "$name" said modules "$said"
	done
}

# What both machines say once the modules are exchanged, and at the end.
on_rust="engine=rust the MMU is the one in Rust
from=updates/kvm-rs/kvm.ko and comes from the package
test=0 dirty_log_perf_test passes on it"
went_back="removed=0 the package is removed
back_reload=0 the modules are exchanged again
back_engine=none the MMU is that in C
left=0 nothing is left of the package
back_test=0 dirty_log_perf_test passes again
taints=2 the kernel says that modules were not its own
other_messages=0 and nothing else"

if [[ $short ]]; then
	BOOT_LIMIT=600
	check "Debian boots, and goes through with it" boot modules "$release"
	expect <<EOF
release=$release the kernel is that of Debian
stock_engine=none its kvm has the MMU in C
stock_test=0 on which dirty_log_perf_test passes
installed=0 the package is installed
reload=0 the modules are exchanged
$on_rust
$went_back
EOF
	echo "1..$n"
	machine_done
	exit
fi

results=$logs/results
rm -rf "$results"
mkdir -p "$results"
shares=(-device virtio-rng-pci)
for s in "root,$(root_dir),readonly=on" "checkout,$TOP,readonly=on" "results,$results,readonly=off"; do
	IFS=, read -r tag path mode <<<"$s"
	shares+=(-virtfs "local,path=$path,mount_tag=$tag,id=$tag,security_model=none,multidevs=remap,$mode")
done
BOOT_LIMIT=1500 BOOT_MEM=4G
check "Debian boots, and goes through with it" boot modules "$release" log_buf_len=4M "${shares[@]}"
expect <<EOF
release=$release the kernel is that of Debian
stock_engine=none its kvm has the MMU in C
stock_test=0 on which dirty_log_perf_test passes
installed=0 the package is installed while a VM runs
while_vm_engine=none the modules that are loaded stay
while_vm_reload=1 they are not exchanged while a VM runs
while_vm_errors=1 which is said in one line
while_vm_hw_check=1 nor does make hw-check begin
while_vm_hw_check_errors=1 which is said in one line, too
vm_lives=yes the VM keeps running
after_refusal_engine=none on the MMU in C
stock_hw_check=1 make hw-check does not begin on the MMU in C
stock_hw_check_errors=1 and says so in one line
reload=0 when it has ended, the modules are exchanged
$on_rust
migration=0 a VM is migrated on it, and its memory is the same
hw_check_machine=0 make hw-check begins
hw_check=0 and finds nothing wrong
hw_check_report=1 and reports that
hw_check_settings=kept it puts back what it has set
hw_check_log=kept and leaves the log of the kernel
hw_check_engine=rust and the MMU in Rust can be loaded again
$went_back
EOF

echo "1..$n"
machine_done
