#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make qemu': build/qemu/qemu-system-x86_64, the distribution's QEMU with the patches that
# are here, which split huge pages ahead of dirty logging. It has one target, one machine
# ("pc"), and no more devices than tests/migrate uses. What it needs beyond the toolchain
# root lies over that while it is built; the root stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
# shellcheck source=scripts/debian.sh
. "$TOP/scripts/debian.sh"

# The patches are for this one.
version=10.0
packages=(libglib2.0-dev zlib1g-dev ninja-build meson python3-venv pkgconf)
out=$BUILD/qemu
src=$out/src
more=$CACHE/qemu-$(root_key)

# --- in the root: what is missing there, and the source, by the apt sources it was made from

fetch()
{
	local apt=(-q -o "Dir::Etc::sourcelist=$more/sources.list" -o "Dir::State::lists=$more/lists"
		   -o "Dir::Cache=$more/cache" -o APT::Sandbox::User=root)
	mkdir -p "$more"/{lists,cache/archives}/partial "$more/over"
	sed 'p; s/^deb /deb-src /' /etc/apt/sources.list >"$more/sources.list"
	apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update ||
		die "the package mirror cannot be reached; check the network"
	apt-get "${apt[@]}" install -y --no-install-recommends --download-only "${packages[@]}" ||
		die "the mirror does not have what QEMU is built with: ${packages[*]}"
	cd "$more"
	apt-get "${apt[@]}" source --download-only "qemu/$SUITE" ||
		die "the mirror does not have the source of QEMU in $SUITE; use another MIRROR= and 'make distclean', or build elsewhere"
	compgen -G "$more/qemu_$version.*.orig.tar.xz" >/dev/null ||
		die "Debian's $SUITE has $(basename "$more"/qemu_*.orig.tar.xz .orig.tar.xz), and contrib/qemu is for $version; rebase its patches"
	for deb in "$more"/cache/archives/*.deb; do
		dpkg-deb -x "$deb" "$more/over"
	done
	rm -rf "$more/lists" "$more/cache"
	touch "$more/.complete"
}

# --- in the root with that over it

# Once, with Debian's patches.
unpack()
{
	local key
	key=$(sha256sum <"$(echo "$more"/qemu_*.dsc)")
	[[ ! -e $out/unpacked || $(<"$out/unpacked") != "$key" ]] || return 0
	rm -rf "$src" "$out/patched" "$out/configured"
	dpkg-source --no-check -x "$more"/qemu_*.dsc "$src"
	"${g[@]}" init -q -b qemu
	"${g[@]}" add -A -f
	"${g[@]}" commit -q -m "QEMU $(<"$src/VERSION")"
	"${g[@]}" tag unpatched
	echo "$key" >"$out/unpacked"
}

# The series is applied beside the source, which then gets the files that differ.
patch_source()
{
	local key patches=("$here"/*.patch) p beside=$out/am
	key=$(cat "${patches[@]}" | sha256sum)
	[[ ! -e $out/patched || $(<"$out/patched") != "$key" ]] || return 0
	rm -rf "$beside"
	"${g[@]}" worktree prune
	"${g[@]}" worktree add -q --detach "$beside" unpatched
	for p in "${patches[@]}"; do
		"${g[@]}" -C "$beside" am -q "$p" ||
			die "contrib/qemu/${p##*/} does not apply to QEMU $(<"$src/VERSION"); rebase it"
	done
	"${g[@]}" checkout -q --detach "$("${g[@]}" -C "$beside" rev-parse HEAD)"
	rm -rf "$beside"
	echo "$key" >"$out/patched"
}

configure()
{
	local key
	key=$(cat "$here"/{build.sh,lab.mak} | sha256sum)
	[[ ! -e $out/configured || $(<"$out/configured") != "$key" ]] || return 0
	cp "$here/lab.mak" "$src/configs/devices/x86_64-softmmu/"
	mkdir -p "$out/obj"
	cd "$out/obj"
	# Not optimized: that takes a third of the time, and the guests are small.
	"$src/configure" --prefix=/usr --target-list=x86_64-softmmu --without-default-features \
		--without-default-devices --with-devices-x86_64=lab --enable-kvm --disable-tcg \
		--enable-system --disable-tools --disable-download --disable-debug-info \
		--disable-install-blobs -Doptimization=0 ||
		die "QEMU's configure fails; its reason is in build/logs/qemu.log"
	echo "$key" >"$out/configured"
}

build()
{
	local g=(git -C "$src" -c user.name=lab -c user.email=lab@localhost -c core.looseCompression=0)
	unpack
	patch_source
	configure
	ninja -C "$out/obj" -j "$JOBS" qemu-system-x86_64
	cp "$out/obj/qemu-system-x86_64" "$out/"
}

if [[ ${LAB_INSIDE:-} ]]; then
	"$1"
	exit
fi

# --- outside

# step FUNCTION WHAT COMMAND...
step()
{
	local log=$BUILD/logs/qemu.log
	say "$2 (log: $log)"
	"${@:3}" "$here/build.sh" "$1" >"$log" 2>&1 || {
		grep -h -m1 '^error: ' "$log" >&2 && exit 1
		tail -n 30 "$log" >&2
		die "$2 failed; the log is $log"
	}
}

mkdir -p "$out" "$BUILD/logs"
if [[ ! -e $more/.complete ]]; then
	need_mb "$CACHE" 1000
	rm -rf "$more"
	step fetch "fetching the source of QEMU" "$TOP/scripts/in-root"
fi
need_mb "$BUILD" 2000
mkdir -p "$more"/{upper,work,root}
ns=(unshare --mount --propagation private)
((!EUID)) || ns+=(--map-root-user)
# shellcheck disable=SC2016 # expanded by the inner shell
step build "building QEMU" "${ns[@]}" bash -euc '
	mount -t overlay overlay -o "lowerdir=$1/over:$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
	LAB_ROOT=$1/root exec "${@:3}"' over "$more" "$(root_dir)" "$TOP/scripts/in-root"
say "$out/qemu-system-x86_64: $("$TOP/scripts/in-root" "$out/qemu-system-x86_64" --version | sed -n 1p)"
