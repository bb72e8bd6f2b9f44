#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Write the whole fork as a git format-patch series to build/series, and prove
# it: git am takes it on the pristine tree, and gives what is built here.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
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
		/arch/x86/kvm/ /arch/x86/include/ /virt/kvm/ /Documentation/virt/kvm/ /Documentation/litmus-tests/ \
		/tools/testing/selftests/kvm/ /tools/testing/kvm-mmu-rs/
	git -C "$work/$1" checkout -q
}

me=(-c user.name="KVM Rust MMU team" -c user.email=kvm-mmu-rs@localhost)
commit()
{
	local subject=$1 body=$2 f
	shift 2
	for f; do
		mkdir -p "$(dirname "$work/author/$f")"
		cp "$SRC/$f" "$work/author/$f"
	done
	git -C "$work/author" add -f -- "$@"
	git -C "$work/author" "${me[@]}" commit -qs --date=@1767225600 -m "$subject" -m "$body"
}

mapfile -t files <"$STAMP/overlay"
pick()
{
	printf '%s\n' "${files[@]}" | grep -E "$1"
}

# The overlay first: the hooks refer to its files, so that each step builds.
tree author pristine-7.3
mapfile -t pure < <(pick '^arch/x86/kvm/mmu/pure/')
mapfile -t oracle < <(pick '^arch/x86/kvm/mmu/(kunit\.rs|rust_oracle\.[ch])$')
mapfile -t mmu < <(pick '^arch/' | grep -vxFf <(printf '%s\n' "${pure[@]}" "${oracle[@]}"))
mapfile -t tests < <(pick '^tools/')
mapfile -t docs < <(pick '^Documentation/')
commit "KVM: x86/mmu: Add the pure core of a TDP MMU in Rust" \
	"SPTEs, levels, roles and transitions as values, and the decisions about them." \
	"${pure[@]}"
commit "KVM: x86/mmu: Add KUnit tests that compare SPTEs with C" \
	"The oracle is spte.c itself, included under other names." "${oracle[@]}"
commit "KVM: x86/mmu: Add the TDP MMU in Rust" \
	"It is not built before the hooks that follow." "${mmu[@]}"
commit "KVM: selftests: Add tests of the Rust MMU" \
	"Selftests of dirty logging and of what runs beside it, and host tests of the pure core." \
	"${tests[@]}"
commit "Documentation: KVM: Describe the TDP MMU in Rust" \
	"Layers, types, locking, tests." "${docs[@]}"
git -C "$work/author" "${me[@]}" am -q --committer-date-is-author-date "$TOP"/patches/*.patch

rm -rf "$out"
git -C "$work/author" format-patch -q --no-signature -o "$out" pristine-7.3

tree proof pristine-7.3
git -C "$work/proof" "${me[@]}" am -q "$out"/*.patch ||
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
((checked >= ${#files[@]})) || die "the series lacks files of the overlay"
say "$(find "$out" -name '*.patch' | wc -l) patches in build/series, $checked files as built"
