#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make modules-deb': the three modules that distro-modules.sh has built, as a package
# for that kernel:  modules-deb.sh RELEASE       (build/deb/kvm-rs-modules-RELEASE_*.deb)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

release=${1:?modules-deb.sh: no RELEASE}
deb=$BUILD/deb name=kvm-rs-modules-$release
if [[ ! ${LAB_INSIDE:-} ]]; then
	need_mb "$BUILD" "${LAB_MIN_DISK_MB:-64}"
	# The newest commit tells packages apart, and which is newer.
	stamp=$(git -C "$TOP" log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S 2>/dev/null) || stamp=0
	LAB_STAMP=$stamp LAB_ENV=LAB_STAMP "$TOP/scripts/in-root" "$TOP/scripts/package/modules-deb.sh" "$release"
	cat <<EOF
$(echo "$deb/$name"_*.deb)
  Stop every VM first: modules in use cannot be replaced.
  install     sudo dpkg -i $(cd "$deb" && echo "$name"_*.deb) && sudo kvm-rs-reload
  verify      cat /sys/module/kvm/parameters/mmu_engine    (rust)
  go back     sudo dpkg -r $name, then what it says
EOF
	exit
fi

dir=$(kernel_dir "$release") mod=$BUILD/mod-rust-$release work=$BUILD/deb/$name.d
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
to=$work/usr/lib/modules/$release/updates/kvm-rs
mkdir -p "$to" "$work/DEBIAN" "$work/usr/sbin"
for k in kvm kvm-amd kvm-intel; do
	# With BTF and without DWARF, and not compressed, so that they can be signed.
	llvm-strip-19 --strip-debug -o "$to/$k.ko" "$mod/$k.ko"
done
install -m 755 "$TOP/scripts/package/kvm-rs-reload" "$work/usr/sbin/kvm-rs-reload"
kernel=$(<"$dir/.version")
cat >"$work/DEBIAN/control" <<EOF
Package: $name
Version: $kernel+rs${LAB_STAMP:-0}
Architecture: amd64
Maintainer: KVM Rust MMU team <kvm-mmu-rs@localhost>
Installed-Size: $(du -sk "$work/usr" | cut -f1)
Depends: linux-modules-$release (= $kernel), kmod
Conflicts: kvm-rs-modules
Provides: kvm-rs-modules
Section: kernel
Priority: optional
Description: KVM with its TDP MMU in Rust, for Linux $release
 Three modules, kvm, kvm-amd and kvm-intel, which are loaded in place of those of
 the kernel's package. They are built from the same source and configuration.
EOF
hint()
{
	cat <<EOF
echo "Stop every VM, then run 'kvm-rs-reload': $1"
EOF
}
cat >"$work/DEBIAN/postinst" <<EOF
#!/bin/sh
set -e
[ "\$1" = configure ] || exit 0
depmod "$release"
[ "\$(uname -r)" = "$release" ] && [ -d /sys/module/kvm ] || exit 0
$(hint "until then, the modules that are loaded stay.")
EOF
cat >"$work/DEBIAN/prerm" <<EOF
#!/bin/sh
set -e
# It is removed with the package, but is needed once more after that.
[ "\$1" != remove ] || cp /usr/sbin/kvm-rs-reload /run/kvm-rs-reload 2>/dev/null || :
EOF
cat >"$work/DEBIAN/postrm" <<EOF
#!/bin/sh
set -e
[ "\$1" = remove ] || exit 0
[ ! -e "/usr/lib/modules/$release/modules.order" ] || depmod "$release"
[ -e /sys/module/kvm/parameters/mmu_engine ] || exit 0
echo "Stop every VM, then run 'sh /run/kvm-rs-reload': until then, the MMU in Rust stays loaded."
EOF
chmod 755 "$work"/DEBIAN/{postinst,prerm,postrm}
rm -f "$deb/$name"_*.deb
dpkg-deb --root-owner-group -b "$work" "$deb" >&2
