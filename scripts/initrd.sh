#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Make the initial RAM disk with which a distribution's kernel gets to the lab's root:
#   initrd.sh RELEASE       (build/initrd-RELEASE)
# In it are the modules for 9p and what KVM's modules want, and no others.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
enter_root "$@"

release=$1
dir=$(kernel_dir "$release")
work=$BUILD/initrd-$release.d
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work"/{bin,modules,proc,root}
cp /bin/busybox "$work/bin/"
ln -s busybox "$work/bin/sh"
n=100
# In the order in which they are loaded; kvm-load loads KVM's own.
for m in virtio_pci 9pnet_virtio 9p virtio_rng ccp; do
	modprobe -d "$dir" -S "$release" --show-depends "$m"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/list"
while read -r f; do
	name=${f##*/}
	xz -dc "$f" >"$work/modules/$n-${name%.xz}"
	n=$((n + 1))
done <"$work/list"
rm "$work/list"
cat >"$work/init" <<'INIT'
#!/bin/busybox sh
for m in /modules/*; do
	/bin/busybox insmod "$m" || echo "initrd: $m cannot be loaded"
done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro root /root
exec /bin/busybox switch_root /root /sbin/lab-init
INIT
chmod 755 "$work/init"
(cd "$work" && find . | cpio -o -H newc --quiet) >"$BUILD/initrd-$release.new"
mv "$BUILD/initrd-$release.new" "$BUILD/initrd-$release"
