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
# shellcheck source=scripts/debian.sh
. "$here/../../scripts/debian.sh"

work=$BUILD/deb/test logs=$BUILD/logs/deb base=$BUILD/deb/base
image=$work/disk.ext4
mkdir -p "$work" "$logs"

n=0
# check NAME COMMAND...: a command that succeeds if all is well.
check()
{
	local name=$1
	shift
	n=$((n + 1))
	if "$@" >"$logs/check" 2>&1; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		tail -n 20 "$logs/check" | sed 's/^/# /'
	fi
}

# --- the package

# A configuration like those that distributions have: without Rust, with what udev
# needs. All else is the lab's, so that ccache has much of it.
config=$work/config
grep -vE '^(# )?CONFIG_(RUST|RUST_INLINE_HELPERS|KVM_RUST_MMU|LOCALVERSION|INOTIFY_USER)[= ]' \
	"$BUILD/linux/.config" >"$config"
echo CONFIG_INOTIFY_USER=y >>"$config"
check "make deb makes a package" env CONFIG="$config" "$TOP/scripts/deb.sh"
package=$(echo "$BUILD"/deb/linux-image-*.deb)
if [[ ! -e $package ]]; then
	echo "Bail out! there is no package, see $BUILD/logs/deb.log"
	exit
fi
release=${package##*/linux-image-}
release=${release%%_*}

# --- the machine

# Debian with its own kernel, made once.
if [[ ! -e $base/.complete ]]; then
	rm -rf --one-file-system "$base"
	# lz4: the fork's kernel is configured for that alone.
	# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
	debian_tree "the test's machine" "$base" "$logs/base.log" \
		linux-image-cloud-amd64,initramfs-tools,kmod,lz4 \
		--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo COMPRESS=lz4 >"$1/etc/initramfs-tools/conf.d/lz4"'
	touch "$base/.complete"
fi

tree=$work/tree
rm -rf --one-file-system "$tree"
cp -a "$base" "$tree"
install -m 755 "$here/init.sh" "$tree/sbin/check-init"
install -m 755 "$BUILD/selftests/kvm/x86/huge_page_recovery_test" "$tree/sbin/"

in_tree()
{
	LAB_ROOT=$tree "$TOP/scripts/in-root" "$@"
}
check "dpkg installs it" in_tree dpkg -i "$package"
in_image()
{
	"$TOP/scripts/in-root" debugfs -R "$1" "$image"
}
make_image()
{
	rm -f "$image"
	"$TOP/scripts/in-root" mke2fs -q -t ext4 -d "$tree" "$image" 2G
	rm -rf --one-file-system "$tree"
}
check "its files make a disk image" make_image

# boot NAME RELEASE [WORD]: boots that kernel of the image. What the machine says
# about itself ("check: KEY=VALUE") goes to said.
boot()
{
	local name=$1 kernel=$2 append=${3:-} console=$logs/$1.console file
	rm -f "$work"/{vmlinuz,initrd.img} "$console"
	for file in vmlinuz initrd.img; do
		in_image "dump /boot/$file-$kernel $work/$file" >"$logs/debugfs" 2>&1
		[[ -s $work/$file ]] || return 1
	done
	timeout --foreground --kill-after=5 300 "$TOP/scripts/in-root" qemu-system-x86_64 \
		-accel tcg,thread=single -machine q35 -cpu max,+svm,+npt -smp 1 -m 2G \
		-nodefaults -no-user-config -display none -no-reboot \
		-serial "file:$console" -drive "file=$image,format=raw,if=virtio" \
		-kernel "$work/vmlinuz" -initrd "$work/initrd.img" \
		-append "console=ttyS0 root=/dev/vda rw init=/sbin/check-init panic=-1 $append" </dev/null
	tr -d '\r' <"$console" | sed -n 's/^.*check: //p' >"$logs/$name.said"
	[[ $(tail -n 1 "$logs/$name.said") = "done" ]] || {
		tail -n 20 "$console"
		return 1
	}
}

# said NAME KEY=VALUE: whether the machine said so.
said()
{
	grep -qxF -- "$2" "$logs/$1.said" || {
		cat "$logs/$1.said"
		return 1
	}
}

check "the installed kernel boots from its initial RAM disk" boot fork "$release"
check "it is the package's" said fork "release=$release"
check "kvm loads, and its MMU is in Rust" said fork "mmu_engine=rust"
check "there is a /dev/kvm" said fork "dev_kvm=yes"
check "huge pages of a guest are split and recovered" said fork "selftest=0"
check "the kernel reports nothing" said fork "splats=0"

# Going back: Debian's kernel, and there the package is removed.
other=$(in_image "ls -p /boot" 2>/dev/null | sed -n 's|.*/vmlinuz-\(.*-amd64\)/.*|\1|p' | head -n 1)
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
rm -f "$image" "$work"/{vmlinuz,initrd.img}
