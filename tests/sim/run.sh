#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make sim': the whole of the MMU's crate on the host, under a scheduler that
# decides every interleaving (tools/testing/kvm-mmu-rs/sim).
#   run.sh [--minutes N] [--scenario NAME] [--seed SEED]
#                              The scenario 'giant' is one of tables with 8 entries, and gets a twentieth
#   run.sh mutants [NAME...]   that it finds the bugs in sim/mutants; all of them. A table for
#                              results/sim.md. RUNS=n: looks for each so many times (once).
#                              Interrupted, it goes on where it was, unless a source has changed
#   run.sh every [OPTION]...   every schedule of small worlds. --world NAME: of one; --format Npt, EptAd,
#                              Ept or EptPml; --preemptions N: where there are too many, those with
#                              so many preemptions at most (2)
#   run.sh speed [MINUTES]     how many schedules of each scenario it takes in a second of a CPU, as a
#                              table for results/sim.md
#   run.sh coverage [MINUTES]  which lines of the algorithms two minutes reach, and which they do not
#   run.sh ci                  for 'make test': two minutes, small worlds on NPT, five mutants and
#                              the rules, as TAP
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=tests/switch.sh
. "$TOP/tests/switch.sh"
if [[ ! ${LAB_INSIDE:-} ]]; then
	# Whom to trust is the machine's business: it may have a proxy of its own.
	trust=()
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	LAB_ENV="${LAB_ENV:-} RUNS" exec "$TOP/scripts/in-root" "${trust[@]}" "$TOP/tests/sim/run.sh" "$@"
fi

sim=tools/testing/kvm-mmu-rs/sim
mutants=$TOP/$sim/mutants
# The five of 'make test'.
telling=(no-flush-after-zap store-instead-of-exchange no-freeze aging-by-store bits-taken-by-store)
logs=$BUILD/logs/sim planted=$BUILD/sim-mutants
declare -A number=()
runs=${RUNS:-1}
[[ $runs =~ ^[1-9][0-9]*$ ]] || die "RUNS=$runs is no number of runs"

# build TREE TARGET PROFILE [CARGO-ARGUMENT]...: the simulation of a source tree; says where it is.
build()
{
	env -C "$1/$sim" CARGO_TARGET_DIR="$2" cargo build --profile "$3" --locked --quiet "${@:4}" >&2 ||
		die "the simulation does not build"
	echo "$2/$3/kvm-mmu-sim"
}

# small TREE TARGET PROFILE [CARGO-ARGUMENT]...: the same with tables of 8 entries.
small()
{
	build "$@" --features small
}

# copy TREE: the sources that a simulation is built from; says where the MMU's crate is.
copy()
{
	mkdir -p "$1"
	rsync -a --delete --exclude target --include '/arch/***' --include '/rust/***' \
		--include '/tools/***' --exclude '*' "$TOP/arch" "$TOP/rust" "$TOP/tools" "$1/"
	# Where the crate is, only its manifest says.
	echo "$1/$sim/mmu/$(sed -n 's|^path = "\(.*\)/rust_mmu.rs"|\1|p' "$TOP/$sim/mmu/Cargo.toml")"
}

