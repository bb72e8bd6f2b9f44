#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The lab's errors: each must say, in one line, what is wrong and what to do.
# TAP on stdout. Takes about a minute.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

n=0
# expect NAME PATTERN COMMAND...: fails, with exactly one line "error: PATTERN".
expect()
{
	local name=$1 pattern=$2 log=$tmp/log status=0
	shift 2
	n=$((n + 1))
	"$@" >"$log" 2>&1 </dev/null || status=$?
	if ((status)) && [[ $(grep -c '^error: ' "$log") = 1 ]] &&
	   grep -qE "^error: .*$pattern" "$log"; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name # status $status"
		sed 's/^/# /' "$log"
	fi
}

# check NAME COMMAND...: succeeds.
check()
{
	local name=$1 log=$tmp/log
	shift
	n=$((n + 1))
	if "$@" >"$log" 2>&1 </dev/null; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		sed 's/^/# /' "$log"
	fi
}

# A copy of the checkout's scripts with a cache of its own, so that nothing that
# exists is found, or harmed.
copy=$tmp/copy
mkdir -p "$copy"
(cd "$top" && git ls-files -z scripts configs patches Kconfig | xargs -0 cp --parents -t "$copy")
fresh()
{
	env XDG_CACHE_HOME="$tmp/cache" LAB_ROOT= "$@"
}

