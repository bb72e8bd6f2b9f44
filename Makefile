# SPDX-License-Identifier: GPL-2.0
# The entry point of the lab. Each step is a script of its own: scripts/ builds and boots,
# tests/ tests and measures. This file only has their order, and when a step can be skipped.

KVER   ?= 7.3
JOBS   ?= $(shell nproc)
export KVER JOBS
# Passed on if the user sets them.
export KSRC KTARBALL KSHA256 MIRROR VENDOR KERNEL

S := build/stamp

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^## //p' Makefile

## make run        boot Debian's kernel with its own modules and with ours; a table C | Rust
run:
	@tests/dirty_log_perf/run.sh

## make test       the tests, as far as they fit into CI; ends with a one-line summary;
##                 test-* below are the others, or a part alone
test: lab pristine modules-deb
	@tests/run.sh

## make try        TEST='ID ...': run some tests while changing something, C | Rust
try: lab
	@tests/selftests/try.sh $(TEST)

## make host       the tests of the pure core; they need no kernel
host: root
	@tests/host/run.sh

## make bench      the cost of each ioctl that changes page tables, C | Rust;
##                 VENDOR=intel: on EPT with PML
bench: lab
	@tests/bench/run.sh

## make bench-log  what it costs to log writes, by faults and by D bits
bench-log: lab
	@tests/bench/run.sh -l

## make bench-native  dirty logging on this machine's CPU, C | Rust
bench-native: modules
	@tests/native/run.sh

## make model      simulate migrations of VMs that are too large for this machine
model: root
	@tests/model/run.sh results/model.md results/model.svg

## make test-other KVM's selftests that hardly concern the MMU
test-other: lab
	@tests/run.sh other

## make threads    splitting ahead, recovering and CLEAR by one thread and by two, on this machine's CPUs
threads: modules
	@tests/native/threads.sh

## make contention contention for mmu_lock on this machine's CPUs, C | Rust
contention: modules
	@tests/native/contention.sh

## make test-intel the MMU's tests on emulated Intel processors; half an hour
test-intel: lab
	@tests/run.sh intel-pml intel-ad intel-noad

## make test-shadow the selftests with shadow paging: without TDP MMU, and without NPT
test-shadow: lab
	@tests/run.sh shadow-notdp shadow-nonpt

## make test-debug  the MMU's tests and a stress test on a debug kernel;
##                 WHICH=lockdep, kasan or kcsan (lockdep)
test-debug: $(S)/selftests
	@tests/selftests/debug.sh $(or $(WHICH),lockdep)

## make test-mutants  check that the tests find the bugs planted in the MMU, those that were
##                 not checked yet; MUTANTS='BUG ...'
test-mutants: lab
	@tests/mutants/run.sh $(MUTANTS)

## make test-cargo-mutants  check that the host tests and the simulation notice what
##                 cargo-mutants breaks; resumable; SAMPLE=n, SEED=n: another draw
test-cargo-mutants: root
	@SAMPLE='$(SAMPLE)' SEED='$(SEED)' tests/cargo-mutants/run.sh

## make test-upstream  check that patches/upstream/ fix what fails on upstream's modules
test-upstream: lab pristine
	@tests/upstream/run.sh

## make alloc-sites  which of the MMU's allocation sites have been made to fail
alloc-sites: debug $(S)/selftests
	@tests/selftests/alloc-sites.sh

## make matrix     write results/runs.rst, which test ran where, from build/logs
matrix:
	@scripts/in-root python3 -B tests/selftests/matrix.py build/logs >build/runs.rst
	@mv build/runs.rst results/runs.rst

## make check      formats, lints, checkpatch, shellcheck, docs, the series
check: $(S)/linux
	@tests/check/run.sh

## make migrate    live migration of a guest in a dozen ways, C | Rust;
##                 QEMU=ours: with the QEMU of 'make qemu', which splits huge pages ahead
migrate: lab $(if $(filter ours,$(QEMU)),qemu)
	@tests/migrate/run.sh

## make qemu       Debian's QEMU with contrib/qemu/, for 'make migrate'; half an hour
qemu: root
	@contrib/qemu/build.sh

## make sim        simulate the MMU under random schedules for two minutes;
##                 MINUTES=n, SCENARIO=name, SEED=n (replays a scenario)
sim: root
	@tests/sim/run.sh $(if $(MINUTES),--minutes '$(MINUTES)') \
		$(if $(SCENARIO),--scenario '$(SCENARIO)') $(if $(SEED),--seed '$(SEED)')

## make sim-every  simulate every schedule of two parties, with tables of 8 entries;
##                 WORLD='recovery against fault' (all), PREEMPTIONS=n (2)
sim-every: root
	@tests/sim/run.sh every $(if $(WORLD),--world '$(WORLD)') $(if $(PREEMPTIONS),--preemptions '$(PREEMPTIONS)')

## make sim-mutants  check that the simulation finds the bugs planted in the MMU;
##                 resumable; MUTANTS='BUG ...'
sim-mutants: root
	@tests/sim/run.sh mutants $(MUTANTS)

## make sim-coverage  which lines of the algorithms the simulation reaches
sim-coverage: root
	@tests/sim/run.sh coverage $(MINUTES)

## make deb        CONFIG=file: the fork as a Debian package, for a real machine
deb: deb-config source
	@CONFIG='$(CONFIG)' scripts/package/deb.sh
