#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make deb' from end to end: the fork is packaged, installed on a Debian beside
# its own kernel, booted, and removed again. The machine is a disk image in QEMU;
# its kernels and initial RAM disks are read from that image, as a boot loader
# does. TAP on stdout.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
# shellcheck source=tests/deb/machine.sh
. "$here/machine.sh"

machine deb

# --- the package

# A configuration like those that distributions have: without Rust, with what udev
# needs. All else is the lab's, so that ccache has much of it.
config=$work/config
grep -vE '^(# )?CONFIG_(RUST|RUST_INLINE_HELPERS|KVM_RUST_MMU|LOCALVERSION|INOTIFY_USER)[= ]' \
	"$BUILD/linux/.config" >"$config"
echo CONFIG_INOTIFY_USER=y >>"$config"
check "make deb makes a package" env CONFIG="$config" "$TOP/scripts/package/deb.sh"
package=$(echo "$BUILD"/deb/linux-image-*.deb)
if [[ ! -e $package ]]; then
	echo "Bail out! there is no package, see $BUILD/logs/deb.log"
	exit
fi
release=${package##*/linux-image-}
release=${release%%_*}

# --- the machine

# lz4: the fork's kernel is configured for that alone.
# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
new_tree linux-image-cloud-amd64,initramfs-tools,kmod,lz4 \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo COMPRESS=lz4 >"$1/etc/initramfs-tools/conf.d/lz4"'
install -m 755 "$here/init.sh" "$tree/sbin/check-init"
install -m 755 "$BUILD/selftests/kvm/x86/huge_page_recovery_test" "$tree/sbin/"

check "dpkg installs it" in_tree dpkg -i "$package"
check "its files make a disk image" make_image 2G

check "the installed kernel boots from its initial RAM disk" boot fork "$release"
check "it is the package's" said fork "release=$release"
check "kvm loads, and its MMU is in Rust" said fork "mmu_engine=rust"
check "there is a /dev/kvm" said fork "dev_kvm=yes"
check "huge pages of a guest are split and recovered" said fork "selftest=0"
check "the kernel reports nothing" said fork "splats=0"

# Going back: Debian's kernel, and there the package is removed.
other=$(in_image "ls -p /boot" 2>/dev/null | sed -n 's|.*/vmlinuz-\(.*-amd64\)/.*|\1|p' | sed -n 1p)
check "Debian's own kernel still boots" boot back "$other" "check.remove=linux-image-$release"
check "it is that of Debian" said back "release=$other"
check "its kvm has the MMU in C" said back "mmu_engine=none"
check "the package can be removed" said back "removed=0"
gone()
{
	! { in_image "ls -p /boot"; in_image "ls -p /lib/modules"; } | grep -F "$release"
}
check "and leaves nothing to boot" gone

echo "1..$n"
machine_done
