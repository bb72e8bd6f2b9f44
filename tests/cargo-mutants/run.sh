#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make test-cargo-mutants': whether the host tests and the simulation notice what cargo-mutants
# breaks. Hours; interrupted, each part goes on where it was. As TAP.
#   run.sh [pure|sample]...   pure: all of pure/, by the host tests. sample: a sample of the algorithms,
#                             drawn by a seed, by the simulation. Both, if none is named
#   run.sh again              tries those again that were missed
#   run.sh report             what was found so far: a table for results/cargo-mutants.md
# SAMPLE=n (200), SEED=n (15), SECONDS_EACH=n (6): the sample's size and seed, and how long the
# simulation looks for each.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
if [[ ! ${LAB_INSIDE:-} ]]; then
	# Whom to trust is the machine's business: it may have a proxy of its own.
	trust=()
	[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
	LAB_ENV="${LAB_ENV:-} SAMPLE SEED SECONDS_EACH" exec "$TOP/scripts/in-root" "${trust[@]}" \
		"$TOP/tests/cargo-mutants/run.sh" "$@"
fi

# The last one that Debian 13's rustc compiles.
version=25.3.1
tool=$CACHE/cargo-mutants-$version/bin/cargo-mutants
host=$TOP/tools/testing/kvm-mmu-rs mmu=$TOP/arch/x86/kvm/mmu/rust
work=$BUILD/cargo-mutants
here=$TOP/tests/cargo-mutants
# Of so many parts pure/ is tried in one after the other. A part that was interrupted begins anew.
parts=40
sample=${SAMPLE:-200} seed=${SEED:-15} seconds=${SECONDS_EACH:-6}
for n in "$sample" "$seed" "$seconds"; do
	[[ $n =~ ^[1-9][0-9]*$ ]] || die "'$n' is no number; SAMPLE, SEED and SECONDS_EACH are"
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

# --- pure/, by the host tests

# The tests as one crate whose sources are all below it, and as one program, which is soon linked. It is
# built in place: whatever an interrupted run has left of a mutant is overwritten.
pure_tree()
{
	local new=$work/new test
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
	sed -i 's/^publish = false/&\nautotests = false/' "$new/Cargo.toml"
	cat >>"$new/Cargo.toml" <<-'END'

		[lib]
		test = false
		doctest = false
		[[test]]
		name = "all"
		path = "tests/all/main.rs"
		[profile.dev]
		debug = false
		[profile.dev.package."*"]
		opt-level = 3
	END
	rsync -a --checksum --delete --exclude /target "$new/" "$work/tree/"
	# What was overwritten is as old as it was before, which cargo would not notice.
	find "$work/tree/src" "$work/tree/tests" -name '*.rs' -exec touch {} +
	env -C "$work/tree" cargo test --quiet --locked >"$work/log" 2>&1 ||
		die "the host tests fail as they are, see $work/log"
}

# try_them DIRECTORY OPTION...: those that the options select.
try_them()
{
	local dir=$1 status=0 what
	mkdir -p "$dir"
	PROPTEST_MAX_SHRINK_ITERS=0 "$tool" mutants --dir "$work/tree" --in-place -o "$dir" \
		-f 'src/pure/**' --baseline skip --timeout 20 --build-timeout 300 --colors never --no-shuffle \
		"${@:2}" >"$dir/log" 2>&1 || status=$?
	# 2: some were missed; 3: some did not end, which is noticed as well.
	case $status in
	0|2|3)	;;
	*)	die "cargo-mutants ended with status $status, see $dir/log" ;;
	esac
	for what in caught timeout unviable; do
		cat "$dir/mutants.out/$what.txt" >>"$dir/$what"
	done
	cp "$dir/mutants.out/missed.txt" "$dir/missed"
}

# count NAME: of all parts.
count()
{
	cat /dev/null "$work"/pure/*/"$1" 2>/dev/null | sort -u | wc -l
}

pure()
{
	local n
	fresh "$work/pure" <(echo "$parts") "$mmu"/pure/*.rs
	pure_tree
	for ((n = 0; n < parts; n++)); do
		[[ ! -e $work/pure/$n/missed ]] || continue
		try_them "$work/pure/$n" --shard "$n/$parts"
		say "pure/: part $((n + 1)) of $parts: $(count caught) caught, $(count timeout) did not end," \
			"$(count missed) missed, $(count unviable) do not compile"
	done
}

again()
{
	local n names
	pure_tree
	for ((n = 0; n < parts; n++)); do
		[[ -s $work/pure/$n/missed ]] || continue
		# As regular expressions.
		mapfile -t names < <(sed 's/[][\.*^$+?(){}|]/\\&/g; s/.*/^&$/' "$work/pure/$n/missed")
		try_them "$work/pure/$n" "${names[@]/#/--re=}"
		say "pure/: part $((n + 1)) of $parts: $(count missed) missed"
	done
	if [[ -e $work/sample/outcomes ]]; then
		sed -i '/^[0-9]*\tmissed\t/d' "$work/sample/outcomes"
		sample
	fi
}

# Those that were missed and are not in the list, with their reasons, of what changes nothing. A line of
# cargo-mutants' begins with a place, which moves; the list has the file and the rest.
unexplained()
{
	local file
	for file; do
		[[ ! -e $file ]] || cat "$file"
	done | sed -E 's/^([^:]*):[0-9]+:[0-9]+: /\1: /' | sort -u |
		grep -vxFf <(sed -n 's/^  //p' "$here/equivalent") || :
}

