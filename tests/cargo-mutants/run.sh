#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-cargo-mutants': whether the host tests and the simulation notice what cargo-mutants
# breaks. All mutants are in one build, each behind a switch; those that are in no function's body, and so
# cannot be, are built alone.
# Interrupted, it goes on where it was.
#   run.sh [pure|sample]...   pure: all of pure/, by the host tests. sample: a sample of the algorithms, that
#                             of the file 'drawn', by the simulation. Both, if none is named
#   run.sh again              tries those again that were missed and are not known to change nothing; the
#                             simulation looks for each for a minute of a CPU, as for planted bugs
#   run.sh report             what was found so far: a table for results/cargo-mutants.md
# SAMPLE=n, SEED=n: draws another sample, of that size (200), by that seed (15). PURE=n: only so many of those in
# pure/, drawn by the seed.
# SECONDS_EACH=n (6): how many seconds of a CPU the simulation looks for each: in the scenario that the file
# 'scenarios' names for it, or in that of its file, and then in all. What it finds is only the mutant's if the MMU
# as it is passes the same schedule.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=tests/switch.sh
. "$TOP/tests/switch.sh"
if [[ ! ${LAB_INSIDE:-} ]]; then
	# Whom to trust is the machine's business: it may have a proxy of its own.
	trust=()
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	LAB_ENV="${LAB_ENV:-} PURE SAMPLE SEED SECONDS_EACH" exec "$TOP/scripts/in-root" "${trust[@]}" \
		"$TOP/tests/cargo-mutants/run.sh" "$@"
fi

# The last one that Debian 13's rustc compiles.
version=25.3.1
tool=$CACHE/cargo-mutants-$version/bin/cargo-mutants
host=$TOP/tools/testing/kvm-mmu-rs mmu=$TOP/arch/x86/kvm/mmu/rust
sim=tools/testing/kvm-mmu-rs/sim
work=$BUILD/cargo-mutants
here=$TOP/tests/cargo-mutants
sample=${SAMPLE:-200} seed=${SEED:-15} seconds=${SECONDS_EACH:-6}
which=("$sample" "$seed")
[[ ${SAMPLE:-}${SEED:-} ]] || which=("$here/drawn")
for n in "${PURE:-1}" "$sample" "$seed" "$seconds"; do
	[[ $n =~ ^[1-9][0-9]*$ ]] || die "'$n' is no number; PURE, SAMPLE, SEED and SECONDS_EACH are"
done

install_tool()
{
	[[ ! -x $tool ]] || return 0
	say "compiling cargo-mutants $version, once: 7 minutes"
	mkdir -p "$work"
	CARGO_TARGET_DIR=$work/tool cargo install --debug --locked --root "$CACHE/cargo-mutants-$version" \
		"cargo-mutants@$version" >"$work/tool.log" 2>&1 ||
		die "cargo-mutants $version, which this needs, could not be installed; see $work/tool.log"
	rm -rf "$work/tool"
}

# fresh DIRECTORY FILE...: empties the directory, unless it is of the same files.
fresh()
{
	local dir=$1 sum
	sum=$(cat "${@:2}" | sha256sum)
	[[ -e $dir/sum && $(<"$dir/sum") = "$sum" ]] || rm -rf "$dir"
	mkdir -p "$dir"
	echo "$sum" >"$dir/sum"
}

# is_current PROGRAM DIRECTORY...: whether it is newer than all Rust there.
is_current()
{
	[[ -e $1 && ! $(find "${@:2}" -name '*.rs' -newer "$1") ]]
}

# list DIRECTORY SOURCES ROOT FILE... -- ARGUMENT...: those of cargo-mutants' mutants of these files that draw.py draws
# with the arguments. SOURCES holds the crate's, ROOT is its first. Numbers and names are in DIRECTORY/list, diffs
# in DIRECTORY/diffs.
list()
{
	local dir=$1 sources=$2 root=$3 files=()
	shift 3
	while [[ $1 != -- ]]; do
		files+=(-f "src/$1")
		shift
	done
	shift
	[[ ! -e $dir/list ]] || return 0
	rm -rf "$dir/crate"
	mkdir -p "$dir/crate" "$dir/diffs"
	cp -a "$sources" "$dir/crate/src"
	printf '%s\n' '[package]' 'name = "crate"' 'edition = "2021"' '[lib]' \
		"path = \"src/$root\"" '[workspace]' >"$dir/crate/Cargo.toml"
	"$tool" mutants --dir "$dir/crate" --list --json --diff "${files[@]}" 2>"$dir/log" |
		python3 -B "$here/draw.py" "$dir/diffs" "$@" >"$dir/list.part"
	sed "s|^\([0-9]*\)\t.*|\1=$dir/diffs/\1|" "$dir/list.part" >"$dir/bugs"
	mv "$dir/list.part" "$dir/list"
}

