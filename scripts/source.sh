#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# build/src: the pristine kernel source, the hook series on it as commits, and
# the overlay as untracked files. Files whose content stays keep their times,
# and build/stamp/src-* are touched only for what really changed, so that
# nothing is compiled in vain.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

if [[ ! ${LAB_INSIDE:-} && ${KSRC:-} ]]; then
	[[ -e $KSRC/Makefile ]] || die "KSRC=$KSRC is no kernel source; name a Linux $KVER tree"
	exec "$TOP/scripts/in-root" -b "$KSRC" "$TOP/scripts/source.sh"
fi
enter_root "$@"

mkdir -p "$STAMP" "$BUILD/logs"
cd "$TOP"

exec 9>"$BUILD/.source.lock"
flock 9

archives=${LAB_ARCHIVES:-configs/source.archives}
version_of()
{
	sed -n 's/^VERSION = //p; s/^PATCHLEVEL = //p' "$1/Makefile" | paste -sd.
}

check_version()
{
	local v
	v=$(version_of "$1")
	[[ $v = "$KVER" ]] ||
		die "$2 is Linux $v, the hook series is for $KVER; point KSRC= at a $KVER tree"
}

# fetch ADDRESS SUM: the archive at an address or in a file, if it has that checksum. Prints
# where it is.
fetch()
{
	local from=$1 sum=$2 f=$CACHE/${1##*/}
	case $from in
	*://*)
		# What does not end as it should is not used, and downloaded anew.
		[[ -e $f ]] || { wget -qO "$f.part" "$from" && mv "$f.part" "$f"; } ||
			{ rm -f "$f.part"; die "cannot download $from; check the network and the address, or name a tarball with KTARBALL= and KSHA256=, or a tree with KSRC="; } ;;
	*)
		f=$from
		[[ -e $f ]] || die "KTARBALL=$f is not there (a local one must be in the checkout or in /tmp)" ;;
	esac
	echo "$sum  $f" | sha256sum -c --status ||
		die "$f does not have the checksum $sum; delete it or correct the checksum (KSHA256= or configs/source.archives)"
	echo "$f"
}

# The user's tarball, else the mirror's package, else an archive of which the checksum is
# recorded. Where the package is missing, the root was made when the mirror had another kernel.
archive()
{
	local t=${LAB_LINUX_SOURCE:-/usr/src/linux-source-$KVER.tar.xz} version sum address
	if [[ ${KTARBALL:-} ]]; then
		[[ ${KSHA256:-} ]] || die "KTARBALL= needs KSHA256=, the checksum that upstream signed for it"
		fetch "$KTARBALL" "$KSHA256"
	elif [[ -e $t ]]; then
		echo "$t"
	else
		grep -q "^$KVER\." "$archives" ||
			die "the mirror has no package linux-source-$KVER and configs/source.archives no release of it; use another MIRROR=, or KTARBALL= (upstream's release tarball, file or address) with KSHA256=, or KSRC= (an unpacked tree)"
		read -r version sum address < <(grep "^$KVER\.[^ ]* [^-]" "$archives") ||
			die "the mirror has no package linux-source-$KVER, and the checksum of no other archive of it is recorded; put one into configs/source.archives, or use another MIRROR=, or KTARBALL= with KSHA256=, or KSRC= (an unpacked tree)"
		say "the mirror has no package linux-source-$KVER; taking that of $version from $address"
		fetch "$address" "$sum"
	fi
}

# unpack ARCHIVE DIR: a tarball, or the one in a package linux-source.
unpack()
{
	case $1 in
	*.deb)
		dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
			tar -C "$2" -xJ --strip-components=1 ;;
	*) tar -C "$2" -xf "$1" --strip-components=1 ;;
	esac
}

# --- the pristine tree, once

origin=$KVER
if [[ ${KSRC:-} ]]; then
	origin="KSRC $KSRC"
elif [[ ${KTARBALL:-} ]]; then
	origin="KTARBALL $KTARBALL"
fi

if [[ ! -e $STAMP/pristine || $(<"$STAMP/pristine") != "$origin" ]]; then
	new=$BUILD/src.new
	rm -rf "$new"
	mkdir -p "$new"
	trap 'rm -rf "$new"' EXIT
	if [[ ${KSRC:-} ]]; then
		check_version "$KSRC" "KSRC=$KSRC"
		say "copying $KSRC"
		rsync -a --exclude=/.git "$KSRC/" "$new/"
		[[ ! -e $new/.config && ! -d $new/include/config ]] ||
			make -s -C "$new" mrproper
	else
		t=$(archive)
		say "unpacking ${t##*/}"
		unpack "$t" "$new"
		check_version "$new" "$t"
	fi
	git -C "$new" init -q -b pristine
	git -C "$new" config gc.auto 0
	git -C "$new" config core.looseCompression 0
	git -C "$new" config user.name lab
	git -C "$new" config user.email lab@localhost
	# -f: the kernel's own .gitignore would leave out some files it ships.
	git -C "$new" add -A -f
	git -C "$new" commit -q --date=@1767225600 -m "Linux $(make -s -C "$new" kernelversion)"
	git -C "$new" tag pristine-7.3
	rm -rf "$SRC" "$PRISTINE" "$STAMP"/src-* "$STAMP/patches"
	mv "$new" "$SRC"
	echo "$origin" >"$STAMP/pristine"
	touch "$STAMP/src-kernel" "$STAMP/src-kvm" "$STAMP/src-selftests"
