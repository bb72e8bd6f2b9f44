#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make deb CONFIG=FILE': the fork as a Debian package, by the kernel's own
# bindeb-pkg. FILE is the configuration of a kernel, plain or .gz; what the Rust
# MMU needs is switched on in a copy of it. The package goes to build/deb/.
#   deb.sh check    only see whether CONFIG will do
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

# Beside build/linux, so that to ccache the paths are the same.
deb=$BUILD/deb out=$BUILD/linux-deb log=$BUILD/logs/deb.log
# What marks the release of the kernel.
mark=-kvm-rs

# read_config: the configuration that the user has named, on stdout.
read_config()
{
	[[ ${CONFIG:-} ]] ||
		die "make deb needs CONFIG=, the configuration of a kernel for the machine; on that machine it is /boot/config-\$(uname -r)"
	[[ -f $CONFIG && -r $CONFIG ]] ||
		die "CONFIG=$CONFIG is not a file that can be read; name the configuration of a kernel, such as /boot/config-\$(uname -r)"
	case $CONFIG in
	*.gz) zcat "$CONFIG" ;;
	*) cat "$CONFIG" ;;
	esac
}

is()
{
	grep -qx "CONFIG_$1=[$2]" "$out/.config"
}

# configure: what the MMU needs, on; LOCALVERSION so that the package can be
# installed beside every other kernel.
configure()
{
	local local_version o missing=() c=("$SRC/scripts/config" --file "$out/.config")
	local mk=("$@")

	# Each option once, as this kernel knows them.
	"${mk[@]}" -s olddefconfig
	# EXPERT only because RUST_INLINE_HELPERS depends on it.
	"${c[@]}" -e EXPERT -e RUST -e RUST_INLINE_HELPERS -e VIRTUALIZATION \
		-e KVM_RUST_MMU -d LOCALVERSION_AUTO
	for o in KVM KVM_INTEL KVM_AMD; do
		is "$o" ym || "${c[@]}" -m "$o"
	done
	local_version=$("${c[@]}" -s LOCALVERSION)
	case $local_version in
	*"$mark") ;;
	undef) "${c[@]}" --set-str LOCALVERSION "$mark" ;;
	*) "${c[@]}" --set-str LOCALVERSION "$local_version$mark" ;;
	esac
	# Keys that belong to the builder of the kernel that the configuration comes from.
	for o in SYSTEM_TRUSTED_KEYS SYSTEM_REVOCATION_KEYS; do
		case $("${c[@]}" -s $o) in
		""|undef) ;;
		*)	echo "note: $o is emptied, the file is not here"
			"${c[@]}" --set-str $o "" ;;
		esac
	done
	"${mk[@]}" -s olddefconfig
	if ! is RUST y; then
		# Kconfig wants DWARF-based versions with Rust, and pahole for BTF.
		for o in MODVERSIONS DEBUG_INFO_BTF; do
			if is $o y; then
				echo "note: $o is switched off, Rust does not go with it here"
				"${c[@]}" -d $o
			fi
		done
		"${c[@]}" -e RUST -e RUST_INLINE_HELPERS -e KVM_RUST_MMU
		"${mk[@]}" -s olddefconfig
	fi
	is RUST_INLINE_HELPERS y ||
		echo "note: no RUST_INLINE_HELPERS, so the MMU will be slower"

	is RUST y || missing+=(RUST)
	is KVM ym || missing+=(KVM)
	is KVM_RUST_MMU y || missing+=(KVM_RUST_MMU)
	((!${#missing[@]})) || die "Kconfig does not grant ${missing[*]} with CONFIG=$CONFIG, probably because of $(
		for o in RANDSTRUCT_FULL RANDSTRUCT_PERFORMANCE KASAN_SW_TAGS; do
			! is $o y || printf '%s=y ' "$o"
		done
		for o in X86_64 VIRTUALIZATION; do
			is $o y || printf '%s=n ' "$o"
		done)their dependencies; change it there"
}

if [[ ${1:-} = check ]]; then
	read_config >/dev/null
	grep -qx 'CONFIG_X86_64=y' <(read_config) ||
		die "CONFIG=$CONFIG is not the configuration of an x86-64 kernel (no CONFIG_X86_64=y); use the .config of a kernel build, or /boot/config-\$(uname -r)"
	exit
fi

if [[ ! ${LAB_INSIDE:-} ]]; then
	"$TOP/scripts/package/deb.sh" check
	mkdir -p "$out" "$deb" "$BUILD/logs"
	read_config >"$out/.config"
	need_mb "$BUILD" "${LAB_MIN_DISK_MB:-4096}"
	say "building the package (log: build/logs/deb.log)"
	status=0
	LAB_ENV="CONFIG DEB_BUILD_PROFILES" "$TOP/scripts/in-root" "$TOP/scripts/package/deb.sh" \
		>"$log" 2>&1 || status=$?
	if ((status)); then
		grep -m1 -h '^error: ' "$log" >&2 || {
			tail -n 30 "$log" >&2
			die "the package could not be built; the log is $log"
		}
		exit 1
	fi
	sed -n 's/^note: /lab: /p' "$log" >&2
	package=$(echo "$deb"/linux-image-*.deb)
	release=${package##*/linux-image-}
	release=${release%%_*}
	cat <<EOF
$package
  install     dpkg -i ${package##*/}, then boot Linux $release
  verify      cat /sys/module/kvm/parameters/mmu_engine    (rust)
  go back     boot another kernel, then dpkg -r linux-image-$release
EOF
	exit
fi

mk=(make -C "$SRC" O="$out" LLVM=-19 LOCALVERSION=)
configure "${mk[@]}"
rm -f {"$deb","$BUILD"}/linux-*.{deb,buildinfo,changes}
export KDEB_CHANGELOG_DIST=unstable
export DEB_BUILD_PROFILES=${DEB_BUILD_PROFILES-pkg.linux-upstream.nokernelheaders pkg.linux-upstream.nokerneldbg}
# Each build is a newer version of the package.
build=$(($(cat "$out/.version" 2>/dev/null || echo 0) + 1))
# -d: the root has what is needed, under other names.
"${mk[@]}" -j"$JOBS" KDEB_PKGVERSION="$("${mk[@]}" -s kernelversion)-$build" DPKG_FLAGS=-d bindeb-pkg
# It is no part of the fork, and would replace the distribution's.
rm -f "$BUILD"/linux-libc-dev_*.deb
mv "$BUILD"/linux-*.{deb,buildinfo,changes} "$deb"
# The kernel's build counts only where nobody tells it a number.
echo "$build" >"$out/.version"

# A kvm without the parameter has the MMU in C.
if is KVM m; then
	parameters=$(modinfo -F parm "$out/arch/x86/kvm/kvm.ko")
else
	parameters=$(tr '\0' '\n' <"$out/modules.builtin.modinfo" | sed -n 's/^kvm\.parm=//p')
fi
grep -q '^mmu_engine:' <<<"$parameters" || die "the MMU of the kernel just built is not the one in Rust; see $log"