# Everything but mmdebstrap and apt-get.
bin=$tmp/bin
mkdir "$bin"
for d in /usr/local/bin /usr/bin /bin /usr/sbin /sbin; do
	for f in "$d"/*; do
		case ${f##*/} in
		mmdebstrap|apt-get) ;;
		*) [[ -e $bin/${f##*/} ]] || ln -s "$f" "$bin/${f##*/}" 2>/dev/null || : ;;
		esac
	done
done
expect "no mmdebstrap and no way to install it" "mmdebstrap is missing.*apt-get install" \
	fresh PATH="$bin" "$copy/scripts/root.sh"
# A caller may have files open: make's jobserver, a lock.
mkdir "$tmp/fake"
printf '#!/bin/sh\nexec ls /proc/self/fd >%s\n' "$tmp/fds" >"$tmp/fake/mmdebstrap"
chmod +x "$tmp/fake/mmdebstrap"
expect "a mmdebstrap that makes nothing" "the toolchain root could not be made" \
	fresh PATH="$tmp/fake:$PATH" "$copy/scripts/root.sh" 7</dev/null 12</dev/null
check "which got no other files than the standard ones" test "$(xargs <"$tmp/fds")" = "0 1 2 3"
# Interrupted meanwhile, it leaves nothing. It is a session of its own, which no signal for the
# terminal's processes reaches.
printf '#!/bin/sh\nsleep 1000 &\necho $! >%s.new\nmv %s.new %s\nwait\n' "$tmp"/asleep{,,} >"$tmp/fake/mmdebstrap"
# ended MARK COMMAND...: COMMAND, interrupted when it has created MARK, ends.
ended()
{
	local mark=$1 pid status=0
	env XDG_CACHE_HOME="$tmp/cache" LAB_ROOT= PATH="$tmp/fake:$PATH" "${@:2}" &
	pid=$!
	for _ in {1..300}; do
		[[ ! -e $mark ]] || break
		sleep 0.2
	done
	kill "$pid"
	wait "$pid" || status=$?
	((status == 143))
}
ended_root()
{
	# It may be a zombie for a while.
	ended "$tmp/asleep" "$copy/scripts/make-root.sh" &&
		! grep -q ') [^Z] ' "/proc/$(<"$tmp/asleep")/stat" &&
		! compgen -G "$tmp/cache/kvm-mmu-rs/work.*"
}
check "a step that is interrupted ends all that it has started, and leaves nothing" ended_root
cat >"$tmp/begins" <<'BEGINS'
trap 'rm -rf "$0.d"' EXIT
mkdir "$0.d"
touch "$0.d"/{1..20000}
touch "$0.begun"
sleep 1000
BEGINS
removed()
{
	# shellcheck disable=SC2016 # expanded by the inner shell
	ended "$tmp/begins.begun" bash -euc '. "$0/scripts/lib.sh"; . "$0/scripts/progress.sh"
		step "a test" 1 test bash "$1"' "$copy" "$tmp/begins" && [[ ! -e $tmp/begins.d ]]
}
check "and has time to remove what it has begun" removed
# How far mmdebstrap is: what it says, and what is in its tree.
tree=$tmp/tree
mkdir -p "$tree/var/log" "$tree/var/cache/apt/archives/partial" "$copy/build/logs"
touch "$tree/var/cache/apt/archives/"{a,b,c,partial/d}.deb
echo "lab: installing mmdebstrap" >"$copy/build/logs/step-root.log"
printf '2026-01-02 03:04:05 %s <none> 1\n' "startup packages" "install a" "install b" "status unpacked a" \
	"configure a" "status installed a" >"$tree/var/log/dpkg.log"
# far SAYS [LINE]: when this is the last line of its log, it says that.
far()
{
	printf '%s\n' "I: using $tree as tempdir" "${@:2}" >"$tmp/cache/kvm-mmu-rs/root.log"
	# shellcheck disable=SC2016 # expanded by the inner shell
	[[ $(fresh bash -euc '. "$0/scripts/lib.sh"; . "$0/scripts/progress.sh"; root_far' "$copy") = "$1" ]]
}
all="of about 411 packages 3 are here, 2 unpacked, 1 set up"
check "it shows how many packages are installed" \
	far "installing remaining packages inside the chroot... $all" \
	"I: installing remaining packages inside the chroot..."
rm "$tree/var/log/dpkg.log"
check "or downloaded" far "downloading packages with apt... ${all%%,*}, 0 unpacked, 0 set up" \
	"I: downloading packages with apt..."
check "what else it does" far "creating tarball..." "I: creating tarball..."
rm -rf "$tree"
check "and before it has begun, what the step does" far "lab: installing mmdebstrap"
expect "no network" "cannot be reached.*MIRROR=" \
	fresh LAB_MIRROR_PAUSE=0 MIRROR=http://127.0.0.1:9/debian "$copy/scripts/root.sh"
check "which it finds three times" test "$(grep -c '^E: Unable to connect\|Could not connect' "$tmp/log")" -ge 3
# shellcheck disable=SC2016 # expanded by the fake
printf '#!/bin/sh\necho >>%s\n[ "$(wc -l <%s)" -gt 1 ] || echo "E: Failed to fetch" >&2\nexit 1\n' "$tmp"/tries{,} \
	>"$tmp/fake/mmdebstrap"
expect "a mirror that fails once, and something else then" "the toolchain root could not be made" \
	fresh LAB_MIRROR_PAUSE=0 PATH="$tmp/fake:$PATH" "$copy/scripts/root.sh"
check "which is tried twice" test "$(wc -l <"$tmp/tries")" = 2
expect "too little disk" "free disk.*are needed; free some" \
	fresh LAB_MIN_DISK_MB=999999999 "$copy/scripts/preflight.sh"
expect "too little room for the cache" "free disk.*are needed; free some" \
	fresh LAB_MIN_CACHE_MB=999999999 "$copy/scripts/preflight.sh"
expect "too little memory" "memory, .* are needed; use a bigger" \
	fresh LAB_MIN_MEM_MB=999999999 "$copy/scripts/preflight.sh"

root=$(bash -c '. "$0/scripts/lib.sh" && root_dir' "$top")
mkdir -p "$tmp/old"
printf 'VERSION = 6\nPATCHLEVEL = 12\n' >"$tmp/old/Makefile"
expect "KSRC of another version" "is Linux 6.12, the hook series is for 7.3; point KSRC=" \
	env LAB_ROOT="$root" KSRC="$tmp/old" "$copy/scripts/source.sh"
expect "KSRC that is no source" "is no kernel source; name a Linux" \
	env LAB_ROOT="$root" KSRC="$tmp" "$copy/scripts/source.sh"
expect "no source package, and the three ways to one" "MIRROR=.*KTARBALL=.*KSRC=" \
	env LAB_ROOT="$root" KVER=7.99 "$copy/scripts/source.sh"

# A tree that has the right version and not the right files.
mkdir -p "$tmp/new/scripts"
printf 'VERSION = 7\nPATCHLEVEL = 3\nkernelversion:\n\t@echo 7.3.0\n' >"$tmp/new/Makefile"
expect "a hook patch that does not apply" "patches/0001.*does not apply.*rebase it" \
	env LAB_ROOT="$root" KSRC="$tmp/new" "$copy/scripts/source.sh"

# The source from an archive, where the mirror has no package of it.
tar -C "$tmp" -caf "$tmp/linux-7.3.9.tar.xz" new
sum=$(sha256sum "$tmp/linux-7.3.9.tar.xz" | cut -d' ' -f1)
# release SUM [ADDRESS]: source.sh with this sum on record.
release()
{
	printf '7.3.9 %s\n' "- http://127.0.0.1:9/none" "$1 ${2:-$tmp/linux-7.3.9.tar.xz}" >"$tmp/archives"
	env LAB_ROOT="$root" XDG_CACHE_HOME="$tmp/cache" no_proxy=127.0.0.1 LAB_ARCHIVES="$tmp/archives" \
		LAB_ENV="LAB_ARCHIVES LAB_LINUX_SOURCE" LAB_LINUX_SOURCE=/nonexistent \
		"$copy/scripts/source.sh" 2>&1 | tee "$tmp/said"
}
"$top/scripts/in-root" python3 -u -m http.server --bind 127.0.0.1 --directory "$tmp" 0 >"$tmp/served" 2>&1 &
server=$!
trap 'kill $server; rm -rf "$tmp"' EXIT
port=''
for _ in {1..300}; do
	port=$(sed -n 's/^Serving HTTP on .* port \([0-9]*\) .*/\1/p' "$tmp/served")
	[[ ! $port ]] || break
	sleep 0.2
done
mirror=http://127.0.0.1:$port
expect "upstream's release is taken by itself, and has the wrong files here" \
	"patches/0001.*does not apply.*rebase it" release "$sum" "$mirror/linux-7.3.9.tar.xz"
check "which it said" grep -q "taking that of 7.3.9 from $mirror" "$tmp/said"
check "it was downloaded" grep -q '"GET /linux-7.3.9.tar.xz HTTP/1.1" 200' "$tmp/served"
rm -rf "$copy/build"
expect "a release with another checksum" "does not have the checksum.*configs/source.archives" \
	release "${sum//[0-4]/f}"
expect "a download with another checksum" "does not have the checksum.*delete it.*configs/source.archives" \
	release "${sum//[0-4]/f}" "$mirror/linux-7.3.9.tar.xz"
expect "a release whose checksum is not known" "no other archive of it is recorded; put one into configs/source.archives" \
	release -
rm "$tmp/cache/kvm-mmu-rs/linux-7.3.9.tar.xz"
expect "a release that the address does not have" "cannot download .*check the network and the address" \
	release "$sum" "$mirror/none/linux-7.3.9.tar.xz"
expect "a release that cannot be downloaded" "cannot download .*check the network" \
	release "$sum" http://127.0.0.1:9/linux-7.3.9.tar.xz
expect "a tarball of the user's that is not there" "KTARBALL=/nonexistent is not there" \
	env LAB_ROOT="$root" KTARBALL=/nonexistent KSHA256="$sum" "$copy/scripts/source.sh"
expect "one without a checksum" "KTARBALL= needs KSHA256=" \
	env LAB_ROOT="$root" KTARBALL="$tmp/linux-7.3.9.tar.xz" "$copy/scripts/source.sh"
rm -rf "$copy/build"
mkdir -p "$tmp/package/DEBIAN" "$tmp/package/usr/src"
cp "$tmp/linux-7.3.9.tar.xz" "$tmp/package/usr/src/linux-source-7.3.tar.xz"
printf '%s\n' "Package: linux-source-7.3" "Version: 7.3.9-1" "Architecture: all" "Maintainer: nobody" \
	"Description: none" >"$tmp/package/DEBIAN/control"
"$top/scripts/in-root" dpkg-deb -b "$tmp/package" "$tmp/linux-source-7.3_7.3.9-1_all.deb" >/dev/null
sum=$(sha256sum "$tmp/linux-source-7.3_7.3.9-1_all.deb" | cut -d' ' -f1)
expect "a package of the distribution's archive is unpacked as well" \
	"patches/0001.*does not apply.*rebase it" release "$sum" "$mirror/linux-source-7.3_7.3.9-1_all.deb"
kill $server
trap 'rm -rf "$tmp"' EXIT

# The modules for a distribution's kernel.
release=$("$top/scripts/package/debian-kernel.sh")
expect "a kernel that nobody knows" "knows no kernel 7.3.99.none-amd64 of .*; KERNEL= can be: .*-amd64" \
	"$top/scripts/package/debian-kernel.sh" 7.3.99+none-amd64
expect "one with PREEMPT_RT" "knows no kernel .*-rt-amd64 of .*amd64 and cloud-amd64" \
	"$top/scripts/package/debian-kernel.sh" "${release%-amd64}-rt-amd64"
expect "no room for a kernel" "free disk.*are needed; free some" \
	env LAB_ROOT="$root" XDG_CACHE_HOME="$tmp/cache" LAB_MIN_KERNEL_MB=999999999 \
	"$copy/scripts/package/debian-kernel.sh"
expect "no room for a package" "free disk.*are needed; free some" \
	env LAB_MIN_DISK_MB=999999999 "$top/scripts/package/modules-deb.sh" "$release"
mkdir -p "$tmp/cache/kvm-mmu-rs/kernel-7.3.9+x-amd64"
touch "$tmp/cache/kvm-mmu-rs/kernel-7.3.9+x-amd64/.complete"
expect "a kernel without its headers" "headers of 7.3.9.x-amd64 have no .config.*KERNEL=" \
	env LAB_ROOT="$root" XDG_CACHE_HOME="$tmp/cache" "$copy/scripts/package/distro-modules.sh" 7.3.9+x-amd64
# wrong TOOL VARIABLE SAYS: TOOL says another version of itself.
wrong()
{
	printf '#!/bin/sh\necho "%s"\n' "$2" >"$tmp/wrong"
	chmod 755 "$tmp/wrong"
	env LAB_ENV="$1" "$1=$tmp/wrong" "$top/scripts/package/distro-modules.sh" "$release"
}
expect "another rustc" "rustc is 'rustc 1.99.0'.*built with 'rustc .*install that version" \
	wrong RUSTC "rustc 1.99.0"
expect "another pahole" "pahole is version 199, and .* was built with .*install dwarves" \
	wrong PAHOLE v1.99
expect "no pahole" "pahole is version 0, and .* was built with .*install dwarves" \
	env LAB_ENV=PAHOLE PAHOLE=/nonexistent "$top/scripts/package/distro-modules.sh" "$release"
expect "modules of another kernel" "has the vermagic '.*-kvm-rs .*cannot be loaded" \
	"$top/scripts/package/distro-modules.sh" check "$release" "$top/build/mod-rust"
expect "a kernel to boot that is not there" "no kernel 7.3.99; run 'make modules-deb" \
	"$top/scripts/boot.sh" --kernel 7.3.99 true

expect "make deb without a configuration" "needs CONFIG=.*/boot/config-" \
	env CONFIG= "$copy/scripts/package/deb.sh" check
expect "make deb with one that is not there" "CONFIG=/nonexistent is not a file" \
	env CONFIG=/nonexistent "$copy/scripts/package/deb.sh" check
expect "make deb with one of another kind" "not the configuration of an x86-64 kernel" \
	env CONFIG="$copy/configs/rust.config" "$copy/scripts/package/deb.sh" check

expect "no kernel to boot" "no kernel at .*; run 'make kernel'" \
	env LAB_ROOT="$root" "$copy/scripts/boot.sh" true
boot()
{
	"$top/scripts/boot.sh" --smp 1 --mem 1G "$@"
}
expect "a guest that does not boot" "did not boot within [0-9]+ s.*console log:" \
	boot --name lab-noboot --timeout 1 true
expect "a guest that panics" "stopped .*before.*console log:" \
	boot --name lab-panic --append "init=/nonexistent panic=-1" --timeout 60 true
expect "a guest that hangs" "did not end within [0-9]+ s.*console log:" \
	boot --name lab-hang --timeout 25 "sleep 1000"
mkdir -p "$copy/build/stamp"
echo 200 >"$copy/build/stamp/speed"
cp "$top/build/linux/arch/x86/boot/bzImage" "$copy/build/bzImage"
expect "a machine on which all takes twice as long has twice as long" "did not boot within 2 s" \
	env LAB_ROOT="$root" LAB_BZIMAGE="$copy/build/bzImage" \
	"$copy/scripts/boot.sh" --smp 1 --mem 1G --timeout 1 true
expect "a guest that says nothing any more" "has printed nothing for [0-9]+ s.*console log:" \
	boot --name lab-stall --timeout 300 --stall 10 "echo 1; sleep 1000"
# shellcheck disable=SC2016 # expanded in the guest
check "but not one that takes longer and says so" boot --name lab-slow --timeout 300 --stall 10 \
	'for ((i = 0; i < 8; i++)); do sleep 2; echo $i; done'
check "a guest that works" boot --name lab-works --timeout 60 true

mounts()
{
	! grep -F "$root" /proc/self/mounts
}
check "no mounts are left" mounts
interrupted()
{
	timeout -s INT 2 "$top/scripts/in-root" sleep 100 || :
	mounts
}
check "nor after an interrupt" interrupted

echo "1..$n"