# each DIRECTORY SOURCES CRATE: tries those of DIRECTORY/list that have no line in DIRECTORY/outcomes yet.
# Such a line has the number, what came of it, the seconds, and the name. Uses the functions try NUMBER,
# whose status says whether the bug was missed (0), or the tests did not end (152), and build_alone.
each()
{
	local dir=$1 sources=$2 crate=$3 n name status before
	touch "$dir/outcomes"
	while IFS=$'\t' read -r n name; do
		! grep -q "^$n	" "$dir/outcomes" || continue
		! grep -qx "$n" "$dir/alone" || continue
		status=0 before=$EPOCHREALTIME
		if grep -qx "$n" "$dir/unviable"; then
			status=unviable
		else
			try "$n" || status=$?
		fi
		outcome_is "$status"
	done <"$dir/list"
	while IFS=$'\t' read -r n name; do
		! grep -q "^$n	" "$dir/outcomes" || continue
		status=0 before=$EPOCHREALTIME
		rsync -a --delete --exclude /target "$sources/" "$crate/"
		patch -d "$crate" -p1 --quiet --no-backup-if-mismatch <"$dir/diffs/$n" >&2 ||
			die "cargo-mutants' diff for '$name' does not apply"
		if build_alone; then
			try 0 || status=$?
		else
			status=unviable
		fi
		outcome_is "$status"
	done <"$dir/list"
}

# outcome_is STATUS: writes the line of the mutant that each is at.
outcome_is()
{
	local what
	case $1 in
	0) what=missed ;;
	152) what=timeout ;;
	unviable) what=unviable ;;
	# A failure, a panic, an abort, an overflow of the stack.
	1|101|134|139) what=caught ;;
	*) die "with '$name' the tests ended with status $1, see $dir/log" ;;
	esac
	printf '%s\t%s\t%s\t%s\n' "$n" "$what" \
		"$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $before }")" "$name" >>"$dir/outcomes"
	say "${dir##*/}: $(wc -l <"$dir/outcomes") of $(wc -l <"$dir/list"): $what: $name"
}

# --- pure/, by the host tests

# The tests as one crate whose sources are all below it, and as one program.
pure_tree()
{
	local new=$1 test
	rm -rf "$new"
	mkdir -p "$new/tests/all"
	cp -a "$host"/{Cargo.toml,Cargo.lock,src} "$new/"
	cp -a "$mmu/pure" "$mmu/rmap/encoding.rs" "$new/src/"
	sed -i '/^#\[path = /d' "$new/src/lib.rs"
	for test in "$host"/tests/*.rs; do
		# What concerns the lists of the reverse map only says nothing of pure/.
		[[ ${test##*/} != rmap* ]] || continue
		cp -a "$test" "$new/tests/all/"
		test=${test##*/}
		echo "mod ${test%.rs};" >>"$new/tests/all/main.rs"
	done
	# They have no use for loom, either.
	sed -i 's/^publish = false/&\nautotests = false/; /^loom = /d' "$new/Cargo.toml"
	cat >>"$new/Cargo.toml" <<-'END'

		[lib]
		test = false
		doctest = false
		[[test]]
		name = "all"
		path = "tests/all/main.rs"
		[profile.dev]
		debug = false
		opt-level = 1
		[profile.dev.package."*"]
		opt-level = 3
	END
}

