#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Write the whole fork as a git format-patch series to build/series, with a cover letter,
# and prove it: git am takes it on the pristine tree, and gives what is built here.
# patches/layers says which commits it has. Fixes for upstream's C, in patches/upstream,
# are not part of it.
#   VERIFY=1   also run checkpatch on it (checkpatch.sh), and compile KVM at each commit, with
#              KVM_RUST_MMU off, and on from the commit that adds it (a quarter of an hour;
#              interrupted, it goes on where it was)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
export LAB_ENV="${LAB_ENV:-} VERIFY"
enter_root "$@"

[[ -e $STAMP/patches ]] || die "no source in build/src; run 'make source'"
work=$BUILD/series.work
out=$BUILD/series
cleanup()
{
	for t in author proof; do
		git -C "$SRC" worktree remove --force "$work/$t" 2>/dev/null || :
	done
	rm -rf "$work"
}
cleanup
trap cleanup EXIT
mkdir -p "$work"

# A work tree with only those folders that the fork touches.
tree()
{
	git -C "$SRC" worktree add -q --detach --no-checkout "$work/$1" "$2"
	git -C "$work/$1" sparse-checkout set --no-cone \
		/MAINTAINERS /rust/support/ /arch/x86/kvm/ /arch/x86/include/ /include/linux/kvm_host.h \
		/virt/kvm/ /Documentation/virt/kvm/ /Documentation/litmus-tests/ \
		/tools/testing/selftests/kvm/ /tools/testing/kvm-mmu-rs/ /tools/kvm/
	git -C "$work/$1" checkout -q
}

me=(-c user.name="KVM Rust MMU team" -c user.email=kvm-mmu-rs@localhost)
author=$work/author

# --- the commits, as patches/layers has them

subject='' body='' patch='' patterns=() not_sent=() taken=0
declare -A left=()
while read -r f; do
	left[$f]=1
done <"$STAMP/overlay"

# files_of PATTERN: the overlay's files that match and that no commit has taken.
files_of()
{
	printf '%s\n' "${!left[@]}" | grep -E "$1" | sort || :
}

