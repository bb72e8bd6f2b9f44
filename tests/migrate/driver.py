#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Live-migrate a guest between two QEMUs on this machine, in several ways.

usage: driver.py [-o SCENARIO]... BACKEND ROM LOGDIR

BACKEND is hugetlb or thp, ROM the guest (guest.c). What each scenario found
goes to LOGDIR/BACKEND.json, and one line of it to standard output.
"""
import argparse
import ctypes
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
RAM = int(os.environ.get("RAM_MIB", 64)) * MIB
PAGE = 4096
PARAMETERS = Path("/sys/module/kvm/parameters")
CAPABILITIES = ("multifd", "auto-converge", "postcopy-ram")
PHASES = ("before", "enable", "pre-copy", "cancel", "after")
SPLAT = re.compile(r"WARNING:|BUG:|BUG at|Oops|general protection|INFO: task|"
                   r"rcu:.*(stall|detected)|UBSAN|Kernel panic|unable to handle|"
                   r"soft lockup|Call Trace:|KVM_BUG")

# The layout of guest.c.
CONTROL = 0x200000
SEQUENCES = 0x280000
TIMELINE = 0x300000
NR_WINDOWS = 8192
HISTOGRAMS = 0x380000
NR_PHASES = 8
SUB_BITS = 5
NR_BUCKETS = 40 << SUB_BITS
SAMPLES = 0x390000
NR_SAMPLES = 57344
SAMPLE_SHIFT = 8
MAGIC = 0x6D69677261746521
RUN, QUIESCE, CHECK, EJECT = range(4)
FIELDS = ("magic ram_size period0 period1 batch window command serial phase ext_base "
          "ext_size checked errors error0 error1 error2 error3 fault0 fault1 fault2 "
          "fault3 start_tsc pad ticks0 tsc0 pages0 max_late0 ack0 ticks1 tsc1 pages1 "
          "max_late1 ack1").split()
COST = len(FIELDS)
MAX_LATE = COST + 2 * NR_PHASES
NR_SAMPLED = MAX_LATE + NR_PHASES
NR_FIELDS = NR_SAMPLED + 1


class Failed(Exception):
    """An assertion of a scenario does not hold."""


class Skipped(Exception):
    """A scenario cannot run here."""


def check(condition, message):
    if not condition:
        raise Failed(message)


def note(message):
    """Says on standard error how far it is."""
    print(f"[{time.monotonic():9.3f}] {message}", file=sys.stderr, flush=True)


def tsc_khz():
    """The frequency of the guest's TSC, which is that of the host."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return round(float(line.split(":")[1]) * 1000)
    return 1000000


TSC_KHZ = tsc_khz()


def ticks(us):
    return us * TSC_KHZ // 1000


def to_us(tsc):
    return tsc * 1000 / TSC_KHZ


