#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Boot the fork in Bochs, which emulates Intel VMX with EPT, and run a command
# in it; the exit status is the command's.   bochs.sh [options] COMMAND
#   --kernel FLAVOUR      lab, debug, kasan or kcsan (lab)
#   --cpu MODEL           skylake: EPT with A/D bits and PML (the default)
#                         haswell: EPT with A/D bits, no PML
#   --with FILE           one more of build/selftests/kvm for the guest to have
#   --file FILE           one more of build/ for the guest to have, as /build/FILE
#   --append WORDS        more for the kernel's command line
#   --timeout S           give up after S seconds (600); as many more on a slow machine
#   --stall S             give up when the guest has said nothing for S seconds, likewise
#   --name NAME           log directory build/logs/NAME
# build/logs/NAME then has: command, status, output, console.log.
#
# There is no virtio, so the guest has what its initramfs has: the toolchain
# root's busybox, kvm-load, both sets of modules, the scripts of tests/, and the selftests
# that were asked for. Bochs' clock is what it executes (50 instructions are a
# microsecond) so that what takes long here does not time out there.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/emulator.sh
. "$TOP/scripts/emulator.sh"

flavour=lab cpu=skylake append='' limit=600 name='' with=() files=() stall=0
while (($#)); do
	case $1 in
	--kernel|--cpu|--append|--timeout|--stall|--name|--with|--file)
		(($# > 1)) || die "bochs.sh: $1 needs a value"
		case $1 in
		--kernel) flavour=$2 ;;
		--cpu) cpu=$2 ;;
		--append) append=$2 ;;
		--timeout) limit=$2 ;;
		--stall) stall=$2 ;;
		--name) name=$2 ;;
		--with) with+=("$2") ;;
		--file) files+=("$2") ;;
		esac
		shift ;;
	--) shift; break ;;
	-*) die "bochs.sh: unknown option $1; its head lists them" ;;
	*) break ;;
	esac
	shift
done
(($#)) || die "bochs.sh: no command; usage: bochs.sh [options] COMMAND"
case $cpu in
skylake) model=corei7_skylake_x ;;
haswell) model=corei7_haswell_4770 ;;
*) die "bochs.sh: unknown CPU '$cpu'; use skylake or haswell" ;;
esac

suffix=$(suffix_of "$flavour")
bzimage=${LAB_BZIMAGE:-$BUILD/linux$suffix/arch/x86/boot/bzImage}
[[ -e $bzimage ]] || die "no kernel at $bzimage; run 'make kernel'"
root=$(root_dir)
[[ -e $root/usr/bin/bochs-bin ]] || die "no Bochs in the toolchain root at $root; run 'make root'"

limit=$(scaled "$limit") stall=$(scaled "$stall")
run=$BUILD/logs/${name:-bochs-$(date +%Y%m%d-%H%M%S)-$$}
mkdir -p "$run"
rm -rf "${run:?}"/{status,stalled,booted,output,console.log,boot}
printf '%s\n' "$*" >"$run/command"

# --- the guest's file system

fs=$run/boot/fs
mkdir -p "$fs"/{bin,dev,etc,proc,sys,tmp,root,results,lab,build/selftests}
echo root:x:0:0:root:/root:/bin/sh >"$fs/etc/passwd"
cp "$root/bin/busybox" "$fs/bin/"
# What the tests and kvm-load want more of than busybox has.
# shellcheck disable=SC2016 # expanded by the inner shell
"$TOP/scripts/in-root" sh -c '
	for f in bash chrt dmesg grep mountpoint timeout; do
		path=$(command -v $f)
		cp -L "$path" "$1/bin/"
		ldd "$path" | grep -o "/[^ ]*" | while read -r lib; do
			mkdir -p "$1$(dirname "$lib")"
			cp -L "$lib" "$1$lib"
		done
	done' tools "$fs" || die "the guest's tools could not be copied"