# --- the algorithms, by the simulation

sim=tools/testing/kvm-mmu-rs/sim

# For each mutant a line of its number, what came of it, seconds of a CPU, and its name.
sample()
{
	local dir=$work/sample tree=$work/sample/tree crate n name status line
	local program=$dir/target/mutant/kvm-mmu-sim
	fresh "$dir" <(echo "$seed $sample") "$mmu"/{change,walk}.rs "$mmu"/ops/*.rs "$mmu"/ops/*/*.rs \
		"$mmu"/rmap/*.rs "$mmu"/rmap/ops/*.rs
	if [[ ! -e $dir/list ]]; then
		mkdir -p "$dir/crate" "$dir/diffs"
		cp -a "$mmu" "$dir/crate/src"
		printf '%s\n' '[package]' 'name = "kvm_rust_mmu"' 'edition = "2021"' '[lib]' \
			'path = "src/rust_mmu.rs"' '[workspace]' >"$dir/crate/Cargo.toml"
		PROPTEST_MAX_SHRINK_ITERS=0 "$tool" mutants --dir "$dir/crate" --list --json --diff -f 'src/ops/**' -f 'src/rmap/**' \
			-f src/change.rs -f src/walk.rs 2>"$dir/log" |
			python3 -B "$here/draw.py" "$sample" "$seed" "$dir/diffs" >"$dir/list.part"
		mv "$dir/list.part" "$dir/list"
	fi

	mkdir -p "$tree"
	rsync -a --delete --exclude target --include '/arch/***' --include '/rust/***' \
		--include '/tools/***' --exclude '*' "$TOP/arch" "$TOP/rust" "$TOP/tools" "$tree/"
	crate=$tree/$sim/mmu/$(sed -n 's|^path = "\(.*\)/rust_mmu.rs"|\1|p' "$TOP/$sim/mmu/Cargo.toml")
	touch "$dir/outcomes"
	while IFS=$'\t' read -r n name; do
		! grep -q "^$n	" "$dir/outcomes" || continue
		rsync -a --delete "$mmu/" "$crate/"
		patch -d "$crate" -p1 --quiet --no-backup-if-mismatch <"$dir/diffs/$n" >&2 ||
			die "cargo-mutants' diff for '$name' does not apply"
		status=0 line=''
		if ! env -C "$tree/$sim" CARGO_TARGET_DIR="$dir/target" RUSTFLAGS="--cap-lints warn" \
			cargo build --profile mutant --locked --quiet >"$dir/log" 2>&1; then
			line=unviable
		else
			# A bug that most runs meet is met at once; then a longer look, scenario by scenario.
			timeout "$((20 * seconds + 60))" "$program" --minutes "$(awk "BEGIN { print $seconds / 60 }")" \
				>"$dir/log" 2>&1 || status=$?
			case $status in
			0) line=missed ;;
			124) line=timeout ;;
			*) line=caught ;;
			esac
		fi
		printf '%s\t%s\t%s\t%s\n' "$n" "$line" \
			"$(sed -n 's/^  schedule .* run, \(.*\) s of a CPU/\1/p' "$dir/log")" "$name" >>"$dir/outcomes"
		say "sample: $(wc -l <"$dir/outcomes") of $sample: $line: $name"
	done <"$dir/list"
}

# outcome NAME: how many of the sample.
outcome()
{
	cut -f2 "$work/sample/outcomes" | grep -cx "$1" || :
}

report()
{
	local caught missed left
	echo "| what | mutants | caught | did not end | missed | of these, change nothing | do not compile |"
	echo "|---|--:|--:|--:|--:|--:|--:|"
	if compgen -G "$work/pure/*/missed" >/dev/null; then
		caught=$(count caught) missed=$(count missed)
		left=$(unexplained "$work"/pure/*/missed | wc -l)
		echo "| \`pure/\`, by the host tests | $((caught + missed + $(count timeout) + $(count unviable))) |" \
			"$caught | $(count timeout) | $missed | $((missed - left)) | $(count unviable) |"
	fi
	if [[ -e $work/sample/outcomes ]]; then
		cut -f2,4 "$work/sample/outcomes" | sed -n 's/^missed\t//p' >"$work/sample/missed"
		left=$(unexplained "$work/sample/missed" | wc -l)
		echo "| a sample of the algorithms, by the simulation | $(wc -l <"$work/sample/outcomes") |" \
			"$(outcome caught) | $(outcome timeout) | $(outcome missed) | $(($(outcome missed) - left)) |" \
			"$(outcome unviable) |"
	fi
	echo
	# shellcheck disable=SC2016 # Markdown's backquotes
	unexplained "$work"/pure/*/missed "$work"/sample/missed | sed 's/^/- `/; s/$/`/'
}

# What is not there yet says nothing.
shopt -s nullglob
(($#)) || set -- pure sample
for part in "$@"; do
	[[ $part =~ ^(pure|again|sample|report)$ ]] || die "there is no part '$part'; there are pure, sample, again, report"
done
for part in "$@"; do
	[[ $part = report ]] || install_tool
	( "$part" )
done
