#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make check': formats, lints, documentation and litmus tests. Every finding is
# shown; any fails.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# herd7 is the machine's, if it has one, and not the root's.
if [[ ! ${LAB_INSIDE:-} ]]; then
	litmus=0
	"$TOP/tests/litmus/run.sh" || litmus=$?
	export litmus LAB_ENV="${LAB_ENV:-} litmus"
fi
enter_root "$@"
cd "$TOP"

failed=()
step()
{
	local name=$1
	shift
	say "$name"
	"$@" || failed+=("$name")
}

mapfile -t rust < <(git ls-files '*.rs' ':!*/sim/rules/*')
mapfile -t rules < <(git ls-files '*/sim/rules/*.rs')
mapfile -t c_files < <(git ls-files '*.c' '*.h')
mapfile -t shell < <(git ls-files | while read -r f; do
	if [[ $f = *.sh ]] || { [[ -f $f ]] && head -n1 "$f" | grep -qE '^#!.*\bbash'; }; then
		echo "$f"
	fi
done)

# rustfmt leaves alone what is in a macro: show it the exports as a module. And of a program
# that must not compile, show it the twin that does.
formats()
{
	local status=0 f found rustfmt=(rustfmt --check --edition 2021 --config-path "$SRC/.rustfmt.toml")

	"${rustfmt[@]}" "${rust[@]}" || status=1
	# Of standard input rustfmt prints what it would change, and returns 0.
	for f in "${rust[@]}" "${rules[@]}"; do
		grep -qE '^export! \{$|//~ (FAILS|TWIN)$' "$f" || continue
		found=$(sed 's/^export! {$/mod export {/; \,//~ FAILS$,d; s, *//~ TWIN$,,' "$f" |
			"${rustfmt[@]}" 2>&1) || status=1
		[[ ! $found ]] || { echo "$f: $found"; status=1; }
	done
	return "$status"
}

# Kbuild runs clippy in place of rustc; what it warns of fails.
clippy()
{
	local log=$BUILD/logs/clippy.log out=$BUILD/mod-clippy
	mkdir -p "$out" "$BUILD/logs"
	rm -f "$out/mmu/rust/rust_mmu.o"
	make -C "$SRC" O="$BUILD/linux" LLVM=-19 CLIPPY=1 M=arch/x86/kvm MO="$out" \
		mmu/rust/rust_mmu.o >"$log" 2>&1 || { tail -n 40 "$log"; return 1; }
	! grep -A12 '^\(warning\|error\)' "$log"
}

# On standard input, because checkpatch takes a file that git tracks for source.
# In userspace, a symbol that the linker wraps has no header. Programs of tests/
# have no kernel headers at all.
checkpatch()
{
	local status=0 f cp=(perl "$SRC/scripts/checkpatch.pl" --strict --quiet
		--no-summary --root="$SRC" --show-types)
	local user=AVOID_EXTERNS
	local bare=PREFER_KERNEL_TYPES,ARRAY_SIZE,VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO
	bare+=,EMBEDDED_FUNCTION_NAME,MACRO_ARG_REUSE,CAMELCASE,BIT_MACRO
	for f in patches/*.patch; do
		"${cp[@]}" - <"$f" || status=1
	done
	for f in "${c_files[@]}"; do
		case $f in
		tests/*)
			"${cp[@]}" --ignore "$user,$bare" --file "$f" || status=1 ;;
		tools/*)
			"${cp[@]}" --ignore "$user" --file "$f" || status=1 ;;
		*)	"${cp[@]}" --file "$f" || status=1 ;;
		esac
	done
	return "$status"
}

# Every file that the documentation names is there.
# shellcheck disable=SC2016 # RST's backquotes
documentation()
{
	local status=0 f
	while read -r f; do
		[[ -e $f ]] || compgen -G "arch/x86/kvm/mmu/rust/$f" >/dev/null ||
			{ echo "rust-mmu.rst names $f, which is not there"; status=1; }
	done < <(grep -oE '``[a-z_/]+\.(rs|c|h)``' Documentation/virt/kvm/x86/rust-mmu.rst |
		tr -d '`' | grep -vE '^(tdp_iter|tdp_mmu|spte|mmu)\.c$|paging_tmpl' | sort -u)
	return "$status"
}

# What is computed with frames, SPTEs and roles is in pure/. Elsewhere `.0` is a type's own field, and
# numbers for C are raw().
newtypes()
{
	! git ls-files 'arch/x86/kvm/mmu/rust/*.rs' | grep -vE '/pure/|/kunit(\.rs$|/)' |
		xargs grep -nP '^(?! *//).*(?<!self)\.0\b'
}

# rustfmt does not look at comments, and leaves vertical imports as they are.
comments()
{
	git ls-files '*.rs' | xargs tests/check/comments.py
}

imports()
{
	git ls-files '*.rs' | xargs tests/check/imports.py
}

licenses()
{
	local f status=0
	while read -r f; do
		head -n3 "$f" | grep -q 'SPDX-License-Identifier: GPL-2.0' ||
			{ echo "$f has no SPDX line"; status=1; }
	done < <(git ls-files | grep -vE '\.patch$|^patches/cover-letter$|Cargo\.lock$|\.gitignore$|proptest-regressions')
	return "$status"
}

# Each planted bug has to apply, with fuzz: those of the selftests to this tree, those of the
# simulation to the crate, or to what "In:" names.
mutants()
{
	local p dir status=0
	for p in tests/mutants/*.patch tools/testing/kvm-mmu-rs/sim/mutants/*.patch; do
		dir=.
		[[ $p = tests/* ]] || dir=$(sed -n 's/^In: //p' "$p")
		[[ $dir ]] || dir=arch/x86/kvm/mmu/rust
		patch -s -f -p1 --dry-run -d "$dir" <"$p" ||
			{ echo "$p does not apply; export it again"; status=1; }
	done
	return "$status"
}

step "rustfmt" formats
step "clippy, as the kernel sets it" clippy
step "checkpatch" checkpatch
step "shellcheck" shellcheck -x "${shell[@]}"
step "codespell" codespell -L nd,parm README.md INSTALL.md results Documentation arch rust scripts tests contrib patches
step "documentation" documentation
step "layers" tests/check/layers.py
step "newtypes" newtypes
step "comments" comments
step "imports" imports
step "mutants" mutants
step "the C that the simulation models" tests/sim/models.sh
step "licenses" licenses
step "series" scripts/package/series.sh
# What they say stands above.
step "litmus tests" test "${litmus:-0}" = 0

((!${#failed[@]})) || die "make check failed in: ${failed[*]}"
say "all checks pass"
