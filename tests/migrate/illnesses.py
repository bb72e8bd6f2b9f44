# SPDX-License-Identifier: GPL-2.0
"""What ails a guest while it is migrated, one scenario each, and what mmu_lock_stat shows of it.

Each leaves the table of some time in NAME.txt. rust-mmu.rst has them ("Is my migration healthy?").
"""
import contextlib
import os
import signal
import time
from pathlib import Path

from common import MIB, PARAMETERS, PHASES, Skipped, check, to_us
from scenarios import Scenarios
from storm import Storm
from watch import Watch, lost

# Of all rounds but the last, so that there is something to look at.
SLOW = {"max_bandwidth": 32 * MIB, "downtime_limit": 0}
FAST = {"max_bandwidth": 200 * MIB, "downtime_limit": 20}
CGROUP = Path("/sys/fs/cgroup/migrate")


def hog(cpu):
    """Takes a processor again and again, from everybody else. Returns whom to end."""
    pid = os.fork()
    if pid:
        return pid
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
    while True:
        end = time.monotonic() + 0.0001
        while time.monotonic() < end:
            pass
        time.sleep(0.0001)


class Illnesses(Scenarios):
    """A scenario for each. The docstring of each is its title in the reports."""

    # What a fault costs and KVM's statistics do not see, in ns: leaving the guest, entering it again.
    exit_ns = None

    @contextlib.contextmanager
    def watching(self):
        """The statistics are on, and nothing else is traced: that costs time in faults."""
        if self.scale != 1:
            raise Skipped("only where one instruction is one nanosecond")
        self.logging = None
        watch = Watch(self.vm, self.logdir)
        try:
            yield watch
        finally:
            watch.close()

    def finish(self, during=None):
        """The migration goes on as fast as it can, until the guest is alive at the destination."""
        self.vm.set(batch=self.batch)
        self.vm.qmp("migrate-set-parameters", **FAST)
        self.wait(lambda status, ram: status == "completed", during)
        self.switch()
        self.wait_ticks(self.vm, 20)
        self.verify()

    def second_round(self, **params):
        """Migrates until all has been sent once."""
        self.start(**(SLOW | params))
        self.wait(lambda status, ram: status == "active" and ram.get("dirty-sync-count", 0) >= 2)

    def writing(self, *phases):
        """Pages that the first processor has written in some phases, and what they took, in ns."""
        cost = self.vm.control()["cost"]
        pages, spent = map(sum, zip(*(cost[PHASES.index(phase)] for phase in phases)))
        return pages, to_us(spent) * 1000

    def compare_in_log(self, watch, name):
        """Keeps the table of a fifth of a second of writes to a log, and compares the meters in it."""
        with watch.table(name) as samples:
            self.vm.phase("cancel")
            time.sleep(0.2)
            self.vm.phase("pre-copy")
        # The last tick in which it was "cancel" has ended.
        self.wait_ticks(self.vm, 2)
        return self.compare_meters(samples, "cancel")

    def compare_meters(self, samples, *phases):
        """What the first processor's faults took, by the statistics, and by its own clock."""
        (base_pages, base), (pages, spent) = self.writing("before"), self.writing(*phases)
        ns, count = lost(samples[1], samples[0], "vcpu0")
        found = {"faults": count, "faults_ns": ns, "pages": pages,
                 "guest_lost_ns": spent - pages * base / base_pages}
        self.result["agreement"] = found
        if self.exit_ns:
            found["with_exits_ns"] = ns + count * self.exit_ns
        return found

    def scenario_enable(self):
        """enabling is slow: a dirty ring, and a memory cgroup that has too little"""
        self.shut()
        self.accel = ",dirty-ring-size=4096"
        self.boot()
        with self.watching() as watch:
            (CGROUP.parent / "cgroup.subtree_control").write_text("+memory")
            CGROUP.mkdir()
            try:
                (CGROUP / "cgroup.procs").write_text(watch.vm)
                (CGROUP / "memory.high").write_text("0")
                with watch.table("enable"):
                    self.start(**SLOW)
                    self.wait(lambda status, ram: ram.get("dirty-sync-count", 0) >= 1)
            finally:
                (CGROUP.parent / "cgroup.procs").write_text(watch.vm)
                CGROUP.rmdir()
            self.result["setup_ms"] = self.vm.qmp("query-migrate")["setup-time"]
            self.finish()

    def scenario_clear(self):
        """CLEAR storm: 256 KiB at a time, in rounds as fast as they can be"""
        self.shut()
        self.options = ["-global", "migration.x-clear-bitmap-shift=6"]
        self.boot()
        with self.watching() as watch:
            self.vm.set(batch=64 * self.batch)
            self.reset_meter()
            self.run_for(100)
            self.second_round(max_bandwidth=10000 * MIB)
            found = self.compare_in_log(watch, "clear")
            seen, known = found.get("with_exits_ns"), found["guest_lost_ns"]
            check(seen is None or abs(seen - known) < 0.1 * known,
                  f"the statistics and the guest's clock differ by more than 10 %: {found}")
            self.finish()

    def scenario_nx(self):
        """NX recovery, while the guest runs code wherever it writes"""
        # After a migration, what the guest executes may not be huge any more.
        self.shut()
        self.boot()
        names = ("nx_huge_pages", "nx_huge_pages_recovery_ratio", "nx_huge_pages_recovery_period_ms")
        before = {name: (PARAMETERS / name).read_text().strip() for name in names}
        with self.watching() as watch:
            try:
                for name, value in zip(names, ("Y", "1", "20")):
                    (PARAMETERS / name).write_text(value)
                self.vm.set(execute=1)
                self.run_for(200)
                with watch.table("nx"):
                    time.sleep(0.2)
                rows = (self.logdir / "nx.txt").read_text().splitlines()
                check(any(row.split()[:1] == ["nx"] for row in rows), "nothing executed was split")
            finally:
                self.vm.set(execute=0)
                for name, value in before.items():
                    (PARAMETERS / name).write_text(value)
            self.complete()

    def scenario_writes(self):
        """fault storm of write protection: the guest writes a lot"""
        with self.watching() as watch:
            self.vm.set(batch=64 * self.batch)
            self.reset_meter()
            self.run_for(100)
            self.second_round()
            found = self.compare_in_log(watch, "writes")
            self.exit_ns = (found["guest_lost_ns"] - found["faults_ns"]) / found["faults"]
            self.result["exit_ns"] = self.exit_ns
            self.finish()

    def run_delay(self):
        """How long the first vCPU could have run, and did not, in ns."""
        thread = self.vm.qmp("query-cpus-fast")[0]["thread-id"]
        return int(Path(f"/proc/{thread}/schedstat").read_text().split()[1])

    def scenario_cpu(self):
        """lost CPU: somebody else takes the processors, for 0.1 ms at a time"""
        with self.watching() as watch:
            self.vm.set(batch=64 * self.batch)
            self.run_for(100)
            self.second_round()
            hogs = [hog(cpu) for cpu in sorted(os.sched_getaffinity(0))]
            try:
                delay, begin = self.run_delay(), time.monotonic()
                with watch.table("cpu"):
                    time.sleep(0.2)
                share = (self.run_delay() - delay) / 1e7 / (time.monotonic() - begin)
            finally:
                for pid in hogs:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            check(share > 1, f"it was kept from running for {share} % of the time: that shows nothing")
            with (self.logdir / "cpu.txt").open("a") as file:
                file.write(f"\n(schedstat: vcpu0 could have run, and did not, {share:.0f}% of the time)\n")
            self.finish()

    def scenario_storm(self):
        """notifier storm from the second round on, recorded"""
        seen = {"looked": False}
        self.shut()
        # A vCPU with a real-time priority that retries keeps the notifier that it waits for from running.
        self.shared = True
        self.boot()
        with self.watching() as watch:
            # The guest's notes are left alone: their faults are in no meter of its own.
            storm = Storm(self.vm, self.backend, 4 * MIB)

            def during(info):
                if info.get("ram", {}).get("dirty-sync-count", 0) < 2:
                    return
                storm.once()
                if not seen["looked"]:
                    seen["looked"] = True
                    with watch.table("storm"):
                        watch.picture(0.2, "table")
                    self.vm.qmp("migrate-set-parameters", **FAST)
            try:
                self.run_for(100)
                watch.record(0.03)
                self.run_for(100)
                samples = [watch.sample()]
                self.start(**SLOW)
                self.wait(lambda status, ram: status == "completed", during)
                samples.append(watch.sample())
                self.compare_meters(samples, "enable", "pre-copy")
                self.result["compared_statistics"] = watch.compare()
                self.switch()
                self.result["samples_recorded"] = watch.recorded()
                self.wait_ticks(self.vm, 20)
                self.verify()
            finally:
                storm.end()
                self.shared = False
        check(seen["looked"], "the migration was over before there was a second round")
        self.result["notifiers"] = storm.counts
