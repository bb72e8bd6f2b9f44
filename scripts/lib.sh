# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What every script of the lab shares: where things are, and how to fail.

die()
{
	echo "error: $*" >&2
	exit 1
}

say()
{
	echo "lab: $*" >&2
}

LC_ALL=C.UTF-8
export LC_ALL
umask 022

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=$TOP/build
# shellcheck disable=SC2034 # the sourcing scripts use these
SRC=$BUILD/src PRISTINE=$BUILD/pristine STAMP=$BUILD/stamp
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-mmu-rs
KVER=${KVER:-7.3}
# shellcheck disable=SC2034
JOBS=${JOBS:-$(nproc)}

# The root is named after all that goes into it, so a changed input makes a
# new one and an unchanged one is never made again.
root_key()
{
	local f
	{
		echo "$KVER"
		for f in configs/root.packages configs/root.preferences \
			 scripts/debian.sh scripts/root.sh scripts/guest/lab-init; do
			cat "$TOP/$f"
		done
	} | sha256sum | cut -c1-12
}

root_dir()
{
	echo "${LAB_ROOT:-$CACHE/root-$(root_key)}"
}

# kernel_dir RELEASE: where debian-kernel.sh has unpacked a distribution's kernel.
kernel_dir()
{
	echo "$CACHE/kernel-$1"
}

# Run the calling script inside the toolchain root: the compilers, git and
# rsync there are the ones the lab is tested with.
enter_root()
{
	[[ ${LAB_INSIDE:-} ]] || exec "$TOP/scripts/in-root" "$(realpath "$0")" "$@"
}

# suffix_of FLAVOUR: what the build directories of a flavour end in.
suffix_of()
{
	case $1 in
	lab) ;;
	# The release of a distribution's kernel is a flavour as well.
	debug|kasan|kcsan|[0-9]*) echo "-$1" ;;
	*) die "unknown kernel flavour '$1'; use lab, debug, kasan or kcsan" ;;
	esac
}

# guest_env FLAVOUR: what the guest is told of the run, as shell assignments.
guest_env()
{
	local commit
	commit=$(git -C "$TOP" describe --always --dirty --exclude='*' 2>/dev/null) || commit=unknown
	printf 'export lab_flavour=%s lab_commit=%s lab_date=%s lab_speed=%s\n' \
		"$1" "$commit" "$(date -u +%F)" "$(lab_speed)"
}

# How long emulated work takes here, in percent of what it takes on the machine that all
# limits are for. tests/calibrate.sh measures it.
lab_speed()
{
	cat "$STAMP/speed" 2>/dev/null || echo 100
}

# scaled N: N seconds or minutes of that machine on this one.
scaled()
{
	echo $((($1 * $(lab_speed) + 99) / 100))
}

# need_mb DIR MB: DIR's file system must have MB MiB free.
need_mb()
{
	local dir=$1 want=$2 have
	while [[ ! -d $dir ]]; do
		dir=$(dirname "$dir")
	done
	have=$(df -Pm "$dir" | awk 'NR == 2 { print $4 }')
	((have >= want)) ||
		die "$1 has $have MiB of free disk, $want are needed; free some or use another disk"
}