# plant NAME...: builds the MMU with these bugs, each behind a switch. Outcomes of other sources are removed.
plant()
{
	local tree=$planted/tree crate m key elsewhere=()
	mkdir -p "$planted" "$logs"
	: >"$planted/bugs"
	for m; do
		[[ -e $mutants/$m.patch ]] ||
			die "no mutant '$m'; there are: $(cd "$mutants" && echo *.patch | sed 's/\.patch//g')"
		number[$m]=$((${#number[@]} + 1))
		if grep -q '^In: ' "$mutants/$m.patch"; then
			elsewhere+=("${number[$m]}")
		else
			echo "${number[$m]}=$mutants/$m.patch" >>"$planted/bugs"
		fi
	done
	key=$(cd "$TOP" && git ls-files -co --exclude-standard arch/x86/kvm/mmu/rust rust "$sim" |
		xargs cat tests/switch.py tests/mutant.rs tests/sim/run.sh | cat - <(echo "$runs" "$@") | sha256sum)
	program=$planted/target/mutant/kvm-mmu-sim program_small=$planted/target-small/mutant/kvm-mmu-sim
	[[ ! -e $planted/key || $(<"$planted/key") != "$key" ]] || return 0
	rm -f "$planted"/{key,outcomes}
	crate=$(copy "$tree")
	: >"$planted/unviable"
	: >"$planted/alone"
	if [[ -s $planted/bugs ]]; then
		switch_in "$TOP/arch/x86/kvm/mmu/rust" "$crate" rust_mmu.rs "$planted" env -C "$tree/$sim" \
			CARGO_TARGET_DIR="$planted/check" cargo check -p kvm_rust_mmu --locked --message-format json
		program=$(export "${switch_env[@]}" && build "$tree" "$planted/target" mutant)
		# shellcheck disable=SC2046 # names
		! (cd "$mutants" && grep -qx 'Scenario: giant' $(printf '%s.patch ' "$@")) ||
			program_small=$(export "${switch_env[@]}" && small "$tree" "$planted/target-small" mutant)
	fi
	printf '%s\n' "${elsewhere[@]}" >>"$planted/alone"
	echo "$key" >"$planted/key"
}

# plant_alone NAME: builds the simulation with one bug, which is not in the body of a function of the MMU's; says
# where it is.
plant_alone()
{
	local tree=$planted/alone-tree crate dir
	crate=$(copy "$tree")
	# A bug may also be in C, that is in what models it.
	dir=$(sed -n 's/^In: //p' "$mutants/$1.patch")
	patch -d "${dir:+$tree/}${dir:-$crate}" -p1 --quiet --no-backup-if-mismatch <"$mutants/$1.patch" >&2 ||
		die "the mutant $1 does not apply; export it again"
	# What the last one has changed there is older again than what was built of it.
	touch "$tree/$sim/kvm/src/lib.rs"
	if grep -qx 'Scenario: giant' "$mutants/$1.patch"; then
		small "$tree" "$planted/alone-target-small" mutant
	else
		build "$tree" "$planted/alone-target" mutant
	fi
}

# mutant NAME RUNS: looks for the bug that many times, each for a minute of a CPU at most. Sets $count and
# $seconds to what the median run took, and $why to what was found; fails if a run has found nothing,
# and $why says so.
mutant()
{
	local log=$logs/$1.log run=$program only status n counts=() times=()
	count=- seconds=-
	# The scenario that should find it, if it is not left to all of them.
	only=$(sed -n 's/^Scenario: //p' "$mutants/$1.patch")
	[[ $only != giant ]] || run=$program_small
	if grep -qx "${number[$1]}" "$planted/unviable"; then
		why="does not compile"
		return 1
	fi
	if grep -qx "${number[$1]}" "$planted/alone"; then
		run=$(plant_alone "$1") || {
			why="does not compile"
			return 1
		}
	fi
	for ((n = 1; n <= $2; n++)); do
		status=0
		MUTANT=${number[$1]} limited 300 "$run" --minutes 1 ${only:+--scenario "$only"} >"$log" 2>&1 ||
			status=$?
		if ((status == 0)); then
			count=- why="not found in a minute, in run $n of $2"
			return 1
		fi
		count=$(sed -n 's/^  schedule \([0-9]*\) of this run, .*/\1/p' "$log")
		[[ $count ]] || {
			count=- why="ended with status $status, and no failure"
			return 1
		}
		counts+=("$count")
		times+=("$(sed -n 's/^  schedule .* run, \(.*\) s of a CPU/\1/p' "$log")")
	done
	why=$(sed -n 's/^FAILED: //p' "$log")
	count=$(median "${counts[@]}") seconds=$(median "${times[@]}")
}

# median NUMBER...
median()
{
	printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"
}

case ${1:-} in
mutants)
	shift
	telling=("$@")
	(($#)) || mapfile -t telling < <(cd "$mutants" && printf '%s\n' *.patch | sed 's/\.patch$//')
	plant "${telling[@]}"
	missed=() all=()
	echo "The median of $runs runs; a run ends after a minute of a CPU."
	echo
	echo "| bug | what | found by | schedules | seconds of a CPU |"
	echo "|---|---|---|--:|--:|"
	for m in "${telling[@]}"; do
		if ! line=$(grep -s "^$m	" "$planted/outcomes"); then
			mutant "$m" "$runs" || :
			line=$(printf '%s\t' "$m" "$count" "$seconds")$why
			echo "$line" >>"$planted/outcomes"
			say "$(wc -l <"$planted/outcomes") of ${#telling[@]}: $line"
		fi
		IFS=$'\t' read -r _ count seconds why <<<"$line"
		if [[ $count = - ]]; then
			missed+=("$m")
		else
			all+=("$count")
		fi
		echo "| \`$m\` | $(sed -n 2p "$mutants/$m.patch") | $why | $count | $seconds |"
	done
	echo
	echo "${#all[@]} of ${#telling[@]} are found in every run; the median of their schedules is" \
		"$(median "${all[@]}"), the most $(printf '%s\n' "${all[@]}" | sort -g | tail -n 1)."
	((!${#missed[@]})) || die "not found: ${missed[*]}"
	;;
coverage)
	# LLVM's tools are those of the version that rustc is built with.
	llvm=$(rustc --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
	# measure NAME BUILDER ARGUMENT...: what a run of that program reaches, as lcov's text.
	measure()
	{
		local dir=$BUILD/sim-coverage/$1 program
		program=$(LLVM_PROFILE_FILE=/dev/null RUSTFLAGS="-C instrument-coverage" "$2" "$TOP" "$dir" release)
		LLVM_PROFILE_FILE=$dir/run.profraw "$program" "${@:3}" >&2
		"llvm-profdata-$llvm" merge -sparse "$dir/run.profraw" -o "$dir/run.profdata"
		"llvm-cov-$llvm" export --format lcov --instr-profile "$dir/run.profdata" "$program"
	}
	# A line is reached if one of the two reaches it.
	{
		measure tables-512 build --minutes "${2:-2}"
		measure tables-8 small --scenario giant --minutes "$(awk "BEGIN { print ${2:-2} / 10 }")"
	} |
		grep -E '^(SF|DA):' |
		awk -F '[:,]' '
			/^SF:/ {
				name = ""
				if ($2 ~ /mmu\/rust\/(ops|rmap)\// || $2 ~ /mmu\/rust\/(change|walk)\.rs$/) {
					name = $2
					sub(/.*mmu\/rust\//, "", name)
					if (!(name in lines))
						names[++files] = name
				}
			}
			/^DA:/ && name {
				if (!((name, $2) in count))
					order[name, ++lines[name]] = $2
				count[name, $2] += $3
			}
			END {
				print "| file | lines | reached | not reached |"
				print "|---|--:|--:|---|"
				for (f = 1; f <= files; f++) {
					name = names[f]; n = 0; missed = ""
					for (i = 1; i <= lines[name]; i++) {
						line = order[name, i]
						if (count[name, line])
							n++
						else
							missed = missed (missed ? ", " : "") line
					}
					printf "| `%s` | %d | %d | %s |\n", name, lines[name], n, missed
					sum += lines[name]; reached += n
				}
				printf "| all | %d | %d | %.1f %% |\n", sum, reached, 100 * reached / sum
			}'
	;;
speed)
	program=$(build "$TOP" "$BUILD/sim" release)
	"$program" --minutes "${2:-2}" --from 1 | tee /dev/stderr | awk '
		BEGIN {
			print "| scenario | what | schedules | a second | steps each |"
			print "|---|---|--:|--:|--:|"
		}
		/ steps each: ok / {
			what = $0
			sub(/^[^(]*\(/, "", what)
			sub(/\)$/, "", what)
			printf "| `%s` | %s | %d | %d | %d |\n", $1, what, $2, $4, $7
		}
		/^nobody / { print "\n" toupper(substr($0, 1, 1)) substr($0, 2) "." }'
	;;
every)
	program=$(small "$TOP" "$BUILD/sim-small" release)
	exec "$program" "${@:2}"
	;;
ci)
	mkdir -p "$logs"
	program=$(build "$TOP" "$BUILD/sim" release)
	# Two minutes of a CPU, beside what follows. The same schedules each time, so that a test says
	# something about the change that it is run for; 'make sim' tries others.
	"$program" --minutes 2 --from 1 >"$logs/ci.log" 2>&1 &
	soak=$! n=0
	trap 'kill "$soak" 2>/dev/null || :' EXIT
	rules=$("$TOP/tests/sim/rules.sh")
	mapfile -t rules < <(grep -E '^(not )?ok ' <<<"$rules")
	echo "1..$((3 + ${#telling[@]} + ${#rules[@]}))"
	plant "${telling[@]}"
	for m in "${telling[@]}"; do
		if mutant "$m" 1; then
			echo "ok $((++n)) - the bug $m is found"
		else
			echo "not ok $((++n)) - the bug $m is found # $why"
		fi
	done
	for rule in "${rules[@]}"; do
		sed -E "s/^((not )?ok) [0-9]+/\\1 $((++n))/" <<<"$rule"
	done
	program=$(small "$TOP" "$BUILD/sim-small" release)
	if "$program" --format Npt >"$logs/every.log" 2>&1; then
		echo "ok $((++n)) - every schedule of the small worlds keeps the rules"
	else
		echo "not ok $((++n)) - every schedule of the small worlds keeps the rules # see $logs/every.log"
	fi
	if "$program" --scenario giant --minutes 0.2 --from 1 >"$logs/giant.log" 2>&1; then
		echo "ok $((++n)) - schedules with pages of 1 GiB keep the rules"
	else
		echo "not ok $((++n)) - schedules with pages of 1 GiB keep the rules # see $logs/giant.log"
	fi
	wait "$soak" && kept=1 || kept=''
	trap - EXIT
	if [[ $kept ]]; then
		echo "ok $((++n)) - every schedule of two minutes keeps the rules"
	else
		echo "not ok $((++n)) - every schedule of two minutes keeps the rules # see $logs/ci.log"
	fi
	cat "$logs/ci.log" >&2
	;;
*)
	minutes=2 scenario=''
	for ((n = 1; n < $#; n++)); do
		[[ ${!n} != --minutes ]] || minutes=${*:n + 1:1}
		[[ ${!n} != --scenario ]] || scenario=${*:n + 1:1}
	done
	if [[ $scenario != giant ]]; then
		program=$(build "$TOP" "$BUILD/sim" release)
		"$program" "$@"
		[[ ! $scenario ]] || exit 0
		set -- --scenario giant --minutes "$(awk "BEGIN { print $minutes / 20 }")"
	fi
	program=$(small "$TOP" "$BUILD/sim-small" release)
	"$program" "$@"
	;;
esac
