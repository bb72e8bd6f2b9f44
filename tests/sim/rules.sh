#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The rules that types carry, as programs that must not compile
# (tools/testing/kvm-mmu-rs/sim/rules): each is a module of the MMU's crate. Without its line that
# is marked TWIN it is refused, at the line marked FAILS and for the reason in its head, and
# for nothing else; without the other line it compiles. As TAP.
#   rules.sh [NAME]...   only these
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
if [[ ! ${LAB_INSIDE:-} ]]; then
	trust=()
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	exec "$TOP/scripts/in-root" "${trust[@]}" "$TOP/tests/sim/rules.sh" "$@"
fi

sim=tools/testing/kvm-mmu-rs/sim
rules=$TOP/$sim/rules
tree=$BUILD/sim-rules/tree
export CARGO_TARGET_DIR=$BUILD/sim-rules/target

names=("$@")
(($#)) || mapfile -t names < <(cd "$rules" && printf '%s\n' *.rs | sed 's/\.rs$//')
for name in "${names[@]}"; do
	[[ -e $rules/$name.rs ]] || die "there is no rule '$name' in $rules"
done

mkdir -p "$tree"
rsync -a --delete --exclude target --include '/arch/***' --include '/rust/***' --include '/tools/***' --exclude '*' \
	"$TOP/arch" "$TOP/rust" "$TOP/tools" "$tree/"
# Where the crate is, only its manifest says.
crate=$tree/$sim/mmu/$(sed -n 's|^path = "\(.*\)/rust_mmu.rs"|\1|p' "$TOP/$sim/mmu/Cargo.toml")
cp "$crate/rust_mmu.rs" "$tree/rust_mmu.rs"

# compile MODULE...: the crate with these modules; what rustc says, a line for each error.
compile()
{
	local module
	cp "$tree/rust_mmu.rs" "$crate/rust_mmu.rs"
	for module in "$@"; do
		printf '#[allow(dead_code, unused)]\nmod %s;\n' "$module" >>"$crate/rust_mmu.rs"
	done
	env -C "$tree/$sim" cargo check -p kvm_rust_mmu --locked --quiet --message-format short 2>&1
}

echo "1..$((${#names[@]} + 1))"

# All twins at once: they compile.
modules=()
for name in "${names[@]}"; do
	modules+=("rule_${name//-/_}")
	grep -v '//~ FAILS$' "$rules/$name.rs" >"$crate/${modules[-1]}.rs"
done
if said=$(compile "${modules[@]}"); then
	echo "ok 1 - the twin of each program compiles"
else
	echo "not ok 1 - the twin of each program compiles # $(grep -m1 'error' <<<"$said")"
	printf '%s\n' "$said" >&2
fi

n=1
for name in "${names[@]}"; do
	file=$rules/$name.rs module=rule_${name//-/_}
	what=$(sed -n 's|^// Rule: ||p' "$file") code=$(sed -n 's|^// Error: ||p' "$file")
	grep -v '//~ TWIN$' "$file" >"$crate/$module.rs"
	line=$(grep -n '//~ FAILS$' "$crate/$module.rs" | cut -d: -f1)
	n=$((n + 1)) why=''
	if said=$(compile "$module"); then
		why="it compiles"
	else
		# "error[E0499]: ..." for an error, and "error: ..." for a lint, which has no number.
		errors=$(grep -E "^[^ ]*:[0-9]+:[0-9]+: error" <<<"$said" || :)
		case $code in
		E*) reason="error\\[$code\\]" ;;
		unused_must_use) reason='error: unused .* that must be used' ;;
		unsafe_code) reason="error: usage of an \`unsafe\` block" ;;
		*) die "$file names no reason that is known: '$code'" ;;
		esac
		other=$(grep -vE "/$module\\.rs:$line:[0-9]+: $reason" <<<"$errors" || :)
		if [[ ! $errors ]]; then
			why="rustc fails for another reason"
		elif [[ $other ]]; then
			why="it is refused for another reason: ${other#*"$module"}"
		fi
	fi
	if [[ $why ]]; then
		echo "not ok $n - $name: $what # $why"
		printf '%s\n' "$said" >&2
	else
		echo "ok $n - $name: $what ($code)"
	fi
done
