# SPDX-License-Identifier: GPL-2.0
"""A migration, as tools/kvm/mmu_lock_stat sees it."""
import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from common import PARAMETERS, Skipped, check

TOOL = Path(__file__).resolve().parents[2] / "tools/kvm/mmu_lock_stat/mmu_lock_stat"
sys.path.insert(0, str(TOOL.parent))
# These lie beside the tool.
from sources import CAUSES, Debugfs
from table import grown_lines

KEY = PARAMETERS / "mmu_lock_stats"


def start(*args):
    """Starts the tool."""
    return subprocess.Popen([TOOL, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def end(tool):
    """Waits for the tool. Returns what it says."""
    out = tool.communicate(timeout=120)[0]
    check(tool.returncode == 0, f"mmu_lock_stat failed: {out}")
    return out


class Watch:
    """The tool, on one QEMU."""

    def __init__(self, qemu, results):
        if not KEY.exists():
            raise Skipped("this MMU has no statistics of mmu_lock")
        KEY.write_text("Y")
        self.qemu = qemu
        self.vm = str(qemu.process.pid)
        self.source = Debugfs(self.vm)
        self.results = results
        self.recorders = []

    def record(self, interval):
        """Records from now on, by debugfs and, less often, by QMP."""
        self.recorders = [
            start(self.vm, "--qmp", self.qemu.monitors[0], "-i", interval, "record",
                  self.results / "record.svg", "-t", "A live migration, seen from its source"),
            start("--qmp", self.qemu.monitors[1], "-i", 10 * interval, "record",
                  self.results / "record-qmp.svg")]

    def picture(self, seconds, name):
        """The tool draws the table of these seconds."""
        end(start(self.vm, "-i", seconds, "table", self.results / f"{name}.svg"))

    @contextlib.contextmanager
    def table(self, name):
        """Keeps the table of what happens within, as text. Has both samples when it has ended."""
        samples = [self.source.read()]
        begin = time.monotonic()
        yield samples
        samples.append(self.source.read())
        lines = grown_lines(samples[1], samples[0], time.monotonic() - begin)
        (self.results / f"{name}.txt").write_text("\n".join(lines) + "\n")

    def sample(self):
        """All statistics, by debugfs."""
        return json.loads(end(start(self.vm, "json")))

    def compare(self):
        """QMP says what debugfs says: what has grown meanwhile is in between."""
        first = self.sample()
        by_qmp = json.loads(end(start("--qmp", self.qemu.monitors[2], "json")))
        last = self.sample()
        count = 0
        check(by_qmp.keys() == last.keys(), f"QMP knows of {sorted(by_qmp)}")
        for who, rows in last.items():
            check(by_qmp[who].keys() == rows.keys(),
                  f"QMP and debugfs differ in {by_qmp[who].keys() ^ rows.keys()}")
            for name, fields in rows.items():
                for field, value in fields.items():
                    between = [first[who][name][field], by_qmp[who][name][field], value]
                    columns = zip(*between) if field == "hist" else [between]
                    check(all(a <= b <= c for a, b, c in columns),
                          f"{who} {name} {field}: {between}, debugfs, QMP and debugfs")
                    count += 1
        text = end(start(self.vm, "prometheus"))
        (self.results / "prometheus.txt").write_text(text)
        label = r'\w+="[^"]*"'
        line = re.compile(rf"kvm_mmu_\w+(\{{{label}(,{label})*\}})? [0-9.e+-]+$|"
                          r"# TYPE \w+ \w+$|# HELP \w+ .+$")
        for text_line in text.splitlines():
            check(line.match(text_line), f"not Prometheus' format: {text_line}")
        for vcpu in ("0", "1"):
            found = re.search(rf'^kvm_mmu_fault_logged_seconds_count{{vcpu="{vcpu}"}} (\d+)$', text,
                              re.M)
            check(found and int(found[1]) > 0, f"Prometheus' text has no faults of vCPU {vcpu}")
        return count

    def recorded(self):
        """The VM is gone, and the recorders have drawn. Returns how many samples they took."""
        seen = []
        for recorder, name in zip(self.recorders, ("record.svg", "record-qmp.svg")):
            out = end(recorder)
            picture = (self.results / name).read_text()
            # Its holder and its faults; phases are named where there is room.
            for what in (">clear<", ">logged "):
                check(what in picture, f"{name} does not show {what}")
            seen.append(int(re.search(r"(\d+) samples", out)[1]))
        return seen

    def close(self):
        """The scenario has ended, or failed."""
        KEY.write_text("N")
        for recorder in self.recorders:
            if recorder.poll() is None:
                recorder.kill()
            recorder.wait()


def lost(after, before, vcpu):
    """What one vCPU spent in faults, in ns, and how many there were."""
    return [sum(after[vcpu][f"fault_{cause}"][field] - before[vcpu][f"fault_{cause}"][field]
                for cause in CAUSES) for field in ("ns", "count")]
