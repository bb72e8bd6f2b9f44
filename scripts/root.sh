#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Make the toolchain root: a Debian tree that is build environment and guest
# file system at once. Nothing is asked, nothing stays mounted, and it appears
# under its name only when it is complete.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

SUITE=trixie

root=$(root_dir)
[[ ! -e $root/.complete ]] || exit 0

"$TOP/scripts/preflight.sh"

get_mmdebstrap()
{
	! command -v mmdebstrap >/dev/null || return 0
	if ((EUID == 0)) && command -v apt-get >/dev/null; then
		say "installing mmdebstrap"
		export DEBIAN_FRONTEND=noninteractive
		apt-get -qq update >&2 || :
		apt-get -qq install --no-install-recommends -y \
			mmdebstrap debian-archive-keyring >&2 || :
		hash -r
	fi
	command -v mmdebstrap >/dev/null ||
		die "mmdebstrap is missing and could not be installed; run 'apt-get install mmdebstrap' (or your distribution's way) as root"
}

# The mirror of the user, else the one this machine's apt uses for Debian, else
# none: mmdebstrap then has its own default.
find_mirror()
{
	if [[ ${MIRROR:-} ]]; then
		echo "$MIRROR"
	elif command -v apt-get >/dev/null && grep -qsx 'ID=debian' /etc/os-release; then
		# shellcheck disable=SC2016 # apt's own variables
		apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT) $(LABEL)' 2>/dev/null |
			awk '$3 == "main" && $2 ~ /^[a-z]+$/ && ($4 == "" || $4 == "Debian") &&
			     $1 !~ /security/ { print $1; exit }'
	fi
}

get_mmdebstrap

work=$CACHE/work.$$
log=$CACHE/root.log
mkdir -p "$CACHE/debs" "$work"
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup()
{
	trap '' INT TERM
	rm -rf --one-file-system "$work" 2>/dev/null || :
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mirror=$(find_mirror)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -e $keys ]] ||
	die "Debian's archive keys are missing; install the package debian-archive-keyring"

packages=$(sed 's/#.*//' "$TOP/configs/root.packages" | xargs | tr ' ' ,)

# As root the mounts that mmdebstrap makes go to a private namespace, so that
# killing it cannot leave any.
run=() mode=root
if ((EUID == 0)); then
	run=(unshare --mount --propagation private)
else
	mode=unshare
	if ! command -v newuidmap >/dev/null ||
	   ! grep -qs "^$(id -un):" /etc/subuid; then
		die "making the root as a normal user needs newuidmap and an entry in /etc/subuid; install uidmap, or run 'make root' as root once with HOME=$HOME"
	fi
fi

proxy=()
if command -v apt-config >/dev/null; then
	P='' && eval "$(apt-config shell P Acquire::http::Proxy)"
	[[ -z $P ]] || proxy=(--aptopt="Acquire::http::Proxy \"$P\"")
fi

# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
args=(--mode="$mode" --variant=minbase --format=tar
      --aptopt='Acquire::Languages "none"'
      --aptopt='APT::Install-Recommends "false"'
      --aptopt='Acquire::Retries "2"'
      --aptopt='Acquire::http::Timeout "20"' "${proxy[@]}"
      --dpkgopt=path-exclude=/usr/share/doc/*
      --dpkgopt=path-exclude=/usr/share/locale/*
      # What was downloaded once is kept beside the root.
      --skip=download/empty --skip=essential/unlink
      --setup-hook='mkdir -p "$1/var/cache/apt/archives" "$1/etc/apt/preferences.d"'
      --setup-hook="sync-in '$CACHE/debs' /var/cache/apt/archives"
      --setup-hook="upload '$TOP/configs/root.preferences' /etc/apt/preferences.d/lab"
      --include="$packages"
      # The source is optional here: source.sh knows other ways, and names them.
      --customize-hook='chroot "$1" sh -c "apt-cache show linux-source-'"$KVER"' >/dev/null 2>&1 && apt-get -y install linux-source-'"$KVER"' || echo no linux-source-'"$KVER"'"'
      --customize-hook='sync-out /var/cache/apt/archives '"'$CACHE/debs'"
      --customize-hook="upload '$TOP/scripts/lab-init' /sbin/lab-init"
      --customize-hook='chmod 755 "$1/sbin/lab-init"; mkdir -p "$1/lab" "$1/build" "$1/results"'
      --customize-hook='chroot "$1" dpkg-query -W >"$1/etc/lab-packages"')

say "making the toolchain root (log: $log)"
# unshare mode works as another user id, which may not look into $HOME.
tmp=$work
if [[ $mode = unshare ]]; then
	tmp=${TMPDIR:-/tmp}
fi
mkdir "$work/root"
if [[ $mirror ]]; then
	lines=("deb $mirror $SUITE main" "deb $mirror $SUITE-backports main")
else
	# The backports of whatever mirror mmdebstrap chose.
	lines=()
	# shellcheck disable=SC2016
	args+=(--setup-hook='sed -n "/^deb .* main/{s/ '"$SUITE"' / '"$SUITE"'-backports /p;q}" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/backports.list"')
fi
if ! TMPDIR=$tmp "${run[@]}" mmdebstrap "${args[@]}" "$SUITE" - "${lines[@]}" \
	2>"$log" | tar -C "$work/root" -xp --no-same-owner --exclude='./dev/*' --exclude='./var/cache/apt/archives/*.deb'; then
	tail -n 15 "$log" >&2
	if grep -qE 'Could not resolve|Failed to fetch|Unable to connect|Temporary failure|Could not connect|does not have a Release file' "$log"; then
		die "the package mirror ${mirror:-of mmdebstrap} cannot be reached or has no $SUITE; check the network or set MIRROR="
	fi
	die "the toolchain root could not be made; the reason is above and in $log"
fi
touch "$work/root/.complete"
rm -rf --one-file-system "$root"
mv "$work/root" "$root"
say "toolchain root: $root ($(wc -l <"$root/etc/lab-packages") packages)"
