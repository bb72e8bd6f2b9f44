#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The very objects that the modules were linked of, C's and Rust's, in one process,
# with the rest of this directory around them:  link.sh PROGRAM   (bench-native, contention, threads)
# The process is build/native/PROGRAM.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

program=$1
out=$BUILD/native
mmu=arch/x86/kvm/mmu native=$TOP/tests/native
[[ $(uname -m) = x86_64 ]] || die "$program runs x86-64 code on the CPU; this one is $(uname -m)"
mkdir -p "$out"
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
# vmlinux's locks.
locks=()
for lock in qspinlock qrwlock; do
	f=$BUILD/linux/kernel/locking/$lock.o
	[[ -e $f ]] || die "no $f; run 'make kernel'"
	llvm-objcopy-19 --wildcard --remove-section='.discard.*' "$f" "$lock.o"
	locks+=("$lock.o")
done

# What is around them is compiled by the command that compiled tdp_mmu.c, without
# what only serves ftrace and dependencies.
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
# kernel NAME SOURCE FLAG...: NAME.o
kernel()
{
	local name=$1 source=$2
	shift 2
	"${flags[@]}" -Wno-missing-prototypes "$@" -DKBUILD_BASENAME="\"$name\"" \
		-c -o "$name.o" "$native/$source.c"
}
kernel kernel kernel
kernel glue glue
kernel guest guest
kernel c_parties parties
kernel r_parties parties -DCONFIG_KVM_RUST_MMU=1
kernel rust_vm rust_vm -DCONFIG_KVM_RUST_MMU=1
around=({kernel,glue,guest,c_parties,r_parties,rust_vm}.o)
for source in program "$program"; do
	clang-19 -O2 -Wall -Wextra -Werror -fno-pie -c -o "$source.o" "$native/$source.c"
done

# What is still missing. Static calls and tracepoints are off, so what stands
# behind them is never reached; nor are these, or something is wrong.
{
	cat <<-'EOS'
	/* SPDX-License-Identifier: GPL-2.0 */
	.macro trap symbol
	.pushsection .rodata.str1.1, "aMS", @progbits, 1
	9:	.asciz "the kernel's code called \symbol, which nothing here should need"
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
	comm -23 <(llvm-nm-19 --undefined-only --format=just-symbols c.o r.o "${locks[@]}" "${around[@]}" |
			sed '/:$/d; /^$/d' | sort -u) \
		<(llvm-nm-19 --defined-only --extern-only --format=just-symbols \
			c.o r.o "${locks[@]}" "${around[@]}" program.o "$program.o" | sort -u) |
	while read -r symbol; do
		case $symbol in
		# libc's; ld's.
		memcpy|memset|memmove|memcmp|bcmp|__per_cpu_*|__real_*) ;;
		__SCK__*|__tracepoint_*|tracepoint_srcu|param_ops_*|__this_module|\
		virt_spin_lock_key|kvm_mmu_lock_stats|nr_cpu_ids|\
		__cpu_online_mask|kunit_running|pte_list_desc_cache)
			echo "zero $symbol" ;;
		# Rust's formatting and panics; the tests that are in the module; the
		# shadow MMU.
		_R*|__kunit_*|kunit_*|kvm_rs_oracle_*|rust_support_test_*|\
		__SCT__*|__fentry__|_printk|refcount_warn_saturate|rcu_barrier|\
		kvm_make_all_cpus_request|\
		disallowed_hugepage_adjust|e820__mapped_raw_any|\
		kvm_vcpu_gfn_to_memslot|kvm_prefetch_pages|__folio_put|folios_put_refs|\
		kvm_arch_mmu_enable_log_dirty_pt_masked|pat_*|*kvm_mmu_topup_memory_cache|\
		kvm_rs_fault_*|kvm_rs_timed_*|kvm_rs_end_*|kvm_rs_resume_hold|krealloc_node_align_noprof|kvm_rs_carry_dirty|\
		kvm_rs_wait_for_free|\
		kvm_rs_get_split_sp|kvm_rs_link_sp|kvm_rs_shadow_pages_left|rb_next|rb_prev)
			echo "trap $symbol" ;;
		*) die "the MMU's objects need '$symbol', which is not in tests/native; has the kernel changed?" ;;
		esac
	done
} >stubs.S
clang-19 -c -o stubs.o stubs.S

# All per-CPU data in one place, of which each thread gets a copy.
cat >percpu.lds <<-'EOS'
	SECTIONS {
		/DISCARD/ : { *(.discard.*) }
		.data..percpu : ALIGN(4096) {
			__per_cpu_start = .;
			*(.data..percpu*)
			. = ALIGN(4096);
			__per_cpu_end = .;
		}
	} INSERT AFTER .data;
EOS

# The kernel's code has 32-bit addresses in it: low ones are as good as its own.
clang-19 -static -pthread -fuse-ld=lld-19 -Wl,-T,percpu.lds \
	-Wl,--wrap=queued_read_lock_slowpath,--wrap=queued_write_lock_slowpath \
	-o "$program" "$program.o" program.o stubs.o c.o r.o "${around[@]}" "${locks[@]}"