deb-config:
	@CONFIG='$(CONFIG)' scripts/package/deb.sh check

## make test-deb   package, install, boot and remove it; builds a kernel the first time
test-deb: lab
	@tests/run.sh deb

## make modules-deb  KERNEL=release: the modules for one of Debian's kernels, as a package
modules-deb: source
	@release=$$(scripts/package/debian-kernel.sh $(KERNEL)) && \
		$(MAKE) -s $(S)/distro-$$release && scripts/package/modules-deb.sh $$release

## make test-modules  install, load, use and remove that package on an emulated Debian
test-modules: modules-deb $(S)/selftests
	@tests/run.sh modules

## make hw-check   as root, where that package is installed: whether the MMU works on this
##                 machine's TLB, and what it costs; a report to send in; MINUTES=n (20)
hw-check: hw-check-machine $(S)/selftests
	@tests/hw-check/run.sh $(MINUTES)
hw-check-machine:
	@tests/hw-check/run.sh machine

## make build-matrix  compile the MMU with each option toggled, with GCC and clang
build-matrix: modules-deb $(S)/linux
	@tests/build-matrix/run.sh

## make kernel     the fork's vmlinux and both sets of KVM modules
kernel: $(S)/linux $(S)/mod-c $(S)/mod-rust

## make shell      a prompt in the booted fork, with /dev/kvm
shell: lab
	@scripts/boot.sh --interactive 'kvm-load rust && cd /build/selftests && exec bash -i'

## make series     the whole fork as a git format-patch series, verified;
##                 VERIFY=1: also run checkpatch on it, and compile each commit; resumable
series: source
	@scripts/package/series.sh

## make paths      print where everything is, as KEY=VALUE
paths:
	@scripts/paths.sh

## make clean      remove build/
clean:
	rm -rf build

## make distclean  also remove what is cached: toolchain root, packages
distclean: clean
	@scripts/distclean.sh

## make help       this
##
## variables: KSRC=tree (your own Linux $(KVER) source), JOBS=n, MIRROR=address,
##            CONFIG=kernel configuration (make deb),
##            KERNEL=release of one of Debian's kernels (make run, make modules-deb),
##            KVER=7.3, KTARBALL=file-or-address KSHA256=sum (release tarball)

# --- the steps behind them

lab: $(S)/linux $(S)/mod-c $(S)/mod-rust $(S)/selftests
pristine: $(S)/mod-pristine
modules: $(S)/mod-c $(S)/mod-rust
selftests: $(S)/selftests

preflight:
	@scripts/preflight.sh
root: preflight
	@scripts/make-root.sh

# Always run; its stamps only change if something has changed.
source $(S)/src-kernel $(S)/src-kvm $(S)/src-selftests &: root
	@scripts/source.sh

configs := configs/lab.config configs/rust.config

# step STAMP,SCRIPT ARGUMENTS: quiet unless it fails, then the log's end.
define step
@echo "lab: $(2) (log: build/logs/$(@F).log)" >&2
@mkdir -p build/logs
@scripts/$(2) >build/logs/$(@F).log 2>&1 || { \
	grep -m1 -h '^error: ' build/logs/$(@F).log >&2 || tail -n 30 build/logs/$(@F).log >&2; \
	echo "error: $(1) failed; the log is build/logs/$(@F).log" >&2; exit 1; }
@touch $@
endef

$(S)/linux: $(S)/src-kernel $(configs) scripts/kernel.sh
	$(call step,building the kernel,kernel.sh lab)
define flavour
$(S)/linux-$(1): $(S)/src-kernel $(configs) configs/$(1).config scripts/kernel.sh
	$$(call step,building the $(1) kernel,kernel.sh $(1))
$(S)/mod-%-$(1): $(S)/linux-$(1) $(S)/src-kvm scripts/modules.sh
	$$(call step,building the $$* modules for the $(1) kernel,modules.sh $$* $(1))
$(1): $(S)/linux-$(1) $(S)/mod-c-$(1) $(S)/mod-rust-$(1)
endef
$(foreach f,debug kasan kcsan,$(eval $(call flavour,$(f))))
$(S)/mod-%: $(S)/linux $(S)/src-kvm scripts/modules.sh
	$(call step,building the $* modules,modules.sh $*)
$(S)/distro-%: $(S)/src-kernel $(S)/src-kvm scripts/package/distro-modules.sh scripts/package/btf.py
	$(call step,building the modules for $*,package/distro-modules.sh $*)
# The one test that 'make run' needs.
$(S)/run-selftests: $(S)/src-selftests scripts/selftests.sh tests/dirty_log_perf/link.sh \
		tests/dirty_log_perf/exclusive.c
	$(call step,building dirty_log_perf_test,selftests.sh dirty_log_perf_test)
	@tests/dirty_log_perf/link.sh
$(S)/selftests: $(S)/src-selftests scripts/selftests.sh
	$(call step,building the selftests,selftests.sh)

.PHONY: help run test test-intel test-shadow bench bench-log bench-native contention threads check migrate kernel \
	shell series paths clean distclean lab debug pristine modules selftests preflight root source \
	alloc-sites test-debug test-mutants test-upstream test-other try host kasan kcsan matrix deb deb-config test-deb modules-deb test-modules build-matrix \
	hw-check hw-check-machine \
	sim sim-coverage sim-every sim-mutants test-cargo-mutants model qemu
