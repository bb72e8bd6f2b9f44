# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# How a Debian tree is made: the toolchain root, and the machine that
# 'make test-deb' installs the package on. Sourced after lib.sh.

SUITE=trixie

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
			awk '!found && $3 == "main" && $2 ~ /^[a-z]+$/ &&
			     ($4 == "" || $4 == "Debian") && $1 !~ /security/ { print $1; found = 1 }'
	fi
}

# with_std_files COMMAND...: exec COMMAND without what the caller has open beyond stderr; for
# subshells. mmdebstrap hands descriptors to sh by number, and dash takes one digit only: with
# many files open, ">&11" is a syntax error there.
with_std_files()
{
	local fd
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		((fd <= 2)) || eval "exec $fd>&-"
	done
	exec "$@"
}

# What mmdebstrap's log has if it was the mirror that failed: that may pass.
mirror_failed='Could not (resolve|connect)|Failed to fetch|Unable to connect|Temporary failure|does not have a Release file|Hash Sum mismatch|unexpected size|[Cc]onnection (timed out|failed|reset)'

# debian_tree WHAT DIR LOG PACKAGES [MMDEBSTRAP-OPTION]...: a minimal Debian with
# PACKAGES (by commas) in the new directory DIR, in up to three attempts if the mirror fails.
# Fails with one error about WHAT.
debian_tree()
{
	local what=$1 dir=$2 log=$3 packages=$4 tmp mirror lines args P
	local keys=/usr/share/keyrings/debian-archive-keyring.gpg
	# If it fails, it may end its whole process group, which must not be ours.
	local run=(setsid --wait) mode=root proxy=() attempt pause=${LAB_MIRROR_PAUSE:-20}
	shift 4

	get_mmdebstrap
	mirror=$(find_mirror)
	[[ -e $keys ]] ||
		die "Debian's archive keys are missing; install the package debian-archive-keyring"

	# As root the mounts that mmdebstrap makes go to a private namespace, so
	# that killing it cannot leave any.
	tmp=$(dirname "$dir")
	if ((EUID == 0)); then
		run+=(unshare --mount --propagation private)
	else
		mode=unshare
		# It works as another user id, which may not look into $HOME.
		tmp=${TMPDIR:-/tmp}
		if ! command -v newuidmap >/dev/null ||
		   ! grep -qs "^$(id -un):" /etc/subuid; then
			die "making $what as a normal user needs newuidmap and an entry in /etc/subuid; install uidmap, or run 'make root' as root once with HOME=$HOME"
		fi
	fi

	if command -v apt-config >/dev/null; then
		P='' && eval "$(apt-config shell P Acquire::http::Proxy)"
		[[ -z $P ]] || proxy=(--aptopt="Acquire::http::Proxy \"$P\"")
	fi

	mkdir -p "$CACHE/debs"
	# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
	args=(--mode="$mode" --variant=minbase --format=tar
	      --aptopt='Acquire::Languages "none"'
	      --aptopt='APT::Install-Recommends "false"'
	      --aptopt='Acquire::Retries "2"'
	      --aptopt='Acquire::http::Timeout "20"' "${proxy[@]}"
	      # As the user _apt, apt wants a /dev/null that everybody may write to.
	      --aptopt='APT::Sandbox::User "root"'
	      --dpkgopt=path-exclude=/usr/share/doc/*
	      --dpkgopt=path-exclude=/usr/share/locale/*
	      # What was downloaded once is kept beside the root.
	      --skip=download/empty --skip=essential/unlink
	      --setup-hook='mkdir -p "$1/var/cache/apt/archives" "$1/etc/apt/preferences.d"'
	      --setup-hook="sync-in '$CACHE/debs' /var/cache/apt/archives"
	      --include="$packages" "$@"
	      --customize-hook='sync-out /var/cache/apt/archives '"'$CACHE/debs'")
	if [[ $mirror ]]; then
		lines=("deb $mirror $SUITE main" "deb $mirror $SUITE-backports main")
	else
		# The backports of whatever mirror mmdebstrap chose.
		lines=()
		# shellcheck disable=SC2016
		args+=(--setup-hook='sed -n "/^deb .* main/{s/ '"$SUITE"' / '"$SUITE"'-backports /p;q}" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/backports.list"')
	fi
	for ((attempt = 1; ; attempt++)); do
		rm -rf --one-file-system "$dir"
		mkdir -p "$dir"
		TMPDIR=$tmp with_std_files "${run[@]}" mmdebstrap "${args[@]}" "$SUITE" - "${lines[@]}" 2>"$log" |
			tar -C "$dir" -xp --no-same-owner --exclude='./dev/*' \
				--exclude='./var/cache/apt/archives/*.deb' && return
		tail -n 15 "$log" >&2
		grep -qE "$mirror_failed" "$log" ||
			die "$what could not be made; the reason is above and in $log"
		((attempt < 3)) ||
			die "the package mirror ${mirror:-of mmdebstrap} cannot be reached or has no $SUITE; check the network or set MIRROR="
		say "the package mirror did not answer, or was being updated; trying again in $pause s"
		sleep "$pause"
	done
}
