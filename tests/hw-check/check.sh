#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# All checks, in the toolchain root, on the machine's own kernel, whichever that is.
#   check.sh BUILD MODULES OUT MINUTES [quick]
# BUILD is where things are built, MODULES what modules.sh has left, OUT gets the report
# (report.py) and the logs. "quick" is a little of everything, for an emulated machine.
#
# Probes of the TLB and the bench run on the MMU in C, if its modules are there, then on
# that in Rust; the probes once more where Rust finds writes by D bits ("bits"); selftests on
# both by turns; then VMs are migrated back and forth in each way until the time is over.
# Settings that tests change are put back. KVM is left unloaded.
set -euo pipefail

(($# >= 4)) || {
	echo "error: usage: check.sh BUILD MODULES OUT MINUTES [quick]" >&2
	exit 1
}
build=$1 out=$3 minutes=$4 quick=${5:-}
here=$(dirname "$(realpath "$0")")
tests=$(dirname "$here")
export HW_MODULES=$2 HW_DMESG=$out/dmesg.seen PATH=$here/bin:$PATH PYTHONPATH=$tests
deadline=$(($(date +%s) + minutes * 60))

mmus=(rust)
[[ ! -e $HW_MODULES/c/list ]] || mmus=(c rust)
# A little is enough to see that all of it works. The guest that is migrated writes "slow"
# times more rarely than on a processor.
mib=64 probed=64 race=$((minutes < 20 ? minutes / 2 : 10)) repeats=5 slow=1 ram=128
[[ ! $quick ]] || mib=4 probed=8 race=1 repeats=1 slow=40 ram=64

seconds_left()
{
	local left=$((deadline - $(date +%s)))
	echo $((left > 0 ? left : 0))
}

say()
{
	printf 'hw-check: [%d min left] %s\n' $((($(seconds_left) + 59) / 60)) "$*"
}

# --- settings

mm=/sys/kernel/mm
settings=("$mm"/hugepages/hugepages-*/nr_hugepages "$mm/lru_gen/enabled"
	  "$mm/transparent_hugepage/enabled")
declare -A setting=()
for f in "${settings[@]}"; do
	[[ ! -e $f ]] || setting[$f]=$(sed 's/.*\[\(.*\)\].*/\1/' "$f")
done
# A test puts itself into a memory cgroup, which the root has to allow.
cgroups=/sys/fs/cgroup/cgroup.subtree_control memory=+memory
[[ ! -e $cgroups ]] || grep -qw memory "$cgroups" || memory=-memory
# shellcheck disable=SC2317,SC2329 # called by the trap
put_back()
{
	local f
	for f in "${!setting[@]}"; do
		[[ $(sed 's/.*\[\(.*\)\].*/\1/' "$f") = "${setting[$f]}" ]] ||
			echo "${setting[$f]}" >"$f" || :
	done
	[[ ! -e $cgroups ]] || echo "$memory" >"$cgroups" || :
	"$here/kvm-unload" || :
}
trap put_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# huge_pages N: N of 2 MiB beside what is reserved already.
huge_pages()
{
	local f=$mm/hugepages/hugepages-2048kB/nr_hugepages want
	want=$((setting[$f] + $1))
	echo "$want" >"$f"
	[[ $(<"$f") = "$want" ]] || {
		echo "error: only $(<"$f") huge pages of $want can be had; free some memory" >&2
		return 1
	}
}

# --- the checks

# limited NAME SECONDS COMMAND...: into NAME.log; what became of it into OUT/steps. Goes on
# after a failure: the report names it.
limited()
{
	local name=$1 limit=$2 status=0 start=$SECONDS
	shift 2
	((limit > 5)) || {
		echo "$name skip 0 no time was left" >>"$out/steps"
		return 0
	}
	timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null || status=$?
	echo "$name $status $((SECONDS - start)) $(tail -n 1 "$out/$name.log" | cut -c1-150)" >>"$out/steps"
}

# load MMU: its modules, and what they are, for the report.
load()
{
	"$here/kvm-load" "$1" || {
		echo "error: the MMU $1 cannot be loaded; does somebody use KVM meanwhile? See dmesg" >&2
		exit 1
	}
	cat /sys/module/kvm/notes/.note.gnu.build-id >"$out/build-id.$1"
	grep . /sys/module/{kvm,kvm_amd,kvm_intel}/parameters/* >"$out/parameters.$1" 2>/dev/null || :
}

rm -rf "${out:?}"/*
: >"$out/steps"
echo "$mib" >"$out/bench.mib"
dmesg -C
for mmu in "${mmus[@]}"; do
	load "$mmu"
	huge_pages $((probed / 2))
	say "the TLB, MMU $mmu"
	limited "tlb.$mmu" $((60 + 12 * race)) "$build/hw-check/tlb" "$probed" "$race"
	say "bench, MMU $mmu"
	# On a slow machine, once has to do: migrations need the time more.
	enough=$(($(seconds_left) - minutes * 6))
	for ((n = 1; n <= repeats && (n == 1 || $(seconds_left) > enough); n++)); do
		begun=$SECONDS
		limited "bench.$mmu.$n" 180 "$build/hw-check/mmu_bench" "$mib" wall
		# A processor needs a second or two. An emulator copies memory more slowly than a
		# guest writes it: unless that writes less, no migration ends.
		((SECONDS - begun < 5)) || slow=40
	done
	dmesg >"$out/dmesg.$mmu"
	dmesg -C
done
load bits
bits=(bits)
if grep -qsx N /sys/module/kvm_intel/parameters/eptad /sys/module/kvm/parameters/tdp_mmu; then
	bits=()
	echo "tlb.bits skip 0 the tables that KVM uses here have no D bits" >>"$out/steps"
else
	say "the TLB, MMU rust by D bits"
	limited tlb.bits $((60 + 12 * race)) "$build/hw-check/tlb" "$probed" "$race" bits
	dmesg >"$out/dmesg.bits"
	dmesg -C
fi
huge_pages 0
"$here/kvm-unload"

# Those of the list that need no settings but some huge pages. Those that take long come
# last: a slow machine has no time for all.
list=$out/selftests.list
awk -v quick="$quick" '
	/^#/ || NF < 4 { next }
	quick && $1 != "pre_fault_memory_test" { next }
	{
		n = split($3, needs, ",")
		for (i = 1; i <= n; i++) {
			if (needs[i] ~ /^2m=/ && substr(needs[i], 4) + 0 <= 64)
				continue
			if (needs[i] !~ /^(-|mmu|smp|long|expect=.*)$/)
				next
		}
		if (","$3"," ~ /,long,/)
			last = last $0 "\n"
		else
			print
	}
	END { printf "%s", last }' "$tests/selftests/mmu.list" >"$list"
budget=$(($(seconds_left) * 2 / 5))
say "$(wc -l <"$list") selftests, MMUs ${mmus[*]}"
# They end by themselves, after one more load and unload of each MMU.
LIST=$list SMP=1 BUDGET=$budget SHARE=12 TURN=6 SELFTESTS=$build/selftests/kvm \
	KVM_LOAD=$here/kvm-load KVM_UNLOAD=$here/kvm-unload lab_flavour=$(uname -r) \
	limited selftests $((budget * 3 / 2 + 60)) "$tests/selftests/guest.sh" \
	"$(IFS=, && echo "${mmus[*]}")" "$out/selftests"

echo "$slow" >"$out/soak.slow"
# Most of the time is for the MMU in Rust.
all=$(($(seconds_left) - 30))
for mmu in "${mmus[@]}" "${bits[@]}"; do
	[[ $mmu != c || ! $quick ]] || continue
	share=$((all / 5))
	[[ $mmu != c ]] || share=$((all / 10))
	[[ ! $quick ]] || share=10
	if ((share < 10)); then
		say "no time is left for migrations, MMU $mmu"
		echo "soak.$mmu skip 0 no time was left" >>"$out/steps"
		continue
	fi
	load "$mmu"
	for backend in hugetlb thp; do
		[[ $backend = hugetlb || ! $quick ]] || continue
		pages=0
		[[ $backend != hugetlb ]] || pages=$((ram + 36))
		huge_pages "$pages"
		say "migrations for $share s, MMU $mmu, memory of $backend"
		RAM_MIB=$ram limited "soak.$mmu.$backend" $((share + 180)) \
			python3 -B "$tests/migrate/driver.py" --shared -s "$slow" -t "$share" -o soak \
			"$backend" "$build/migrate/guest.rom" "$out/soak.$mmu"
	done
	huge_pages 0
	"$here/kvm-unload"
done
python3 -B "$here/report.py" "$out"
