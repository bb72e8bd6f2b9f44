#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Fetch a kernel of Debian's: headers, configuration, Module.symvers, BTF, the kernel
# itself and its modules. They are unpacked, not installed, to the directory that
# lib.sh calls kernel_dir.
#   debian-kernel.sh [RELEASE]      prints the release
# Without RELEASE it is the amd64 flavour of the same version as the source in the
# toolchain root: others do not fit that source.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

release=${1:-}
default=$CACHE/kernel-default-$(root_key)
[[ $release || ! -e $default ]] || release=$(<"$default")
if [[ $release && -e $(kernel_dir "$release")/.complete ]]; then
	echo "$release"
	exit
fi
if [[ ! ${LAB_INSIDE:-} ]]; then
	need_mb "$CACHE" "${LAB_MIN_KERNEL_MB:-1024}"
fi
enter_root "$@"

work=$CACHE/kernel.$$
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mkdir -p "$work"/{lists,archives}/partial "$work/debs" "$work/tree"

# The root's apt, with its sources and keys, but with lists of its own: the root is not
# changed.
apt=(-qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work"
     -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=20
     -o APT::Sandbox::User=root)
apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update >"$work/log" 2>&1 || {
	tail -n 5 "$work/log" >&2
	die "the package mirror cannot be reached; check the network, or make the root anew with MIRROR= (make distclean)"
}

# No reader of a pipe may stop early here ("grep -q", "head"): the writer may get SIGPIPE, and
# with "pipefail" and "set -e" this script would end without a word.
# versions PACKAGE: those that the mirror has.
versions()
{
	apt-cache "${apt[@]}" show --all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p'
}

# Nothing has run with PREEMPT_RT, which the flavour rt-amd64 has.
known()
{
	apt-cache "${apt[@]}" pkgnames linux-headers- |
		sed -n "s/^linux-headers-\(${KVER}[^-]*\(-cloud\)\?-amd64\)\$/\1/p" | sort -V
}

if [[ ! $release ]]; then
	source=$(dpkg-query -W -f '${Version}' "linux-source-$KVER" 2>/dev/null) ||
		die "the mirror has no package linux-source-$KVER, so no kernel of its fits; name one with KERNEL="
	for r in $(known | grep -E '[0-9]-amd64$'); do
		! versions "linux-headers-$r" | grep -xF "$source" >/dev/null || release=$r
	done
	[[ $release ]] ||
		die "the mirror has no kernel of version $source any more, which is that of the source; run 'make distclean' for the source of today, or name a kernel with KERNEL=: $(known | xargs)"
	echo "$release" >"$work/default"
fi
[[ " $(known | xargs) " = *" $release "* ]] ||
	die "the mirror knows no kernel $release of the flavours amd64 and cloud-amd64; KERNEL= can be: $(known | xargs)"
if [[ -e $(kernel_dir "$release")/.complete ]]; then
	[[ ! -e $work/default ]] || mv "$work/default" "$default"
	echo "$release"
	exit
fi

say "fetching Debian's kernel $release"
common=$(apt-cache "${apt[@]}" show "linux-headers-$release" |
	grep -oE 'linux-headers-[^ ]*-common' | sort | sed -n '$p')
for p in "linux-headers-$release" ${common:+"$common"} "linux-binary-$release" \
	 "linux-modules-$release" "linux-base-$release"; do
	[[ $(versions "$p") ]] ||
		die "the mirror has no package $p, so KERNEL=$release cannot be used; KERNEL= can be: $(known | xargs)"
	(cd "$work/debs" && apt-get "${apt[@]}" download "$p" >"$work/log" 2>&1) || {
		tail -n 5 "$work/log" >&2
		die "the package $p cannot be downloaded; check the network and try again"
	}
done
for p in "$work"/debs/*.deb; do
	dpkg-deb -x "$p" "$work/tree" ||
		die "${p##*/} cannot be unpacked to $CACHE, is the disk full? Free some and try again"
done
ln -sfn usr/lib "$work/tree/lib"
depmod -b "$work/tree" -F "$work/tree/usr/lib/modules/$release/System.map" "$release"
dpkg-deb -f "$work"/debs/linux-headers-"$release"_*.deb Version >"$work/tree/.version"
touch "$work/tree/.complete"
dir=$(kernel_dir "$release")
rm -rf "$dir"
mv "$work/tree" "$dir"
[[ ! -e $work/default ]] || mv "$work/default" "$default"
echo "$release"
