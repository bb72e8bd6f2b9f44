#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Print what dirty_log_perf_test measured on the C MMU, on the Rust MMU, and on the latter
with kvm.dirty_log=dirty_bits.

usage: report.py LOGDIR TITLE [JSON]
       report.py --markdown JSON...

LOGDIR holds SIDE/CONFIG.N.log, SIDE being c, rust or rust-bits, and next to them the
identity of the module that ran, as tests/dirty_log_perf/guest.sh leaves them. Of several
runs the median of each time is shown, and no ratio to C ("~") where the runs of both sides
overlap: the next ones may be the other way round. There is no table unless the sides
demonstrably ran the two modules, and logged as they should. From JSON that was kept it
makes the tables of results/run.md.
"""
import json
import re
import statistics
import sys
from pathlib import Path

CONFIGS = {
    "legacy": "-g (legacy mode: enabling splits and protects)",
    "default": "default (initially-all-set: clearing splits and protects)",
    "legacy-noeager": "-g, eager_page_split=N",
    "default-noeager": "default, eager_page_split=N",
}
SIDES = {"c": "C", "rust": "Rust", "rust-bits": "D bits"}
TIME = r"(\d+)\.(\d{9})s"
ROWS = [
    (re.compile(rf"^Populate memory time: {TIME}$"), "populate"),
    (re.compile(rf"^Enabling dirty logging time: {TIME}$"), "enable"),
    (re.compile(rf"^Iteration (?P<n>\d+) dirty memory time: {TIME}$"), "pass"),
    (re.compile(rf"^Iteration (?P<n>\d+) get dirty log time: {TIME}$"), "get"),
    (re.compile(rf"^Iteration (?P<n>\d+) clear dirty log time: {TIME}$"), "clear"),
    (re.compile(rf"^Disabling dirty logging time: {TIME}$"), "disable"),
]
# Where tests/dirty_log_perf/exclusive.c timed the vCPU, that is exact, and the time at
# which the test's main thread noticed is not: run 0 populates, n is pass n.
RUN = re.compile(rf"^KVM_RUN (\d+) time: {TIME}$")


def die(message):
    sys.exit(f"error: {message}")


def parse_log(path):
    """The times in one log, in ns, by row, in the order of the test."""
    times, runs = {}, {}
    for line in path.read_text(errors="replace").splitlines():
        for pattern, row in ROWS:
            match = pattern.match(line.strip())
            if match:
                name = f"{row} {match['n']}" if "n" in pattern.groupindex else row
                sec, nsec = match.groups()[-2:]
                times[name] = int(sec) * 10**9 + int(nsec)
        if match := RUN.match(line.strip()):
            name = f"pass {match[1]}" if int(match[1]) else "populate"
            runs[name] = int(match[2]) * 10**9 + int(match[3])
    if "disable" not in times:
        die(f"dirty_log_perf_test did not finish, see {path}")
    if runs and not runs.keys() <= times.keys():
        die(f"more vCPU runs than passes, see {path}")
    return times | runs


def runs_of(logs):
    """The times of each row in several runs."""
    runs = [parse_log(log) for log in logs]
    if any(run.keys() != runs[0].keys() for run in runs):
        die(f"the runs did not go through the same steps, see {logs[0].parent}")
    return {row: [run[row] for run in runs] for row in runs[0]}


def overlap(one, other):
    return len(one) > 1 and max(min(one), min(other)) <= min(max(one), max(other))


def ratio(result, side, row, digits):
    """To C."""
    c, other = (result["ns"][name][row] for name in ("c", side))
    if row in result["overlap"][side]:
        return "~"
    return f"{other / c:.{digits}f}" if c else "-"


def parse_identity(path):
    if not path.exists():
        die(f"{path} is missing: nothing says which module ran; run 'make run' again")
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def check_identities(identities, config):
    c = identities["c"]
    if c["engine"] != "c":
        die(f"{config}: the C side ran a module whose mmu_engine is '{c['engine']}'")
    want = "N" if config.endswith("-noeager") else "Y"
    if c["eager_page_split"] != want:
        die(f"{config}: eager_page_split is {c['eager_page_split']}, not {want}")
    for side, dirty_log in (("rust", "auto"), ("rust-bits", "dirty_bits")):
        rust = identities[side]
        if rust["engine"] != "rust":
            die(f"{config}: the Rust side ran a module that does not say it is Rust "
                f"(mmu_engine is '{rust['engine']}'); build it with 'make modules'")
        if c["build"] == rust["build"]:
            die(f"{config}: both sides ran the same module (build {c['build']})")
        if rust["dirty_log"] != dirty_log:
            die(f"{config}: kvm.dirty_log is {rust['dirty_log']}, not {dirty_log}")
        for key in ("eager_page_split", "tdp_mmu"):
            if c[key] != rust[key]:
                die(f"{config}: {key} is {c[key]} with C and {rust[key]} with Rust")


def load(logdir):
    results = {}
    for config in CONFIGS:
        sides, identities = {}, {}
        for side in SIDES:
            logs = sorted((logdir / side).glob(f"{config}.[0-9].log"))
            if not logs:
                die(f"{logdir / side / config}.1.log is missing: the boot ended "
                    "early, see the console log")
            identities[side] = parse_identity(logdir / side / f"{config}.identity")
            sides[side] = runs_of(logs)
        check_identities(identities, config)
        if any(rows.keys() != sides["c"].keys() for rows in sides.values()):
            die(f"{config}: the sides did not go through the same steps, see {logdir}")
        failed = [str(log) for side in SIDES
                  for log in sorted((logdir / side).glob(f"{config}.[0-9].failed-*.log"))]
        results[config] = {
            "identity": identities, "failed": failed, "runs": sides,
            "ns": {side: {row: statistics.median(times) for row, times in rows.items()}
                   for side, rows in sides.items()},
            "overlap": {side: [row for row, times in sides["c"].items()
                               if overlap(times, sides[side][row])]
                        for side in SIDES if side != "c"}}
    return results


def columns(result, row, ms, ratios):
    """The cells of a row: a time for each side, and its ratio to C's behind all but C's."""
    for side in SIDES:
        yield f"{result['ns'][side][row] / 1e6:{ms}}"
        if side != "c":
            yield ratio(result, side, row, ratios)


def show(results, title, logdir):
    widths = (13, 12, 8, 14, 10)

    def line(first, cells):
        print(f"{first:<14}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths)))

    print(title)
    line("", ("C [ms]", "Rust [ms]", "/ C", "D bits [ms]", "/ C"))
    for config, result in results.items():
        print(f"  {CONFIGS[config]}")
        for row in result["ns"]["c"]:
            line(f"    {row}", columns(result, row, ".3f", 3))
        for log in result["failed"]:
            print(f"    note: this took another attempt, the failed one is {log}")
    print("  D bits: Rust with kvm.dirty_log=dirty_bits")
    if any(rows for result in results.values() for rows in result["overlap"].values()):
        print("  ~: the runs overlap with those of C")
    print(f"  raw logs: {logdir}/*/*.log")


def markdown(paths):
    """Kept results, side by side, as the README shows them."""
    kept = [json.loads(Path(path).read_text()) for path in paths]
    head = ["dirty_log_perf_test", "step"]
    for number, boot in enumerate(kept, 1):
        yield f"{number}. {boot['title']}"
        for side, name in SIDES.items():
            head += [f"{name} ({number})"] + (["/ C"] if side != "c" else [])
    yield ""
    yield "Milliseconds:"
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "|---|---" + "|---:" * (len(head) - 2) + "|"
    for config in CONFIGS:
        results = [boot["configs"][config] for boot in kept]
        name = CONFIGS[config]
        for row in results[0]["ns"]["c"]:
            cells = [name, row]
            for result in results:
                cells += columns(result, row, ",.2f", 2)
            yield "| " + " | ".join(cells) + " |"
            name = ""


def main():
    if len(sys.argv) > 2 and sys.argv[1] == "--markdown":
        print("\n".join(markdown(sys.argv[2:])))
        return
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    logdir, title = Path(sys.argv[1]), sys.argv[2]
    results = load(logdir)
    show(results, title, logdir)
    if len(sys.argv) == 4:
        Path(sys.argv[3]).write_text(
            json.dumps({"title": title, "configs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
