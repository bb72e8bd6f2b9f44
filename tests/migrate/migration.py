# SPDX-License-Identifier: GPL-2.0
"""Starting, following and checking migrations of a guest, of which the scenarios are made."""
import struct
import tempfile
import time
from pathlib import Path

from common import (
    CAPABILITIES, CHECK, CONTROL, COST, HISTOGRAMS, MAGIC, MIB, NR_BUCKETS, NR_FIELDS,
    NR_PHASES, NR_SAMPLES, NR_WINDOWS, PAGE, PARAMETERS, PHASES, QUIESCE, RAM, RUN, SAMPLES,
    SAMPLE_SHIFT, SUB_BITS, TIMELINE, Failed, check, mmu_engine, note, ticks, to_us)
from qemu import Qemu
from tracing import Tracing


class Migration:
    """Migrations on one backend. The guest wanders from QEMU to QEMU."""

    def __init__(self, args):
        self.backend = args.backend
        self.rom = args.rom
        # Where time is real, an emulated processor manages a few ticks only.
        self.scale = args.scale
        self.shared = args.shared
        self.seconds = args.seconds
        self.engine = mmu_engine()
        # In how many QEMU splits huge pages ahead; 0 for a QEMU that cannot.
        self.threads = args.threads
        self.batch = 4 if self.scale == 1 else 8
        self.meter_us = 100 if self.scale == 1 else 500 * self.scale
        self.poll = 0.002 if self.scale == 1 else 0.03
        self.logging = Tracing() if self.scale == 1 and not self.shared else None
        self.logdir = Path(args.logdir)
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.tmp = Path(tempfile.mkdtemp(prefix="migrate-"))
        self.accel = ""
        # More for QEMU's command line.
        self.options = []
        # Memory that the guest does not know of, and that nothing is mapped in.
        self.untouched_gib = 0
        # QEMU is to split ahead.
        self.ahead = False
        # As long as there is this file, QEMU's own threads that split ahead are held in the middle.
        self.held = None
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
            longest = max((to_us(end - start) for start, end in times), default=0)
            note(f"{len(times)} times {what}, {longest:.1f} us at most, "
                 f"{len(late)} samples of {len(samples)} in them")
            if late:
                seen |= {"samples": len(late), "p50_us": late[len(late) // 2],
                         "p99_us": late[len(late) * 99 // 100], "max_us": late[-1]}

    def check_log(self, qemu):
        """What the source's log has cost, and that it was kept as kvm.dirty_log says."""
        mode, stats = PARAMETERS / "dirty_log", qemu.stats()
        self.result["stats"] = {name: stats[name] for name in (
            "pf_taken", "mmu_dirty_tables", "mmu_dirty_clean_tables", "mmu_dirty_pages",
            "mmu_dirty_carried") if name in stats}
        # A dirty ring is filled by faults.
        by_bits = mode.exists() and mode.read_text().strip() == "dirty_bits" and not self.accel
        check(not by_bits or stats["mmu_dirty_tables"], "the guest was not logged by D bits")

    # --- migrating

    def run_for(self, ms):
        """Lets the guest run. It does not, while the machine is busy otherwise."""
        time.sleep(ms / 1000)
        self.wait_ticks(self.vm, 5)

    def ask_to_split(self):
        """Has the source split ahead. It refuses where KVM cannot."""
        try:
            self.vm.qmp("migrate-set-parameters", split_ahead_threads=self.threads)
        except Failed as reason:
            check(self.engine == "c" and "KVM_CAP_SPLIT_HUGE_PAGES" in str(reason), str(reason))
            return
        check(self.engine == "rust", "QEMU splits ahead on the MMU in C")
        self.result["split_ahead"] = {"before": self.vm.pages()}

    def look_at_split(self, info):
        """Logging has begun: all had been split before."""
        if "split_ahead" not in self.result:
            return
        pages, progress = self.vm.pages(), info.get("split-ahead", {})
        check(progress.get("threads") == self.threads and progress["total"] >= RAM and
              progress["split"] == progress["total"] and not progress["recovered"],
              f"not all is split when logging begins: {progress}")
        check(not pages[1] and not pages[2], f"there are huge pages left: {pages}")
        self.result["split_ahead"] |= progress | {"setup_ms": info["setup-time"],
                                                  "logging": pages}

    def look_at_recovery(self, info):
        """The migration is cancelled, and the status says so."""
        if "split_ahead" not in self.result:
            return
        progress = info.get("split-ahead", {})
        check(progress.get("recovered") == progress["total"],
              f"not all is recovered when the migration is cancelled: {progress}")
        self.result["split_ahead"] |= progress | {"cancelled": self.vm.pages()}

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
        if self.threads:
            self.ask_to_split()
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
                self.look_at_split(info)
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
        self.result["migration_ms"] = info.get("total-time")
        if self.logging:
            self.measure_logging(source)
        self.check_log(source)
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
