# SPDX-License-Identifier: GPL-2.0
"""The scenarios, and running them."""
import os
import struct
import subprocess
import time

from common import EJECT, MIB, PAGE, PARAMETERS, QUIESCE, RAM, RUN, SPLAT, Failed, Skipped, check
from migration import Migration
from storm import Storm


class Scenarios(Migration):
    """All scenarios. The docstring of each is its title in the reports."""

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
        info = self.wait(lambda status, ram: status == "cancelled")
        recovered = self.vm.pages()
        self.cost = self.faults_and_writes()
        self.result["pages_4k_2m_1g"].append(recovered)
        check(recovered[1] == mapped[1],
              f"huge pages are not back: {mapped} before, {recovered} after cancelling")
        self.look_at_recovery(info)

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

    def scenario_split_cancelled(self):
        """cancelled while huge pages are split ahead"""
        if not self.threads or self.engine == "c":
            raise Skipped("needs a QEMU and an MMU that split ahead")
        # Far more than the threads get before they are held.
        self.shut()
        self.untouched_gib = 32
        self.held = self.tmp / "held"
        self.held.touch()
        self.boot()
        self.run_for(100)
        mapped = self.vm.pages()
        self.start()
        deadline = time.monotonic() + 60
        while True:
            info = self.vm.qmp("query-migrate")
            if info.get("split-ahead", {}).get("split") and self.vm.pages()[1] < mapped[1]:
                break
            check(time.monotonic() < deadline, f"nothing is split: {info}")
            time.sleep(0.005)
        check(info["status"] == "setup", f"logging begins before all is split: {info}")
        self.vm.qmp("migrate_cancel")
        self.held.unlink()
        done = self.wait(lambda status, ram: status == "cancelled")
        progress, pages = done["split-ahead"], self.vm.pages()
        check(progress["split"] < progress["total"], f"it did not end early: {progress}")
        check(pages[1] == mapped[1], f"huge pages are not back: {mapped} before, {pages} after it")
        self.look_at_recovery(done)
        self.leave()
        self.wait_ticks(self.vm, 20)
        self.verify()

    def leave(self):
        """The destination of a migration that was cancelled goes."""
        if self.logging:
            self.measure_logging(self.vm)
        self.check_log(self.vm)
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
        """eager_page_split toggled during the migration"""
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

    def scenario_split_ahead(self):
        """split ahead and recovered, in several ways"""
        if not (PARAMETERS / "mmu_engine").exists():
            raise Skipped("the C MMU has no KVM_SPLIT_HUGE_PAGES")
        self.shut()
        self.ahead = True
        self.boot()
        # Many samples of either phase, where they are exact. Tables are freed while it rests.
        exact = self.scale == 1
        apart = ("split ahead", "recovered", "after")
        ways = (
            ("each in one go", (150 if exact else 5, 0, 0, 12000, apart)),
            ("2 MiB a millisecond and thread", (5 if exact else 1, 2 * MIB, 1000, 12000, apart)),
            ("over and over", (500 if exact else 20, 0, 0, 0, ("over and over",) * 3)),
        )
        self.result["ways"] = {}
        for title, (times, budget, pause, rest, phases) in ways:
            self.reset_meter()
            self.run_for(500 if exact else 200)
            mapped, before = self.vm.pages(), self.vm.stats()
            self.vm.split_and_recover(2, times, budget, pause, rest, phases)
            after = self.vm.stats()
            self.measure(self.vm)
            self.result["ways"][title] = self.result.pop("phases")
            self.vm.phase("before")
            splits, recovered = (after[name] - before[name]
                                 for name in ("mmu_eager_splits", "mmu_promotions"))
            check(splits and splits == recovered,
                  f"{title}: {splits} pages were split, {recovered} recovered")
            check(self.vm.pages() == mapped, f"{mapped} before, {self.vm.pages()} after")
        self.verify()

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

    def scenario_fast_writer(self):
        """auto-converge against a guest that writes as fast as it can"""
        if os.cpu_count() < 2:
            raise Skipped("the guest has a processor for itself, and QEMU needs another")
        # In a tick: more than it can write by faults, and not half of what it can without.
        self.vm.set(batch=2048)
        seen = []

        def look(info):
            if info["status"] == "active":
                seen.append((info.get("cpu-throttle-percentage", 0), time.monotonic(),
                             self.vm.control()["pages0"], info["ram"]["transferred"]))
        self.run_for(10 * self.scale)
        # It has to be throttled as much as that in any case, and a step takes QEMU seconds.
        self.complete(look, caps=("auto-converge",), max_bandwidth=200 * MIB // self.scale,
                      downtime_limit=10 * self.scale, cpu_throttle_initial=90,
                      cpu_throttle_increment=5)
        # What it wrote, and QEMU sent, while it was throttled to each degree.
        self.result["rates"] = []
        for percent in sorted({one[0] for one in seen}):
            there = [one for one in seen if one[0] == percent]
            seconds, pages, sent = (b - a for a, b in zip(there[0][1:], there[-1][1:]))
            if seconds:
                self.result["rates"].append({
                    "throttle": percent, "seconds": seconds,
                    "written_mb_s": pages * PAGE / seconds / 1e6, "sent_mb_s": sent / seconds / 1e6})
        self.result["throttle_percent"] = max(one[0] for one in seen)
        check(self.result["throttle_percent"], "the guest was not throttled, so this shows nothing")

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

    def scenario_soak(self):
        """there and back for a while, every fourth cancelled"""
        end = time.monotonic() + self.seconds
        done = {"migrations": 0, "cancelled": 0}
        if self.scale == 1:
            self.vm.set(batch=4 * self.batch)
        while time.monotonic() < end or not all(done.values()):
            if sum(done.values()) % 4 == 3 or time.monotonic() >= end:
                self.run_for(50)
                mapped = self.start_to_cancel()
                self.vm.command(QUIESCE)
                self.cancel(mapped)
                self.vm.phase("cancel")
                self.vm.command(RUN)
                self.leave()
                self.wait_ticks(self.vm, 20)
                self.vm.phase("after")
                self.verify()
                done["cancelled"] += 1
            else:
                self.complete()
                done["migrations"] += 1
        self.result |= done

    # --- running them

    def run(self, name):
        function = getattr(self, f"scenario_{name}")
        self.result = {"scenario": name, "title": function.__doc__, "status": "pass"}
        start = time.monotonic()
        subprocess.run(["dmesg", "-C"], check=True)
        try:
            self.eager("Y")
            if self.accel or self.options or self.ahead or self.untouched_gib or self.held:
                self.shut()
                self.accel = ""
                self.options = []
                self.ahead = False
                self.untouched_gib = 0
                self.held = None
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
