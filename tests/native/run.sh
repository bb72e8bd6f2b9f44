#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make bench-native': what dirty logging costs on this machine's silicon. The
# very objects that the modules were linked of, C's and Rust's, go into one
# process, with tests/native around them.
#   bench-native.sh [GIB [ROUNDS]]      (64, 20)
# Table on stdout; build/logs/bench-native.json has all numbers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

gib=${1:-64} rounds=${2:-20}
out=$BUILD/native json=$BUILD/logs/bench-native.json
mmu=arch/x86/kvm/mmu
[[ $(uname -m) = x86_64 ]] || die "bench-native runs x86-64 code on the CPU; this one is $(uname -m)"
mkdir -p "$out" "$BUILD/logs"
cd "$out"

# objects PREFIX OBJECT...: one object of them, with the prefix on all symbols
# that they define for others.
objects()
{
	local prefix=$1 f
	shift
	for f; do
		[[ -e $f ]] || die "no $f; run 'make modules'"
	done
	ld.lld-19 -r -o "$prefix.o" "$@"
	llvm-nm-19 --defined-only --extern-only --format=just-symbols "$prefix.o" |
		sed "s/.*/& ${prefix}_&/" >"$prefix.syms"
	llvm-objcopy-19 --wildcard --remove-section='.discard.*' \
		--redefine-syms="$prefix.syms" "$prefix.o"
}
objects c "$BUILD/mod-c/$mmu"/{tdp_mmu,tdp_iter,spte}.o
objects r "$BUILD/mod-rust/$mmu"/{rust/rust_mmu,rust/rust_shim,spte}.o

# glue.c is compiled by the command that compiled tdp_mmu.c, without what only
# serves ftrace and dependencies.
cmd=$BUILD/mod-c/$mmu/.tdp_mmu.o.cmd
line=$(sed -n 's/^savedcmd_[^ ]* := \(.*\) -c -o mmu\/tdp_mmu\.o .*/\1/p' "$cmd")
[[ $line ]] || die "cannot find the command that compiled tdp_mmu.o in $cmd"
flags=()
for word in $line; do
	word=${word//\'/}
	case $word in
	-Wp,-MMD,*|-pg|-mfentry|-mrecord-mcount|-mretpoline-external-thunk) ;;
	-DCC_USING_NOP_MCOUNT|-DKBUILD_BASENAME=*) ;;
	*) flags+=("$word") ;;
	esac
done
"${flags[@]}" -Wno-missing-prototypes -DKBUILD_BASENAME='"glue"' -c -o glue.o "$TOP/tests/native/glue.c"
"${flags[@]}" -DCONFIG_KVM_RUST_MMU=1 -DKBUILD_BASENAME='"rust_vm"' -c -o rust_vm.o \
	"$TOP/tests/native/rust_vm.c"
clang-19 -O2 -Wall -Wextra -Werror -fno-pie -c -o main.o "$TOP/tests/native/main.c"

# What is still missing. Static calls and tracepoints are off, so what stands
# behind them is never reached; nor are these, or something is wrong.
{
	cat <<-'EOS'
	/* SPDX-License-Identifier: GPL-2.0 */
	.macro trap symbol
	.pushsection .rodata.str1.1, "aMS", @progbits, 1
	9:	.asciz "the kernel's code called \symbol"
	.popsection
	.globl \symbol
	\symbol:
		movl $9b, %edi
		andq $-16, %rsp
		call native_trap
		ud2
	.endm
	.macro zero symbol
	.pushsection .bss
	.balign 64
	.globl \symbol
	\symbol:
		.skip 512
	.popsection
	.endm
	.section .note.GNU-stack, "", @progbits
	.text
	EOS
	comm -23 <(llvm-nm-19 --undefined-only --format=just-symbols c.o r.o glue.o rust_vm.o |
			sed '/:$/d; /^$/d' | sort -u) \
		<(llvm-nm-19 --defined-only --extern-only --format=just-symbols \
			c.o r.o glue.o rust_vm.o main.o | sort -u) |
	while read -r symbol; do
		case $symbol in
		# libc's.
		memcpy|memset|memmove|memcmp) ;;
		__SCK__*|__tracepoint_*|tracepoint_srcu|param_ops_*|__this_module|\
		cpu_number|__cpu_online_mask|kunit_running|pte_list_desc_cache)
			echo "zero $symbol" ;;
		# Rust's formatting and panics; the tests that are in the module; the
		# shadow MMU.
		_R*|__kunit_*|kunit_*|kvm_rs_oracle_*|\
		__SCT__*|__fentry__|_printk|refcount_warn_saturate|rcu_barrier|\
		queued_*_slowpath|__cond_resched_rwlock_*|kvm_make_all_cpus_request|\
		disallowed_hugepage_adjust|mark_page_dirty_in_slot|e820__mapped_raw_any|\
		kvm_arch_mmu_enable_log_dirty_pt_masked|pat_*|*kvm_mmu_topup_memory_cache|\
		kvm_rs_get_split_sp|kvm_rs_link_sp|kvm_rs_shadow_pages_left|rb_next|rb_prev)
			echo "trap $symbol" ;;
		*) die "the MMU's objects need '$symbol', which is not in tests/native/glue.c; has the kernel changed?" ;;
		esac
	done
} >stubs.S
clang-19 -c -o stubs.o stubs.S

# The kernel's code has 32-bit addresses in it: low ones are as good as its own.
clang-19 -static -fuse-ld=lld-19 -o bench-native main.o glue.o rust_vm.o stubs.o c.o r.o

cpu=$(sed -n 's/^model name[^:]*: //p; T; q' /proc/cpuinfo)
say "bench-native: $gib GiB in 2 MiB pages, $rounds rounds, C and Rust in turn"
./bench-native -g "$gib" -r "$rounds" -j "$json"
say "on $cpu; median (quartiles); JSON: $json"