# Makes the commit whose lines have been read.
finish()
{
	local pattern f found=() hook=()
	for pattern in "${patterns[@]}"; do
		mapfile -t -O "${#found[@]}" found < <(files_of "$pattern")
		for f in "${found[@]}"; do
			unset "left[$f]"
		done
		((${#found[@]} > taken)) ||
			die "patches/layers: nothing of the overlay that is left matches $pattern"
		taken=${#found[@]}
	done
	taken=0
	for f in "${found[@]}"; do
		mkdir -p "$(dirname "$author/$f")"
		cp "$SRC/$f" "$author/$f"
	done
	if [[ $patch ]]; then
		hook=("$TOP/patches/$patch"-*.patch)
		[[ ${#hook[@]} = 1 && -e ${hook[0]} ]] || die "patches/layers: there is no one patch $patch"
		git -C "$author" "${me[@]}" am -q --committer-date-is-author-date "${hook[0]}" ||
			die "patches/layers: ${hook[0]##*/} does not apply in this order"
		if ((${#found[@]})); then
			git -C "$author" add -f -- "${found[@]}"
			git -C "$author" "${me[@]}" commit -q --amend --no-edit
		fi
		hooks_taken+=("${hook[0]##*/}")
	elif [[ $subject ]]; then
		git -C "$author" add -f -- "${found[@]}"
		git -C "$author" "${me[@]}" commit -qs --date=@1767225600 -m "$subject" -m "$body"
	fi
	subject='' body='' patch='' patterns=()
}

tree author pristine-7.3
hooks_taken=()
while IFS= read -r line; do
	case $line in
	'#'*) ;;
	'== '*) finish; subject=${line#== } ;;
	'@ '*) finish; patch=${line#@ } ;;
	'- '*) finish; not_sent+=("${line#- }") ;;
	'^'*) patterns+=("$line") ;;
	*) body+=$line$'\n' ;;
	esac
done <"$TOP/patches/layers"
finish

# What stays here, and must not have been sent.
stays=0
for pattern in "${not_sent[@]}"; do
	while read -r f; do
		unset "left[$f]"
		stays=$((stays + 1))
	done < <(files_of "$pattern")
done
((!${#left[@]})) || die "patches/layers does not say where these belong: ${!left[*]}"
for f in "$TOP"/patches/*.patch; do
	[[ " ${hooks_taken[*]} " = *" ${f##*/} "* ]] ||
		die "patches/layers does not have ${f##*/}"
done

rm -rf "$out"
git -C "$author" format-patch -q --no-signature --cover-letter -o "$out" pristine-7.3

# The letter: our words and the README's table in place of git's marks. It is no *.patch, so
# that git am takes all that are.
cover=$out/cover-letter
mv "$out/0000-cover-letter.patch" "$cover"
awk -v words="$TOP/patches/cover-letter" -v readme="$TOP/README.md" '
	/\*\*\* SUBJECT HERE \*\*\*/ {
		getline subject <words
		sub(/\*\*\* SUBJECT HERE \*\*\*/, subject)
	}
	/\*\*\* BLURB HERE \*\*\*/ {
		while ((getline line <words) > 0) {
			if (line != "TABLE") { print line; continue }
			while ((getline row <readme) > 0)
				if (row ~ /^\| what \| C \| Rust/) inside = 1
				else if (inside && row !~ /^\|/) break
				else if (inside && row !~ /^\|-/) {
					n = split(row, cell, " *\\| *")
					printf "  %-62s %12s %12s\n", cell[2], cell[3], cell[4]
				}
		}
		next
	}
	{ print }' "$cover" >"$work/cover"
grep -q '^  enable dirty logging' "$work/cover" || die "the README has no table for the cover letter"
mv "$work/cover" "$cover"

tree proof pristine-7.3
mapfile -t sent < <(find "$out" -name '*.patch' | sort)
git -C "$work/proof" "${me[@]}" am -q "${sent[@]}" ||
	die "the series in $out does not apply to the pristine tree; rebase patches/"
for t in author proof; do
	git -C "$work/$t" rev-parse 'HEAD^{tree}'
done | uniq -c | awk '$1 != 2 { exit 1 }' ||
	die "the series in $out gives another tree than it was made from"

# And that tree is what is built: the overlay's files, and the hooks' files.
checked=0
while read -r f; do
	cmp "$work/proof/$f" "$SRC/$f" ||
		die "$f of the series is not what build/src has"
	checked=$((checked + 1))
done < <(git -C "$work/proof" diff --name-only pristine-7.3 HEAD)
((checked + stays >= $(wc -l <"$STAMP/overlay"))) || die "the series lacks files of the overlay"
say "${#sent[@]} patches and a cover letter in build/series, $checked files as built, $stays not sent"
[[ ${VERIFY:-} ]] || exit 0
"$TOP/scripts/package/checkpatch.sh"

# --- does each commit compile?

[[ -e $BUILD/linux/Module.symvers && -e $BUILD/out-c/.config ]] ||
	die "VERIFY=1 needs the kernel and both sets of modules; run 'make kernel' first"
full=$work/full
git -C "$SRC" worktree add -q --detach --no-checkout "$full" pristine-7.3
git -C "$full" sparse-checkout set --no-cone /Makefile /Kbuild /Kconfig /scripts/ /arch/x86/ \
	/include/ /kernel/ /rust/ /virt/ /tools/include/ /tools/arch/
git -C "$full" checkout -q
trap 'git -C "$SRC" worktree remove --force "$full" || :; cleanup' EXIT
# What has compiled, a line each: the code, the configuration, and the commit's subject.
verified=$BUILD/series.verified
touch "$verified"
# compile OUT NAME: KVM's modules of the work tree, with the configuration in OUT, unless they have
# compiled before.
compile()
{
	local key log=$BUILD/logs/series.log

	key=$({
		git -C "$full" rev-parse HEAD:arch HEAD:include HEAD:rust HEAD:virt
		cat "$1/.config"
	} | sha256sum | cut -c1-16)
	! grep -q "^$key $2 " "$verified" || return 0
	mkdir -p "$work/$2/arch/x86/kvm" "$work/$2/virt/kvm" "$BUILD/logs"
	make -s -C "$full" O="$1" LLVM=-19 -j"$JOBS" M=arch/x86/kvm \
		MO="$work/$2/arch/x86/kvm" modules >"$log" 2>&1 || {
		tail -n 30 "$log"
		die "KVM does not compile (option $2) at: $(git -C "$full" log -1 --format=%s)"
	}
	echo "$key $2 $(git -C "$full" log -1 --format=%s)" >>"$verified"
}
on=0 n=0
while read -r commit; do
	git -C "$full" checkout -q "$commit"
	n=$((n + 1))
	# Tests and documentation change nothing that is compiled here.
	if git -C "$full" diff --quiet HEAD~ -- arch include rust virt; then
		say "commit $n of ${#sent[@]} is no code: $(git -C "$full" log -1 --format=%s)"
		continue
	fi
	if [[ -e $full/arch/x86/kvm/mmu/Kconfig ]] &&
	   grep -q mmu/Kconfig "$full/arch/x86/kvm/Kconfig"; then
		compile "$BUILD/linux" on
		on=$((on + 1))
	fi
	compile "$BUILD/out-c" off
	say "commit $n of ${#sent[@]} compiles: $(git -C "$full" log -1 --format=%s)"
done < <(git -C "$work/author" rev-list --reverse pristine-7.3..HEAD)
say "all $n commits compile with the option off, and $on with it on, from the one that adds it"