fi

# touched FILE...: note which builds a change concerns.
touched()
{
	local f
	for f; do
		case $f in
		arch/x86/kvm/*|virt/kvm/*|rust/support/*)
			touch "$STAMP/src-kvm"
			# Kconfig and tracing headers reach vmlinux as well.
			case $f in */Kconfig) touch "$STAMP/src-kernel" ;; esac ;;
		# Not built here.
		tools/kvm/*|MAINTAINERS) ;;
		tools/*|Documentation/*)
			touch "$STAMP/src-selftests" ;;
		*)
			touch "$STAMP/src-kernel" "$STAMP/src-kvm" "$STAMP/src-selftests" ;;
		esac
	done
}

# --- the hook series

shopt -s nullglob
patches=("$TOP"/patches/*.patch)
series=$(cat "${patches[@]}" /dev/null | sha256sum)
g=(git -C "$SRC" -c advice.mergeConflict=false)

apply_series()
{
	local p f keep out
	[[ -z $("${g[@]}" status --porcelain -uno) ]] ||
		die "build/src has changes that are not in patches/; commit and export them there (git format-patch pristine-7.3..), or undo them"
	keep=$(mktemp -d)
	while read -r f; do
		mkdir -p "$keep/$(dirname "$f")"
		cp -p "$SRC/$f" "$keep/$f"
	done < <("${g[@]}" diff --name-only --diff-filter=d pristine-7.3 HEAD)
	"${g[@]}" am --abort 2>/dev/null || :
	"${g[@]}" reset -q --hard pristine-7.3
	for p in "${patches[@]}"; do
		if ! out=$("${g[@]}" am -q --committer-date-is-author-date "$p" 2>&1); then
			"${g[@]}" am --abort || :
			"${g[@]}" reset -q --hard pristine-7.3
			rm -f "$STAMP/patches"
			f=$(sed -n 's/^error: patch failed: \(.*\):[0-9]*$/\1/p; s/^error: \(.*\): does not exist in index$/\1/p' <<<"$out" | sort -u | xargs)
			die "patches/${p##*/} does not apply to ${f:-the source}: $(grep -m1 '^error:' <<<"$out" || head -n1 <<<"$out"); rebase it onto Linux $(make -s -C "$SRC" kernelversion)"
		fi
	done
	# What differs from before is what is rebuilt.
	while read -r f; do
		if [[ -e $keep/$f ]] && cmp -s "$keep/$f" "$SRC/$f"; then
			touch -r "$keep/$f" "$SRC/$f"
		else
			touched "$f"
		fi
	done < <({
		"${g[@]}" diff --name-only pristine-7.3 HEAD
		cd "$keep" && find . -type f -printf '%P\n'
	} | sort -u)
	rm -rf "$keep"
	echo "$series" >"$STAMP/patches"
}

[[ -e $STAMP/patches && $(<"$STAMP/patches") = "$series" ]] || apply_series

# --- the overlay

list=$STAMP/overlay
overlay_files()
{
	local d
	for d in arch rust tools Documentation; do
		[[ ! -d $d ]] || find "$d" -name target -prune -o -name '.*' -prune -o \
			-type f -printf '%p\n'
	done
	# "Kconfig" at the top of the project is the MMU's.
	[[ ! -e Kconfig ]] || echo arch/x86/kvm/mmu/Kconfig
}
overlay_files | sort >"$list.new"

clash=$(comm -12 "$list.new" <("${g[@]}" ls-files -- arch/x86 rust tools Documentation | sort))
[[ -z $clash ]] ||
	die "the overlay would replace $(head -n1 <<<"$clash") of the kernel; change existing files in patches/"

while read -r f; do
	from=$f
	[[ $f != arch/x86/kvm/mmu/Kconfig ]] || from=Kconfig
	cmp -s "$from" "$SRC/$f" && continue
	mkdir -p "$SRC/$(dirname "$f")"
	cp "$from" "$SRC/$f"
	touched "$f"
done <"$list.new"
if [[ -e $list ]]; then
	while read -r f; do
		rm -f "$SRC/$f"
		touched "$f"
	done < <(comm -23 "$list" "$list.new")
fi
mv "$list.new" "$list"
