#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Boot the fork in QEMU and run a command in it; the exit status is the
# command's.   boot.sh [options] COMMAND
#   --kernel FLAVOUR      lab, debug, kasan or kcsan (lab), or the release of a kernel of
#                         the distribution's, for which distro-modules.sh has run
#   --smp N               processors (2; 1 with --icount)
#   --mem SIZE            memory (4G)
#   --icount              instruction-exact time: 1 instruction = 1 ns; several
#                         processors run in turn
#   --shift N             with --icount: 1 instruction = 2^N ns
#   --thread multi|single MTTCG, or one thread for all processors (multi)
#   --cpu MODEL           (max,+svm,+npt)
#   --append WORDS        more for the kernel's command line
#   --plugin SPEC         a QEMU plugin, with its arguments
#   --timeout S           give up after S seconds (600); on a slow machine, after as
#                         many more as tests/calibrate.sh has found that it needs
#   --stall S             give up when the guest has said nothing for S seconds, as
#                         many more on a slow machine
#   --deadline T          give up at T, in seconds since the epoch, on any machine
#   --name NAME           log directory build/logs/NAME
#   --interactive         the console on this terminal
# build/logs/NAME then has: command, status, output, console.log, dmesg.
# That directory is /results in the guest.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/emulator.sh
. "$TOP/scripts/emulator.sh"

flavour=lab smp='' mem=4G icount='' shift=0 thread=multi cpu=max,+svm,+npt append=''
limit=600 name='' interactive='' plugin=() stall=0 deadline=0
while (($#)); do
	case $1 in
	--icount) icount=1 ;;
	--interactive) interactive=1 ;;
	--kernel|--smp|--mem|--shift|--thread|--cpu|--append|--plugin|--timeout|--stall|--deadline|--name)
		(($# > 1)) || die "boot.sh: $1 needs a value"
		case $1 in
		--kernel) flavour=$2 ;;
		--smp) smp=$2 ;;
		--mem) mem=$2 ;;
		--shift) shift=$2 ;;
		--thread) thread=$2 ;;
		--cpu) cpu=$2 ;;
		--append) append=$2 ;;
		--plugin) plugin=(-plugin "$2") ;;
		--timeout) limit=$2 ;;
		--stall) stall=$2 ;;
		--deadline) deadline=$2 ;;
		--name) name=$2 ;;
		esac
		shift ;;
	--) shift; break ;;
	-*) die "boot.sh: unknown option $1; its head lists them" ;;
	*) break ;;
	esac
	shift
done
(($#)) || die "boot.sh: no command; usage: boot.sh [options] COMMAND"

suffix=$(suffix_of "$flavour")
bzimage=$BUILD/linux$suffix/arch/x86/boot/bzImage initrd=()
case $flavour in
[0-9]*)
	# What it needs to reach its root are modules, and it continues after an oops.
	bzimage=$(kernel_dir "$flavour")/lib/modules/$flavour/vmlinuz
	[[ -e $bzimage ]] || die "no kernel $flavour; run 'make modules-deb KERNEL=$flavour'"
	[[ -e $BUILD/initrd$suffix ]] || "$TOP/scripts/initrd.sh" "$flavour"
	initrd=(-initrd "$BUILD/initrd$suffix")
	append="oops=panic $append" ;;
esac
bzimage=${LAB_BZIMAGE:-$bzimage}
[[ -e $bzimage ]] || die "no kernel at $bzimage; run 'make kernel'"
root=$(root_dir)
[[ -e $root/sbin/lab-init ]] || die "no toolchain root at $root; run 'make root'"

limit=$(scaled "$limit") stall=$(scaled "$stall")
if ((deadline)); then
	left=$((deadline - $(date +%s)))
	((left > 0)) || die "boot.sh: the deadline is over"
	((limit < left)) || limit=$left
fi
run=$BUILD/logs/${name:-boot-$(date +%Y%m%d-%H%M%S)-$$}
mkdir -p "$run"
rm -f "$run"/{status,stalled,booted,interactive,output,console.log,dmesg}
printf '%s\n' "$*" >"$run/command"
guest_env "$flavour" >"$run/env"

accel=tcg,thread=$thread time=()
if [[ $icount ]]; then
	smp=${smp:-1} accel=tcg,thread=single
	time=(-icount "shift=$shift,sleep=off")
fi
if [[ $interactive ]]; then
	touch "$run/interactive"
	limit=0
	serial=(-chardev "stdio,id=con,mux=on,signal=off,logfile=$run/console.log" -mon chardev=con
		-serial chardev:con)
else
	serial=(-serial "file:$run/console.log"
		-chardev "stdio,id=out,signal=off,logfile=$run/output" -serial chardev:out)
fi
# The guest's TSC is this machine's, unless time is exact. On a busy one the guest's kernel may
# measure it wrongly (once a 34th of it), and its clock is as much too fast from then on.
if [[ ! $icount ]]; then
	tsc_khz=$BUILD/tsc_khz
	if [[ ! $tsc_khz -nt $TOP/scripts/tsc_khz.c ]]; then
		"$TOP/scripts/in-root" clang-19 -O2 -Wall -Werror -static -o "$tsc_khz.$$" \
			"$TOP/scripts/tsc_khz.c"
		mv "$tsc_khz.$$" "$tsc_khz"
	fi
	append="tsc_early_khz=$("$tsc_khz") $append"
fi
share()
{
	echo "local,path=$2,mount_tag=$1,id=$1,security_model=none,multidevs=remap$3"
}
qemu=(qemu-system-x86_64 -accel "$accel" "${time[@]}" -machine q35 -cpu "$cpu"
      -smp "${smp:-2}" -m "$mem" -nodefaults -no-user-config -display none -no-reboot
      -kernel "$bzimage" "${initrd[@]}"
      -virtfs "$(share root "$root" ,readonly=on)"
      -virtfs "$(share checkout "$TOP" ,readonly=on)"
      -virtfs "$(share results "$run" '')"
      -device virtio-rng-pci "${plugin[@]}" "${serial[@]}"
      -append "console=ttyS0 root=root rootfstype=9p ro rootflags=trans=virtio,version=9p2000.L,msize=524288,cache=loose init=/sbin/lab-init panic=-1 no_timer_check log_buf_len=16M $append")

if [[ $interactive ]]; then
	timeout --foreground --kill-after=5 "$limit" "$TOP/scripts/in-root" "${qemu[@]}" &&
		rc=0 || rc=$?
else
	emulate "$run"/{output,console.log} -- "${qemu[@]}"
fi

[[ ! -e $run/status ]] || exit "$(<"$run/status")"

# No status: say in which way it failed.
last_words "$run/console.log"
if ((rc)); then
	die "QEMU failed with status $rc; its message is above, console log: $run/console.log"
elif [[ -e $run/booted ]]; then
	die "the guest stopped (a panic?) before its command ended; console log: $run/console.log"
else
	die "the guest stopped before it had booted; console log: $run/console.log"
fi
