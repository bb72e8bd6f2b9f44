# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# A Debian on a disk image, in QEMU, and checks of it as TAP. Its kernels and initial RAM
# disks are read from that image, as a boot loader does. Sourced after lib.sh.
# shellcheck source=scripts/debian.sh
. "$TOP/scripts/debian.sh"

# machine NAME: the directories of this one.
machine()
{
	work=$BUILD/deb/test-$1 logs=$BUILD/logs/$1 base=$BUILD/deb/base-$1
	image=$work/disk.ext4 tree=$work/tree
	mkdir -p "$work" "$logs"
}

machine_done()
{
	rm -f "$image" "$work"/{vmlinuz,initrd.img}
}

# new_tree PACKAGES [MMDEBSTRAP-OPTION]...: the machine's files; a copy of what is made once.
new_tree()
{
	if [[ ! -e $base/.complete ]]; then
		rm -rf --one-file-system "$base"
		debian_tree "the test's machine" "$base" "$logs/base.log" "$@"
		touch "$base/.complete"
	fi
	rm -rf --one-file-system "$tree"
	cp -a "$base" "$tree"
}

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

in_tree()
{
	LAB_ROOT=$tree "$TOP/scripts/in-root" "$@"
}

in_image()
{
	"$TOP/scripts/in-root" debugfs -R "$1" "$image"
}
# make_image SIZE: the tree, as a disk image.
make_image()
{
	rm -f "$image"
	"$TOP/scripts/in-root" mke2fs -q -t ext4 -d "$tree" "$image" "$1"
	rm -rf --one-file-system "$tree"
}

# boot NAME RELEASE [WORD] [QEMU-OPTION]...: boots that kernel of the image. What the
# machine says about itself ("check: KEY=VALUE") goes to said. BOOT_LIMIT= are its seconds,
# more on a slow machine.
boot()
{
	local name=$1 kernel=$2 append=${3:-} console=$logs/$1.console file
	shift $(($# < 3 ? $# : 3))
	rm -f "$work"/{vmlinuz,initrd.img} "$console"
	for file in vmlinuz initrd.img; do
		in_image "dump /boot/$file-$kernel $work/$file" >"$logs/debugfs" 2>&1
		[[ -s $work/$file ]] || return 1
	done
	timeout --foreground --kill-after=5 "$(scaled "${BOOT_LIMIT:-300}")" "$TOP/scripts/in-root" qemu-system-x86_64 \
		-accel tcg,thread=single -machine q35 -cpu max,+svm,+npt -smp 1 -m "${BOOT_MEM:-2G}" \
		-nodefaults -no-user-config -display none -no-reboot \
		-serial "file:$console" -drive "file=$image,format=raw,if=virtio" \
		-kernel "$work/vmlinuz" -initrd "$work/initrd.img" \
		-append "console=ttyS0 root=/dev/vda rw init=/sbin/check-init panic=-1 $append" "$@" </dev/null
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