class Qemu:
    """A QEMU with one guest, and its QMP connection."""
    count = 0

    def __init__(self, test, incoming):
        Qemu.count += 1
        self.name = f"qemu{Qemu.count}"
        self.test = test
        self.path = test.tmp / f"{self.name}.qmp"
        self.events = []
        self.buffer = b""
        size = f"{RAM // MIB}M"
        if test.backend == "hugetlb":
            mem = (f"memory-backend-memfd,id=mem,size={size},hugetlb=on,hugetlbsize=2M,"
                   "share=on,prealloc=on")
        else:
            mem = f"memory-backend-ram,id=mem,size={size},prealloc=on"
        accel = "kvm" + test.accel
        args = ["qemu-system-x86_64", "-name", self.name, "-machine", "pc,memory-backend=mem",
                "-accel", accel, "-cpu", "host", "-smp", "2",
                "-m", f"{size},slots=2,maxmem=1G", "-object", mem, "-bios", test.rom,
                "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
                "-no-shutdown", "-S",
                "-qmp", f"unix:{self.path},server=on,wait=off"]
        if incoming:
            args += ["-incoming", "defer"]
        self.log = open(test.logdir / f"{test.backend}-{self.name}.log", "wb")
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log)
        self.connect()
        note(f"{self.name} is up, incoming {incoming}")
        self.hva = self.find_ram()
        self.mem = open(f"/proc/{self.process.pid}/mem", "r+b", buffering=0)
        # The destination is another machine: until it runs, nobody waits for it.
        if not incoming:
            self.set_priorities()

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.socket.connect(str(self.path))
                break
            except OSError:
                if self.process.poll() is not None:
                    raise Failed(f"{self.name} ended at once, see its log") from None
                check(time.monotonic() < deadline, f"{self.name} has no QMP")
                time.sleep(0.01)
        self.receive()
        self.qmp("qmp_capabilities")

    def set_priorities(self):
        """The vCPUs come first, so that what delays them is KVM, not the scheduler."""
        for cpu in self.qmp("query-cpus-fast"):
            os.sched_setscheduler(cpu["thread-id"], os.SCHED_FIFO,
                                  os.sched_param(40 + 10 * cpu["cpu-index"]))

    def receive(self):
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            check(data, f"{self.name} is gone, see its log")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message

    def poll_events(self):
        while b"\n" in self.buffer or select.select([self.socket], [], [], 0)[0]:
            self.receive()

    def qmp(self, command, **arguments):
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self.receive()
            if "error" in message:
                raise Failed(f"{self.name}: {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def hmp(self, line):
        return self.qmp("human-monitor-command", command_line=line)

    def event_time(self, name, status=None):
        """When the last such event was, in microseconds."""
        self.poll_events()
        for event in reversed(self.events):
            if event["event"] == name and status in (None, event.get("data", {}).get("status")):
                stamp = event["timestamp"]
                return stamp["seconds"] * 1000000 + stamp["microseconds"]
        return None

    def find_ram(self):
        for line in self.hmp("info ramblock").splitlines():
            words = line.split()
            if words and words[0] in ("mem", "/objects/mem"):
                return [int(word, 16) for word in words if word.startswith("0x")][-1]
        raise Failed("no RAM block 'mem'")

    def read(self, gpa, size):
        data = os.pread(self.mem.fileno(), size, self.hva + gpa)
        check(len(data) == size, f"{self.name}: short read of guest memory")
        return data

    def write(self, gpa, data):
        os.pwrite(self.mem.fileno(), data, self.hva + gpa)

    def control(self):
        values = struct.unpack(f"<{NR_FIELDS}Q", self.read(CONTROL, NR_FIELDS * 8))
        control = dict(zip(FIELDS, values))
        control["cost"] = [values[COST + 2 * i:COST + 2 * i + 2] for i in range(NR_PHASES)]
        control["max_late"] = values[MAX_LATE:MAX_LATE + NR_PHASES]
        control["samples"] = values[NR_SAMPLED]
        return control

    def set(self, **fields):
        for name, value in fields.items():
            self.write(CONTROL + 8 * FIELDS.index(name), struct.pack("<Q", value))

    def phase(self, name):
        self.set(phase=PHASES.index(name))

    def alive(self):
        self.poll_events()
        control = self.control()
        if control["fault0"]:
            raise Failed("exception %d in the guest, rip %#x code %#x cr2 %#x" % (
                control["fault0"] - 1, control["fault1"], control["fault2"],
                control["fault3"]))
        for event in self.events:
            if event["event"] in ("SHUTDOWN", "GUEST_PANICKED"):
                raise Failed(f"{self.name}: {event['event']} {event.get('data')}")
        return control

    def command(self, command, timeout=60):
        """Has the guest obey, and waits until both its processors have."""
        serial = self.control()["serial"] + 1
        self.set(command=command)
        self.set(serial=serial)
        deadline = time.monotonic() + timeout
        while True:
            control = self.alive()
            if control["ack0"] == control["ack1"] == serial:
                return control
            check(time.monotonic() < deadline,
                  f"the guest does not obey, ticks {control['ticks0']} {control['ticks1']}")
            time.sleep(0.002)

    def debugfs(self):
        found = list(Path("/sys/kernel/debug/kvm").glob(f"{self.process.pid}-*"))
        check(len(found) == 1, "the VM is not in debugfs")
        return found[0]

    def stats(self):
        result = {}
        for path in self.debugfs().iterdir():
            if path.is_file():
                try:
                    result[path.name] = int(path.read_text())
                except (ValueError, OSError):
                    pass
        return result

    def pages(self):
        stats = self.stats()
        return tuple(stats[f"pages_{size}"] for size in ("4k", "2m", "1g"))

    def stop(self):
        if self.process.poll() is None:
            try:
                self.qmp("quit")
                self.process.wait(20)
            except (Failed, OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.socket.close()
        self.mem.close()
        self.log.close()


class Test:
    """All scenarios on one backend. The guest wanders from QEMU to QEMU."""

    def __init__(self, args):
        self.backend = args.backend
        self.rom = args.rom
        # Where time is real, an emulated processor manages a few ticks only.
        self.scale = args.scale
        self.batch = 4 if self.scale == 1 else 8
        self.meter_us = 100 if self.scale == 1 else 500 * self.scale
        self.poll = 0.002 if self.scale == 1 else 0.03
        self.logging = Logging() if self.scale == 1 else None
        self.logdir = Path(args.logdir)
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.tmp = Path(tempfile.mkdtemp(prefix="migrate-"))
        self.accel = ""
        self.vm = None
        self.other = None
        # Faults and writes of the guest when a migration had been cancelled.
        self.cost = (0, 0)
        self.result = {}

    # --- the guest

    def boot(self):
        self.vm = Qemu(self, False)
        self.vm.set(ram_size=RAM, period0=ticks(1000 * self.scale),
                    period1=ticks(self.meter_us), batch=self.batch,
                    window=ticks(1000 * self.scale), phase=0)
        self.vm.qmp("cont")
        deadline = time.monotonic() + 60
        while self.vm.alive()["magic"] != MAGIC:
            check(time.monotonic() < deadline, "the guest does not start")
            time.sleep(0.005)
        self.wait_ticks(self.vm, 20)
        note("the guest runs")

    def shut(self):
        for qemu in (self.vm, self.other):
            if qemu:
                qemu.stop()
        self.vm = self.other = None

    def wait_ticks(self, qemu, count, timeout=60):
        """Waits until both processors have ticked so often: they are alive."""
        before = qemu.control()
        deadline = time.monotonic() + timeout
        while True:
            now = qemu.alive()
            if all(now[f] >= before[f] + count for f in ("ticks0", "ticks1")):
                return
            check(time.monotonic() < deadline,
                  "the guest is stuck, ticks %d %d after %d %d" % (
                      now["ticks0"], now["ticks1"], before["ticks0"], before["ticks1"]))
            time.sleep(0.005)

    def reset_meter(self):
        """Forgets what was measured. Nothing is being migrated."""
        vm = self.vm
        vm.command(QUIESCE)
        vm.write(HISTOGRAMS, bytes(NR_PHASES * NR_BUCKETS * 4))
        vm.write(TIMELINE, bytes(NR_WINDOWS * 16))
        vm.write(CONTROL + COST * 8, bytes((NR_FIELDS - COST) * 8))
        control = vm.control()
        vm.set(start_tsc=max(control["tsc0"], control["tsc1"]), phase=0)
        vm.command(RUN)

    def verify(self, qemu=None):
        """The guest checks all its pages."""
        qemu = qemu or self.vm
        total = (RAM - 4 * MIB) // PAGE
        control = qemu.command(CHECK)
        if control["errors"]:
            raise Failed("%d pages lost or torn; the first: page %d, %#x expected, %#x found" %
                         (control["errors"], *(control[f"error{i}"] for i in range(3))))
        extra = control["ext_size"] // PAGE
        check(control["checked"] == total + extra,
              f"only {control['checked']} of {total + extra} pages are good")
        self.result["pages"] = self.result.get("pages", 0) + control["checked"]
        qemu.command(RUN)

    def compare(self, source, destination):
        """Both guests stand still: their memory has to be equal."""
        bad = 0
        for offset in range(0, RAM, 2 * MIB):
            a = source.read(offset, 2 * MIB)
            b = destination.read(offset, 2 * MIB)
            if a != b:
                wrong = [offset + i for i in range(0, 2 * MIB, PAGE)
                         if a[i:i + PAGE] != b[i:i + PAGE]]
                bad += len(wrong)
                self.result.setdefault("lost", []).extend(hex(w) for w in wrong[:8])
        check(not bad, f"{bad} pages differ at the destination: {self.result.get('lost')}")
        self.result["compared"] = self.result.get("compared", 0) + RAM // PAGE

    def measure(self, qemu):
        """What the meter has seen so far, by phase."""
        control = qemu.control()
        raw = qemu.read(HISTOGRAMS, NR_PHASES * NR_BUCKETS * 4)
        result = {}
        for i, name in enumerate(PHASES):
            counts = struct.unpack_from(f"<{NR_BUCKETS}I", raw, i * NR_BUCKETS * 4)
            total = sum(counts)
            if not total:
                continue
            entry = {"samples": total, "max_us": to_us(control["max_late"][i])}
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                left = total * share
                for bucket, n in enumerate(counts):
                    left -= n
                    if left <= 0:
                        break
                exponent, low = bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1)
                value = bucket
                if exponent > 1:
                    value = ((1 << SUB_BITS) + low) << (exponent - 1)
                entry[f"{label}_us"] = to_us(value)
            pages, spent = control["cost"][i]
            if pages:
                entry["page_us"] = to_us(spent / pages)
                entry["pages"] = pages
            result[name] = entry
        self.result["phases"] = result
        windows = struct.iter_unpack("<4I", qemu.read(TIMELINE, NR_WINDOWS * 16))
        self.result["timeline"] = [
            [i, round(to_us(late)), pages, round(to_us(spent)), phase]
            for i, (late, pages, spent, phase) in enumerate(windows) if late or pages]

    def measure_logging(self, qemu):
        """What the meter has seen while KVM worked for the log. The source calls this."""
        spans = self.logging.stop()
        offset = int((qemu.debugfs() / "vcpu1/tsc-offset").read_text())
        control = qemu.control()
        count = min(control["samples"], NR_SAMPLES)
        samples = [(control["start_tsc"] + (when << SAMPLE_SHIFT) - offset, late)
                   for when, late in struct.iter_unpack("<2I", qemu.read(SAMPLES, count * 8))]
        for what, times in spans.items():
            late = [to_us(late) for tsc, late in samples
                    if any(tsc - late < end and tsc > start for start, end in times)]
            seen = self.result.setdefault(what, {"us": [], "late_us": []})
            seen["us"] += [to_us(end - start) for start, end in times]
            seen["late_us"] += late
            late = sorted(seen["late_us"])
            note(f"{len(times)} times {what}, {len(late)} samples of {len(samples)} in them")
            if late:
                seen |= {"samples": len(late), "p50_us": late[len(late) // 2],
                         "p99_us": late[len(late) * 99 // 100], "max_us": late[-1]}

    # --- migrating

    def run_for(self, ms):
        """Lets the guest run. It does not, while the machine is busy otherwise."""
        time.sleep(ms / 1000)
        self.wait_ticks(self.vm, 5)

    def start(self, caps=(), both_params=None, **params):
        """Begins to migrate to a new QEMU."""
        self.other = Qemu(self, True)
        # The source may have been told otherwise by the last scenario.
        caps = [{"capability": c, "state": c in caps} for c in CAPABILITIES]
        caps.append({"capability": "events", "state": True})
        uri = f"unix:{self.tmp}/{self.other.name}.migrate"
        for qemu in (self.vm, self.other):
            qemu.qmp("migrate-set-capabilities", capabilities=caps)
            if both_params:
                qemu.qmp("migrate-set-parameters", **both_params)
        if params:
            self.vm.qmp("migrate-set-parameters", **params)
        self.other.qmp("migrate-incoming", uri=uri)
        if self.logging:
            self.logging.start()
        self.vm.phase("enable")
        note("migrate")
        self.vm.qmp("migrate", uri=uri)

    def wait(self, until, during=None, timeout=120):
        """Polls the migration until it satisfies a condition."""
        deadline = time.monotonic() + timeout
        enabling = True
        while True:
            info = self.vm.qmp("query-migrate")
            ram = info.get("ram", {})
            status = info.get("status")
            if status == "failed":
                raise Failed(f"migration failed: {info.get('error-desc')}")
            if enabling and status == "active" and ram.get("dirty-sync-count", 0) >= 1:
                self.vm.phase("pre-copy")
                enabling = False
            if until(status, ram):
                return info
            check(status not in ("completed", "cancelled"), f"migration is {status} too early")
            check(time.monotonic() < deadline, f"migration hangs: {info}")
            if during:
                during(info)
            self.vm.alive()
            time.sleep(self.poll)

    def switch(self, compare=True):
        """The destination takes over."""
        info = self.vm.qmp("query-migrate")
        source, destination = self.vm, self.other
        deadline = time.monotonic() + 60
        while destination.event_time("MIGRATION", "completed") is None:
            check(time.monotonic() < deadline, "the destination does not complete")
            time.sleep(0.002)
        note("completed")
        if compare:
            self.compare(source, destination)
            note("compared")
        stopped = source.event_time("STOP")
        if stopped:
            # Before, it ran already only in post-copy.
            end = destination.event_time("RESUME")
            down = (end or destination.event_time("MIGRATION", "completed")) - stopped
            self.result["downtime_us"] = max(down, self.result.get("downtime_us", 0))
        ram = info.get("ram", {})
        self.result["rounds"] = ram.get("dirty-sync-count")
        if self.logging:
            self.measure_logging(source)
        self.vm, self.other = destination, None
        source.stop()
        destination.phase("after")
        destination.set_priorities()
        if destination.qmp("query-status")["status"] != "running":
            destination.qmp("cont")

    def complete(self, during=None, caps=(), compare=True, **params):
        """One migration, from the start to a guest that is alive and whole."""
        params.setdefault("max_bandwidth", 200 * MIB)
        params.setdefault("downtime_limit", 20)
        self.start(caps=caps, **params)
        self.wait(lambda status, ram: status == "completed", during)
        self.switch(compare)
        self.wait_ticks(self.vm, 20)
        self.measure(self.vm)
        note("alive")
        self.verify()
        note("verified")

    # --- scenarios

    def scenario_completes(self):
        """the migration completes"""
        self.run_for(200)
        self.complete()

    def start_to_cancel(self):
        """Migrates until much is split. Returns the pages before."""
        mapped = self.vm.pages()
        self.start(max_bandwidth=(64 if self.logging else 16) * MIB, downtime_limit=1)
        self.wait(lambda status, ram: status == "active" and
                  ram.get("remaining", RAM) < ram["total"] * 0.6)
        split = self.vm.pages()
        check(split[1] < mapped[1], f"nothing was split: {mapped} -> {split}")
        self.result["pages_4k_2m_1g"] = [mapped, split]
        return mapped

    def faults_and_writes(self):
        control = self.vm.control()
        return self.vm.stats()["pf_taken"], control["pages0"] + control["pages1"]

    def cancel(self, mapped):
        """Cancels, and counts the pages as soon as that is done."""
        self.vm.qmp("migrate_cancel")
        self.wait(lambda status, ram: status == "cancelled")
        recovered = self.vm.pages()
        self.cost = self.faults_and_writes()
        self.result["pages_4k_2m_1g"].append(recovered)
        check(recovered[1] == mapped[1],
              f"huge pages are not back: {mapped} before, {recovered} after cancelling")

    def scenario_cancelled(self):
        """cancelled midway, the guest stays"""
        self.run_for(200)
        mapped = self.start_to_cancel()
        # No write by the guest until the pages have been counted.
        self.vm.command(QUIESCE)
        self.cancel(mapped)
        self.vm.phase("cancel")
        self.vm.command(RUN)
        self.leave()
        self.end_cancelled()

    def scenario_cancel_running(self):
        """cancelled while the guest writes"""
        # Twice where stalls are measured, as few of them happen during recovery.
        for n in range(2 if self.logging else 1):
            if n:
                self.wait_ticks(self.vm, 60)
                self.vm.phase("before")
            self.run_for(200)
            mapped = self.start_to_cancel()
            self.vm.phase("cancel")
            self.cancel(mapped)
            self.leave()
        self.end_cancelled()

    def leave(self):
        """The destination of a migration that was cancelled goes."""
        if self.logging:
            self.measure_logging(self.vm)
        self.other.stop()
        self.other = None

    def end_cancelled(self):
        """Writes do not fault any more."""
        self.wait_ticks(self.vm, 60)
        self.vm.phase("after")
        self.wait_ticks(self.vm, 60)
        faults, writes = (b - a for a, b in zip(self.cost, self.faults_and_writes()))
        self.measure(self.vm)
        # Logging would cost one for each write. A recovered page may cost one once,
        # and so may each of the few small ones. The time that a write takes shows
        # less: it is also that of whoever else wants the processor.
        limit = sum(self.result["pages_4k_2m_1g"][-1])
        self.result["faults"] = {"faults": faults, "writes": writes, "limit": limit}
        check(writes > 4 * limit, f"{writes} writes to {limit} pages show nothing")
        check(faults <= limit, f"{writes} writes took {faults} faults after cancelling, "
                               f"of {limit} pages")
        self.verify()

    def scenario_back_and_forth(self):
        """there and back five times"""
        for _ in range(10):
            self.complete()
        self.result["migrations"] = 10

    def eager(self, value):
        (PARAMETERS / "eager_page_split").write_text(value)

    def scenario_eager_off(self):
        """eager_page_split off"""
        self.eager("N")
        self.run_for(100)
        self.complete()

    def scenario_eager_flipped(self):
        """eager_page_split flipped meanwhile"""
        state = {"n": 0}

        def flip(_):
            state["n"] += 1
            self.eager("NY"[state["n"] % 2])
            if state["n"] == 10:
                self.vm.qmp("migrate-set-parameters", max_bandwidth=64 * MIB)
        self.eager("N")
        self.run_for(100)
        # Slow, until it has been flipped often enough.
        self.complete(flip, max_bandwidth=8 * MIB)
        check(state["n"] >= 10, f"flipped {state['n']} times only")
        self.result["flips"] = state["n"]

    def scenario_dirty_ring(self):
        """dirty ring of 4096 entries"""
        self.shut()
        self.accel = ",dirty-ring-size=4096"
        self.boot()
        self.run_for(100)
        self.complete()

    def scenario_multifd(self):
        """multifd, two channels"""
        self.run_for(100)
        self.complete(caps=("multifd",), both_params={"multifd-channels": 2})

    def scenario_auto_converge(self):
        """auto-converge throttles the guest"""
        self.vm.set(batch=8 * self.batch)
        seen = {"throttle": 0, "bandwidth": 64 * MIB}

        def set_bandwidth(value):
            if seen["bandwidth"] != value:
                self.vm.qmp("migrate-set-parameters", max_bandwidth=value)
                seen["bandwidth"] = value

        def look(info):
            seen["throttle"] = max(seen["throttle"], info.get("cpu-throttle-percentage", 0))
            if seen["throttle"]:
                set_bandwidth(128 * MIB)
            elif info.get("ram", {}).get("dirty-sync-count", 0) >= 2:
                # Slower than the guest writes.
                set_bandwidth(2 * MIB)
        self.run_for(100)
        self.complete(look, caps=("auto-converge",), max_bandwidth=64 * MIB,
                      throttle_trigger_threshold=20)
        self.result["throttle_percent"] = seen["throttle"]
        check(seen["throttle"], "the guest was not throttled, so this shows nothing")

    def scenario_post_copy(self):
        """post-copy"""
        self.run_for(100)
        self.start(caps=("postcopy-ram",), max_bandwidth=32 * MIB, downtime_limit=1)
        # It runs as soon as it can, and asks for the memory that it touches.
        self.other.qmp("cont")
        self.wait(lambda status, ram: status == "active" and
                  ram.get("remaining", RAM) < ram["total"] * 0.7)
        self.vm.qmp("migrate-set-parameters", max_postcopy_bandwidth=16 * MIB)
        self.vm.qmp("migrate-start-postcopy")
        self.wait(lambda status, ram: status in ("postcopy-active", "completed"))
        self.other.set_priorities()
        info = self.wait(lambda status, ram: status == "completed")
        self.result["requests"] = info["ram"]["postcopy-requests"]
        check(self.result["requests"], "the destination asked for nothing, so this shows nothing")
        self.switch(compare=False)
        self.wait_ticks(self.vm, 20)
        self.measure(self.vm)
        self.verify()

    def scenario_notifiers(self):
        """MMU notifier storm on the backend"""
        storm = Storm(self.vm, self.backend)
        try:
            self.run_for(50)
            self.complete(lambda _: storm.once(), max_bandwidth=64 * MIB, compare=True)
        finally:
            storm.end()
        self.result["notifiers"] = storm.counts
        # The others may find nothing to do; this moves a page for certain.
        check(storm.counts.get("soft offline"), f"no page was moved: {storm.counts}")

    def plug_and_unplug(self, n, seconds):
        """Plugs memory and unplugs it. Returns whether writes were logged all the while."""
        vm = self.vm
        size = 16 * MIB
        options = "hugetlb=on,hugetlbsize=2M,share=on" if self.backend == "hugetlb" else ""
        kind = "memory-backend-memfd" if options else "memory-backend-ram"

        def logging():
            return vm.qmp("query-dirty-rate")["status"] == "measuring"
        # Measuring the dirty rate logs all slots, and allows to plug.
        vm.qmp("calc-dirty-rate", calc_time=seconds, mode="dirty-bitmap")
        arguments = {"qom-type": kind, "id": f"extra{n}", "size": size, "prealloc": True}
        if options:
            arguments |= {"hugetlb": True, "hugetlbsize": 2 * MIB, "share": True}
        vm.qmp("object-add", **arguments)
        vm.qmp("device_add", driver="pc-dimm", id=f"dimm{n}", memdev=f"extra{n}")
        device = vm.qmp("query-memory-devices")[0]["data"]
        vm.set(ext_base=device["addr"], ext_size=size)
        self.wait_ticks(vm, 20)
        vm.qmp("device_del", id=f"dimm{n}")
        vm.command(EJECT)
        deadline = time.monotonic() + 60
        while vm.qmp("query-memory-devices"):
            check(time.monotonic() < deadline, "the memory is not unplugged")
            time.sleep(0.01)
        logged = logging()
        vm.qmp("object-del", id=f"extra{n}")
        vm.command(RUN)
        deadline = time.monotonic() + 60 + seconds
        while logging():
            check(time.monotonic() < deadline, "the dirty rate is not measured")
            time.sleep(0.05)
        return logged

    def scenario_hotplug(self):
        """memory plugged and unplugged during logging"""
        seconds = 2
        self.vm.phase("pre-copy")
        for n in range(3):
            # QEMU logs for so many seconds, however slow the machine is.
            while not self.plug_and_unplug(n, seconds):
                seconds *= 2
                check(seconds < 60, "logging ends before the memory is unplugged")
        self.vm.phase("after")
        self.result["plugged"] = 3
        self.complete()

    # --- running them

    def run(self, name):
        function = getattr(self, f"scenario_{name}")
        self.result = {"scenario": name, "title": function.__doc__, "status": "pass"}
        start = time.monotonic()
        subprocess.run(["dmesg", "-C"], check=True)
        try:
            self.eager("Y")
            if self.accel:
                self.shut()
                self.accel = ""
            if not self.vm:
                self.boot()
            self.vm.set(batch=self.batch)
            self.reset_meter()
            function()
        except Skipped as reason:
            self.result |= {"status": "skip", "reason": str(reason)}
        except (Failed, OSError, KeyError, struct.error) as reason:
            self.result |= {"status": "fail", "reason": f"{type(reason).__name__}: {reason}"}
            self.evidence(name)
            # Nothing that follows may suffer from it.
            self.shut()
        log = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout
        with open(self.logdir / f"{self.backend}-dmesg.log", "a", encoding="utf-8") as file:
            file.write(f"== {name}\n{log}")
        if match := SPLAT.search(log):
            line = log[log.rfind("\n", 0, match.start()) + 1:].split("\n", 1)[0]
            self.result |= {"status": "fail", "reason": f"kernel report: {line}"}
        self.result["seconds"] = round(time.monotonic() - start, 1)
        return self.result

    def evidence(self, name):
        for qemu in (self.vm, self.other):
            if not qemu or qemu.process.poll() is not None:
                continue
            try:
                self.result.setdefault("control", {})[qemu.name] = qemu.control()
                text = qemu.hmp("info registers -a") + qemu.hmp("info migrate")
                (self.logdir / f"{self.backend}-{name}-{qemu.name}.state").write_text(text)
            except (Failed, OSError):
                pass


class Logging:
    """When KVM cleared the log, and when it recovered huge pages as logging was switched off,
    in ticks of the host's TSC, by function tracing.

    Clearing ends with a flush, if there was anything to clear; later flushes of the
    thread are of something else. After recovery, the slot's bitmap is freed.
    """
    tracing = Path("/sys/kernel/tracing")
    CLEAR, FLUSH, PROMOTE, FREE, IOCTL = (
        "kvm_vm_ioctl_clear_dirty_log", "kvm_make_all_cpus_request",
        "kvm_mmu_recover_huge_pages", "vfree", "kvm_set_memory_region")

    def start(self):
        names = " ".join((self.CLEAR, self.FLUSH, self.PROMOTE, self.FREE, self.IOCTL))
        for name, text in (("trace_clock", "x86-tsc"), ("set_ftrace_filter", f"{names}\n"),
                           ("trace", ""), ("current_tracer", "function")):
            (self.tracing / name).write_text(text)

    def stop(self):
        """Returns the spans of time of both, [(begin, end)]."""
        text = (self.tracing / "trace").read_text()
        (self.tracing / "current_tracer").write_text("nop")
        (self.tracing / "set_ftrace_filter").write_text("")
        found = {"during_clear": [], "during_promote": []}
        clearing, promoting = {}, {}
        for thread, tsc, function in re.findall(
                r"^\s*\S.*-(\d+)\s+\[\d+\].*?(\d+): (\w+) <-", text, re.M):
            tsc = int(tsc)
            if function == self.CLEAR:
                clearing[thread] = [tsc, 0]
                found["during_clear"].append(clearing[thread])
            elif function == self.IOCTL:
                clearing.pop(thread, None)
            elif function == self.FLUSH and thread in clearing:
                clearing[thread][1] = tsc
            elif function == self.PROMOTE:
                promoting[thread] = tsc
            elif function == self.FREE and thread in promoting:
                found["during_promote"].append([promoting.pop(thread), tsc])
        found["during_clear"] = [span for span in found["during_clear"] if span[1]]
        return found


class Storm:
    """Changes of QEMU's own mappings that hit the guest's memory, from outside."""
    COLD, PAGEOUT, COLLAPSE = 20, 21, 25

    def __init__(self, qemu, backend):
        self.qemu = qemu
        self.backend = backend
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.pidfd = os.pidfd_open(qemu.process.pid)
        self.counts = {}
        self.offset = 0
        self.ksm = Path("/sys/kernel/mm/ksm")
        if backend == "thp":
            (self.ksm / "sleep_millisecs").write_text("1")
            (self.ksm / "pages_to_scan").write_text("1000")
            (self.ksm / "run").write_text("1")

    def count(self, what, n=1):
        self.counts[what] = self.counts.get(what, 0) + n

    def madvise(self, what, advice, offset, size):
        class Iovec(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
        vec = Iovec(self.qemu.hva + offset, size)
        done = self.libc.syscall(440, self.pidfd, ctypes.byref(vec), ctypes.c_size_t(1),
                                 advice, 0)
        if done > 0:
            self.count(what)

    def once(self):
        self.offset = (self.offset + 6 * MIB) % RAM
        if self.backend == "thp":
            self.madvise("madvise(COLD)", self.COLD, self.offset, 2 * MIB)
            self.madvise("madvise(PAGEOUT)", self.PAGEOUT, self.offset, 2 * MIB)
            self.madvise("madvise(COLLAPSE)", self.COLLAPSE, self.offset, 2 * MIB)
        self.idle()
        if self.counts.get("soft offline", 0) < 3 and self.offset >= 4 * MIB:
            self.soft_offline(self.offset)

    def frame(self, offset):
        with open(f"/proc/{self.qemu.process.pid}/pagemap", "rb") as file:
            file.seek((self.qemu.hva + offset) // PAGE * 8)
            return struct.unpack("<Q", file.read(8))[0] & ((1 << 55) - 1)

    def idle(self):
        """Ages 64 pages."""
        frame = self.frame(self.offset)
        if not frame:
            return
        try:
            with open("/sys/kernel/mm/page_idle/bitmap", "r+b", buffering=0) as file:
                file.seek(frame // 64 * 8)
                file.write(b"\xff" * 8)
            self.count("idle pages", 64)
        except OSError:
            pass

    def soft_offline(self, offset):
        """Has the kernel move a page away: unmapped, copied and faulted in anew."""
        frame = self.frame(offset)
        try:
            Path("/sys/devices/system/memory/soft_offline_page").write_text(
                hex(frame * PAGE))
            self.count("soft offline")
        except OSError as error:
            self.count(f"soft offline failed: {error.strerror}")

    def end(self):
        if self.backend == "thp":
            (self.ksm / "run").write_text("2")
        os.close(self.pidfd)


SCENARIOS = [name.removeprefix("scenario_") for name in vars(Test)
             if name.startswith("scenario_")]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("-o", dest="only", action="append", choices=SCENARIOS)
    parser.add_argument("-s", dest="scale", type=int, default=1)
    parser.add_argument("backend", choices=("hugetlb", "thp"))
    parser.add_argument("rom")
    parser.add_argument("logdir")
    args = parser.parse_args()
    Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1")
    engine = PARAMETERS / "mmu_engine"
    engine = engine.read_text().strip() if engine.exists() else "c"
    build = Path("/sys/module/kvm/notes/.note.gnu.build-id").read_bytes().hex()
    test = Test(args)
    results = []
    for name in args.only or SCENARIOS:
        result = test.run(name)
        results.append(result)
        print(f"{engine:4} {args.backend:7} {name:16} {result['status']:4} "
              f"{result.get('pages', 0):7} pages {result['seconds']:6.1f} s "
              f"{result.get('reason', '')}", flush=True)
        (test.logdir / f"{args.backend}.json").write_text(
            json.dumps({"engine": engine, "build": build, "backend": args.backend,
                        "results": results}))
    test.shut()
    shutil.rmtree(test.tmp)
    sys.exit(any(result["status"] == "fail" for result in results))


if __name__ == "__main__":
    main()