for m in c rust; do
	mkdir -p "$fs/build/mod-$m$suffix"
	for k in kvm kvm-intel irqbypass; do
		"$TOP/scripts/in-root" llvm-strip-19 --strip-debug -o \
			"$fs/build/mod-$m$suffix/$k.ko" "$BUILD/mod-$m$suffix/$k.ko"
	done
done
cp "$TOP"/scripts/guest/kvm-{load,unload} "$fs/lab/"
mkdir -p "$fs/lab/tests"
cp -r "$TOP"/tests/{selftests,bench} "$fs/lab/tests/"
for f in "${with[@]}"; do
	mkdir -p "$fs/build/selftests/kvm/$(dirname "$f")"
	# shellcheck disable=SC2016 # expanded by the inner shell
	"$TOP/scripts/in-root" sh -c '
		if [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; then
			strip -o "$2" "$1"
		else
			cp "$1" "$2"
		fi' strip "$BUILD/selftests/kvm/$f" "$fs/build/selftests/kvm/$f"
done
for f in "${files[@]}"; do
	mkdir -p "$fs/build/$(dirname "$f")"
	cp "$BUILD/$f" "$fs/build/$f"
done
ln -s /build/selftests "$fs/lab/selftests"
cp "$TOP/scripts/guest/bochs-init.sh" "$fs/init"
cp "$TOP/scripts/guest/mounts.sh" "$fs/"
cp "$run/command" "$fs/command"
guest_env "$flavour" >"$fs/env"

mkdir -p "$run/boot/iso"
cp "$bzimage" "$run/boot/iso/bzImage"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" \
	"$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$run/boot/iso/"
cat >"$run/boot/iso/isolinux.cfg" <<END
default fork
prompt 0
timeout 1
label fork
  kernel bzImage
  append initrd=initrd console=ttyS0,115200 tsc_early_khz=50000 kvm_intel.enable_apicv=0 panic=-1 $append
END
cat >"$run/boot/bochsrc" <<END
plugin_ctrl: unmapped=1, biosdev=1
cpu: model=$model, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=2048, host=2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path="$run/boot/boot.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$run/console.log"
log: $run/boot/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
clock: sync=none, time0=1767225600
END
# shellcheck disable=SC2016 # expanded by the inner shell
"$TOP/scripts/in-root" sh -c '
	cd "$1/fs" && find . | cpio -o -H newc --quiet | lz4 -l -q -9 - - >../iso/initrd &&
	xorriso -as mkisofs -quiet -o "$1/boot.iso" -b isolinux.bin -c boot.cat \
		-no-emul-boot -boot-load-size 4 -boot-info-table "$1/iso" 2>"$1/xorriso.log"' \
	boot "$run/boot" || die "the boot image could not be made, see $run/boot/xorriso.log"

# --- the boot

emulate "$run/console.log" -- bochs-bin -q -f "$run/boot/bochsrc" >"$run/boot/bochs.out" 2>&1

# The serial line is the only way out: what the command wrote is between two
# marks, its status is in the second. The kernel's lines are told by their time.
log=$run/console.log
[[ -e $log ]] || die "Bochs did not start ($rc): $(grep -aA1 'exiting with' "$run/boot/bochs.out" |
	tail -n 1); see $run/boot/bochs.out"
tr -d '\r' <"$log" | sed -n '/^LAB: begin$/,/^LAB: end /{/^LAB: /d;p}' >"$run/output"
status=$(tr -d '\r' <"$log" | sed -n 's/^LAB: end \([0-9]*\)$/\1/p')
if [[ $status ]]; then
	rm -rf "${run:?}/boot"
	echo "$status" >"$run/status"
	exit "$status"
fi
! tr -d '\r' <"$log" | grep '^LAB: begin$' >/dev/null || touch "$run/booted"
last_words "$log"
die "the guest stopped before its command ended (Bochs: $rc, see $run/boot); console log: $log"
