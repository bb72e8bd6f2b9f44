# SPDX-License-Identifier: GPL-2.0
"""Where the statistics of a VM's mmu_lock come from: debugfs, or QEMU's monitor.

A sample is a dictionary: what is measured ("vm", "vcpu0"...) -> statistic -> field -> value. The
fields are ns, max_ns, count, and hist, a list of how many times took 2^(n-1) to 2^n - 1 ns.
"""
import json
import socket
import sys
from pathlib import Path

HOLDERS = ["enable", "clear", "get", "disable", "rmap", "notifier", "zap", "nx_recovery", "fault"]
CAUSES = ["missing", "logged", "split", "spurious", "nx", "invalidation", "other"]
BUCKETS = 32


def die(message):
    """Ends the program."""
    sys.exit(f"error: mmu_lock_stat: {message}")


class Gone(Exception):
    """The VM has ended."""


def parse_file(text):
    """A sample of what the file mmu_lock_stats in debugfs says."""
    sample = {}
    for line in text.splitlines()[1:]:
        who, name, *fields = line.split()
        row = sample.setdefault(who, {})[name] = {}
        for field in fields:
            key, _, value = field.partition("=")
            if key == "hist":
                row["hist"] = [0] * BUCKETS
                for bucket in filter(None, value.split(",")):
                    end, count = map(int, bucket.split(":"))
                    row["hist"][end.bit_length() - 1] = count
            else:
                row[key] = int(value)
    return sample


def misfit(hist, ns):
    """How far the sum of all times is from what it can be by their histogram."""
    least = sum(count << n >> 1 for n, count in enumerate(hist))
    most = float("inf") if hist[-1] else sum(count << n for n, count in enumerate(hist))
    return max(least - ns, ns - most, 0)


def in_order(hist, ns):
    """QEMU (10.0) lists a histogram from its end. One way round its times add up to their sum."""
    return hist if misfit(hist, ns) < misfit(hist[::-1], ns) else hist[::-1]


def parse_stats(stats):
    """The same of the statistics of one VM or vCPU in QEMU, by their names in KVM."""
    rows = {}
    for name, value in stats.items():
        for suffix, field in (("_max_ns", "max_ns"), ("_ns", "ns"), ("_hist", "hist")):
            if name.endswith(suffix):
                row = rows.setdefault(name[len("mmu_"):-len(suffix)], {})
                row[field] = value
                if field == "hist":
                    row["count"] = sum(value)
                break
        else:
            rows[name[len("mmu_"):]] = {"count": value}
    for row in rows.values():
        if "hist" in row:
            row["hist"] = in_order(row["hist"], row["ns"])
    return rows


class Debugfs:
    """The statistics of a VM in debugfs: of a process, PID-FD, or a file like that in debugfs."""

    def __init__(self, vm):
        if "/" in vm:
            self.path = Path(vm)
            return
        base = Path("/sys/kernel/debug/kvm")
        found = sorted(base.glob(f"{vm}/mmu_lock_stats" if "-" in vm else
                                 f"{vm}-*/mmu_lock_stats"))
        if not found:
            die(f"no {base}/{vm}*/mmu_lock_stats; is that the process of a VM, is this root, and "
                "has KVM these statistics?")
        self.path = found[0]

    def read(self):
        """A sample."""
        try:
            return parse_file(self.path.read_text(encoding="ascii"))
        except OSError as why:
            raise Gone(f"cannot read {self.path} ({why.strerror})") from why


class Qmp:
    """What QEMU says of its VM, by a monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(path)
        except OSError as why:
            die(f"cannot connect to {path} ({why.strerror})")
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        """What a command returns."""
        try:
            self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            for line in self.lines:
                answer = json.loads(line)
                if "error" in answer:
                    die(f"QEMU: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as why:
            raise Gone(f"QEMU's monitor: {why.strerror}") from why
        raise Gone("QEMU has closed its monitor")

    def read(self):
        """A sample."""
        # The statistics of vCPUs come in no order to rely on: QEMU (10.0) begins with the last.
        names = {cpu["qom-path"]: f"vcpu{cpu['cpu-index']}" for cpu in self.ask("query-cpus-fast")}
        sample = {}
        for target in ("vm", "vcpu"):
            for result in self.ask("query-stats", target=target):
                if result["provider"] != "kvm":
                    continue
                values = {s["name"]: s["value"] for s in result["stats"] if s["name"].startswith((
                    "mmu_hold_", "mmu_write_wait", "mmu_lock_wait", "mmu_wait_for_", "mmu_fault_",
                    "mmu_invalidate_retries")) and s["name"] != "mmu_fault_splits"}
                who = "vm" if target == "vm" else names[result["qom-path"]]
                sample[who] = parse_stats(values)
        if not any(sample.values()):
            die("KVM has no statistics of mmu_lock")
        return sample

    def phase(self):
        """Of a migration, or "" if there has been none."""
        info = self.ask("query-migrate")
        status = info.get("status", "none")
        if status == "active":
            return f"round {info.get('ram', {}).get('dirty-sync-count', 0)}"
        return "" if status == "none" else status


def get(sample, who, name, field="ns"):
    """A value, 0 if it is not there."""
    return sample.get(who, {}).get(name, {}).get(field, 0)


def vcpus(sample):
    """The names of the vCPUs, in order."""
    return sorted((who for who in sample if who != "vm"), key=lambda who: int(who[4:]))


def grown(after, before, who, name, field="ns"):
    """By how much a value has grown."""
    return get(after, who, name, field) - get(before, who, name, field)


def total(after, before, name, field="ns"):
    """By how much a value of the vCPUs has grown, of all together."""
    return sum(grown(after, before, who, name, field) for who in vcpus(after))


def hist_grown(after, before, who, name):
    """What a histogram got between two samples."""
    return [a - b for a, b in zip(get(after, who, name, "hist") or [0] * BUCKETS,
                                  get(before, who, name, "hist") or [0] * BUCKETS)]


def longest(after, before, whose, name):
    """The longest time between two samples, of several, in ns: (it, whether that is exact)."""
    bound, exact = 0, True
    for who in whose:
        used = [n for n, count in enumerate(hist_grown(after, before, who, name)) if count]
        most = get(after, who, name, "max_ns")
        if not used:
            continue
        is_exact = most > get(before, who, name, "max_ns")
        value = most if is_exact else min(2 ** used[-1], most)
        if value > bound:
            bound, exact = value, is_exact
    return bound, exact


def duration(ns):
    """A time for people."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"
