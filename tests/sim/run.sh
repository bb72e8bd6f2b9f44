#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make sim': the whole of the MMU's crate on the host, under a scheduler that
# decides every interleaving (tools/testing/kvm-mmu-rs/sim).
#   run.sh [--minutes N] [--scenario NAME] [--seed SEED]
#   run.sh mutants [NAME...]   that it finds the bugs in sim/mutants; all of them
#   run.sh every               every schedule of small worlds
#   run.sh ci                  for 'make test': two minutes, and five mutants, as TAP
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
if [[ ! ${LAB_INSIDE:-} ]]; then
	# Whom to trust is the machine's business: it may have a proxy of its own.
	trust=()
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	exec "$TOP/scripts/in-root" "${trust[@]}" "$TOP/tests/sim/run.sh" "$@"
fi

sim=tools/testing/kvm-mmu-rs/sim
mutants=$TOP/$sim/mutants
# The five of 'make test'.
telling=(no-flush-after-zap store-instead-of-exchange no-freeze aging-by-store bits-taken-by-store)
logs=$BUILD/logs/sim

# build TREE TARGET PROFILE [CARGO-ARGUMENT]...: the simulation of a source tree; says where it is.
build()
{
	env -C "$1/$sim" CARGO_TARGET_DIR="$2" cargo build --profile "$3" --locked --quiet "${@:4}" >&2 ||
		die "the simulation does not build"
	echo "$2/$3/kvm-mmu-sim"
}

# mutant NAME: builds the MMU with one bug, and looks for it for a minute.
# Returns 0 if it is found; says by what.
mutant()
{
	local patch=$mutants/$1.patch tree=$BUILD/sim-mutants/tree log=$logs/$1.log crate program only status=0
	[[ -e $patch ]] ||
		die "no mutant '$1'; there are: $(cd "$mutants" && echo *.patch | sed 's/\.patch//g')"
	mkdir -p "$tree" "$logs"
	rsync -a --delete --exclude target --include '/arch/***' --include '/rust/***' \
		--include '/tools/***' --exclude '*' "$TOP/arch" "$TOP/rust" "$TOP/tools" "$tree/"
	# Where the crate is, only its manifest says.
	crate=$tree/$sim/mmu/$(sed -n 's|^path = "\(.*\)/rust_mmu.rs"|\1|p' "$TOP/$sim/mmu/Cargo.toml")
	patch -d "$crate" -p1 --quiet --no-backup-if-mismatch <"$patch" >&2 ||
		die "the mutant $1 does not apply; export it again"
	# The scenario that should find it, if it is not left to all of them.
	only=$(sed -n 's/^Scenario: //p' "$patch")
	program=$(build "$tree" "$BUILD/sim-mutants/target" mutant)
	timeout 600 "$program" --minutes 1 ${only:+--scenario "$only"} >"$log" 2>&1 || status=$?
	if ((status == 0)); then
		echo "not found in a minute"
		return 1
	fi
	grep -m1 '^FAILED: ' "$log" || echo "ended with status $status"
	grep -m1 '^  schedule' "$log" || :
}

case ${1:-} in
mutants)
	shift
	telling=("$@")
	(($#)) || mapfile -t telling < <(cd "$mutants" && printf '%s\n' *.patch | sed 's/\.patch$//')
	missed=()
	for m in "${telling[@]}"; do
		start=$SECONDS
		if found=$(mutant "$m"); then
			printf '%-28s found in %2d s: %s\n' "$m" $((SECONDS - start)) "${found//$'\n'/;}"
		else
			printf '%-28s %s\n' "$m" "$found"
			missed+=("$m")
		fi
	done
	((!${#missed[@]})) || die "not found: ${missed[*]}"
	say "all ${#telling[@]} mutants were found"
	;;
every)
	program=$(build "$TOP" "$BUILD/sim-small" release --features small)
	exec "$program"
	;;
ci)
	mkdir -p "$logs"
	n=0
	echo "1..$((1 + ${#telling[@]}))"
	program=$(build "$TOP" "$BUILD/sim" release)
	if "$program" --minutes 2 >"$logs/ci.log" 2>&1; then
		echo "ok $((++n)) - every schedule of two minutes keeps the rules"
	else
		echo "not ok $((++n)) - every schedule of two minutes keeps the rules # see $logs/ci.log"
	fi
	cat "$logs/ci.log" >&2
	for m in "${telling[@]}"; do
		if found=$(mutant "$m"); then
			echo "ok $((++n)) - the bug $m is found"
		else
			echo "not ok $((++n)) - the bug $m is found # $found"
		fi
	done
	;;
*)
	program=$(build "$TOP" "$BUILD/sim" release)
	exec "$program" "$@"
	;;
esac