# program NAME: builds the tests; copies the program to that file.
program()
{
	local dir=$work/pure built
	built=$(env "${switch_env[@]}" CARGO_TARGET_DIR="$dir/target" cargo test --no-run \
		--manifest-path "$dir/tree/Cargo.toml" --message-format json 2>"$dir/log" |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
	[[ $built ]] && cp "$built" "$1"
}

pure()
{
	local dir=$work/pure
	fresh "$dir" <(echo "${PURE:-all} $seed") "$mmu"/pure/*.rs
	mkdir -p "$dir/tree"
	pure_tree "$dir/new"
	list "$dir" "$dir/new/src" lib.rs 'pure/**' -- "${PURE:-all}" "$seed"
	rsync -a --delete --exclude /target "$dir/new/" "$dir/tree/"
	if ! is_current "$dir/program" "$mmu/pure" "$host"/{src,tests}; then
		switch_in "$dir/new/src" "$dir/tree/src" lib.rs "$dir" \
			cargo check --manifest-path "$dir/tree/Cargo.toml" --lib --message-format json
		program "$dir/program" || die "the host tests do not build, see $dir/log"
		MUTANT=0 "$dir/program" >"$dir/log" 2>&1 || {
			rm "$dir/program"
			die "the host tests fail as they are, see $dir/log"
		}
	fi

	build_alone()
	{
		program "$dir/program.alone"
	}
	try()
	{
		local run=$dir/program
		(($1)) || run+=.alone
		MUTANT=$1 PROPTEST_MAX_SHRINK_ITERS=0 limited 5 "$run" >"$dir/log" 2>&1
	}
	each "$dir" "$dir/new/src" "$dir/tree/src"
}

# --- the algorithms, by the simulation

sample()
{
	local dir=$work/sample tree=$work/sample/tree crate
	fresh "$dir" <(echo "${which[@]}") "$here/drawn" "$mmu"/{change,walk}.rs "$mmu"/ops/*.rs "$mmu"/ops/*/*.rs \
		"$mmu"/rmap/*.rs "$mmu"/rmap/ops/*.rs
	list "$dir" "$mmu" rust_mmu.rs 'ops/**' 'rmap/**' change.rs walk.rs -- "${which[@]}"
	mkdir -p "$tree"
	rsync -a --delete --exclude target --include '/arch/***' --include '/rust/***' \
		--include '/tools/***' --exclude '*' "$TOP/arch" "$TOP/rust" "$TOP/tools" "$tree/"
	crate=$tree/$sim/mmu/$(sed -n 's|^path = "\(.*\)/rust_mmu.rs"|\1|p' "$TOP/$sim/mmu/Cargo.toml")
	# With tables of 512 entries, and with tables of 8, which have pages of 1 GiB as well.
	simulation()
	{
		env -C "$tree/$sim" "${switch_env[@]}" CARGO_TARGET_DIR="$dir/target" \
			cargo build --profile mutant --locked --quiet >"$dir/log" 2>&1 &&
			cp "$dir/target/mutant/kvm-mmu-sim" "$1" &&
			env -C "$tree/$sim" "${switch_env[@]}" CARGO_TARGET_DIR="$dir/target-small" \
				cargo build --profile mutant --locked --quiet --features small >"$dir/log" 2>&1 &&
			cp "$dir/target-small/mutant/kvm-mmu-sim" "$1.small"
	}
	# That is built last.
	if ! is_current "$dir/program.small" "$mmu" "$TOP/$sim"; then
		switch_in "$mmu" "$crate" rust_mmu.rs "$dir" env -C "$tree/$sim" CARGO_TARGET_DIR="$dir/check" \
			cargo check -p kvm_rust_mmu --locked --message-format json
		simulation "$dir/program" || die "the simulation does not build, see $dir/log"
	fi

	build_alone()
	{
		simulation "$dir/program.alone"
	}
	try()
	{
		local run=$dir/program only
		(($1)) || run+=.alone
		only=$(scenario "$name")
		case $only in
		giant) simulate "$1" "$run.small" "$seconds" --scenario giant ;;
		?*) simulate "$1" "$run" "$seconds" --scenario "$only" ;;
		# A bug that most runs meet is met at once.
		*)
			only=$(scenario "${name%%:*}: *")
			simulate "$1" "$run" "$(((seconds + 5) / 6))" ${only:+--scenario "$only"} &&
				simulate "$1" "$run" "$seconds" &&
				simulate "$1" "$run.small" "$(((seconds + 5) / 6))" --scenario giant
			;;
		esac
	}
	# simulate NUMBER PROGRAM SECONDS OPTION...
	simulate()
	{
		local status=0 replay log=$dir/found/$1
		mkdir -p "$dir/found"
		MUTANT=$1 limited "$((3 * $3 + 20))" "$2" --minutes "$(awk "BEGIN { print $3 / 60 }")" "${@:4}" \
			>"$dir/log" 2>&1 || status=$?
		replay=$(sed -n 's/.*; replay: make sim SCENARIO=\(.*\) SEED=\(.*\)/--scenario \1 --seed \2/p' "$dir/log")
		[[ $replay ]] || return "$status"
		# shellcheck disable=SC2086 # words
		MUTANT=0 limited 20 "${2/.alone/}" $replay >"$dir/log.right" 2>&1 ||
			die "the MMU as it is fails as well: $replay, see $dir/log.right"
		(($1)) || log=$dir/found/$n
		grep -A 3 '^FAILED' "$dir/log" >"$log"
		return "$status"
	}
	each "$dir" "$mmu" "$crate"
}

# scenario NAME: the one that the list names for a mutant, or for a file (FILE: *), if any.
scenario()
{
	sed -E 's/^([^:]*):[0-9]+:[0-9]+: /\1: /' <<<"$1" |
		awk 'FNR == NR { name = "  " $0; next } /^[a-z]/ { only = $1 } $0 == name { print only; exit }' \
			- "$here/scenarios"
}

again()
{
	local part
	seconds=${SECONDS_EACH:-60}
	for part in pure sample; do
		[[ ! -e $work/$part/outcomes ]] || {
			# Those that are not tried again have a name of the list, without line and column.
			awk -F '\t' 'FNR == NR { known[substr($0, 3)]; next }
				{ name = $4; sub(/:[0-9]+:[0-9]+: /, ": ", name) }
				$2 != "missed" || name in known' "$here/equivalent" "$work/$part/outcomes" \
				>"$work/$part/outcomes.part"
			mv "$work/$part/outcomes.part" "$work/$part/outcomes"
			"$part"
		}
	done
}

# missed PART: those that were missed, without line and column, which move.
missed()
{
	cut -f2,4 "$work/$1/outcomes" | sed -n 's/^missed\t//p' | sed -E 's/^([^:]*):[0-9]+:[0-9]+: /\1: /'
}

# unexplained PART: those of them that are not in the list, with their reasons, of what changes nothing.
unexplained()
{
	missed "$1" | grep -vxFf <(sed -n 's/^  //p' "$here/equivalent") || :
}

# outcome PART NAME: how many.
outcome()
{
	cut -f2 "$work/$1/outcomes" | grep -cx "$2" || :
}

# percent CAUGHT MISSED
percent()
{
	awk "BEGIN { printf \"%.1f %%\", 100 * $1 / ($1 + $2) }"
}

report()
{
	local part what caught ended missed left
	echo "| what | mutants | do not compile | caught | do not end | missed | of these, change nothing |" \
		"caught, of all that compile | of those that change something |"
	echo "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
	for part in pure sample; do
		[[ -e $work/$part/outcomes ]] || continue
		# shellcheck disable=SC2016 # Markdown's backquotes
		what='`pure/`, by the host tests'
		[[ $part = pure ]] || what='a sample of the algorithms, by the simulation'
		caught=$(outcome "$part" caught) ended=$(outcome "$part" timeout) missed=$(outcome "$part" missed)
		left=$(unexplained "$part" | wc -l)
		echo "| $what | $(wc -l <"$work/$part/outcomes") | $(outcome "$part" unviable) | $caught | $ended |" \
			"$missed | $((missed - left)) |" \
			"$(percent $((caught + ended)) "$missed") | $(percent $((caught + ended)) "$left") |"
	done
	echo
	for part in pure sample; do
		# shellcheck disable=SC2016 # Markdown's backquotes
		[[ ! -e $work/$part/outcomes ]] || unexplained "$part" | sort | uniq -c |
			sed -E 's/^ *([0-9]+) (.*)/\2` (\1)/; s/ \(1\)$//' | reasons
	done
}

# reasons: after each mutant, with its number, the reason that the list 'survivors' has.
reasons()
{
	awk '
		FNR == NR && /^  / { why[substr($0, 3)] = text; ended = 1; next }
		FNR == NR && /^[^#]/ { text = ended || !text ? $0 : text " " $0; ended = 0; next }
		FNR == NR { ended = 1; next }
		{
			name = $0
			sub(/`.*/, "", name)
			print "- `" $0 ": " (name in why ? why[name] : "no reason is known")
		}
	' "$here/survivors" -
}

# What is not there yet says nothing.
shopt -s nullglob
(($#)) || set -- pure sample
for part in "$@"; do
	[[ $part =~ ^(pure|again|sample|report)$ ]] || die "there is no part '$part'; there are pure, sample, again, report"
done
for part in "$@"; do
	[[ $part = report ]] || install_tool
	"$part"
done
