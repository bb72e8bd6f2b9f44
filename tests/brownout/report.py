#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Turns what brownout.sh collected into a table and JSON.

usage: brownout.py LOGDIR

The table goes to stdout, for into.py, and JSON to LOGDIR/brownout.json. LOGDIR has
"lines" (MMU REPETITION|all PHASE DURATION FAULTS P50 P99 LONGEST, from the guest,
in nanoseconds), "load" (the load averages before and after), and "time".
"""
import json
import pathlib
import sys

PHASES = [
    ("idle", "nothing"),
    ("enable", "enable (legacy, eager split)"),
    ("clear", "CLEAR, first pass (splits)"),
    ("disable", "disable (recover)"),
]
FIELDS = ["duration", "faults", "p50", "p99", "longest"]


def die(message):
    sys.exit(f"error: brownout.py: {message}")


def load(logs):
    """{(phase, mmu): {"all": {field: value}, "repetitions": [{field: value}]}}"""
    results = {}
    for line in (logs / "lines").read_text().splitlines():
        mmu, repetition, phase, *values = line.split()
        result = results.setdefault((phase, mmu), {"repetitions": []})
        run = dict(zip(FIELDS, map(int, values)))
        if repetition == "all":
            result["all"] = run
        else:
            result["repetitions"].append(run)
    for phase, _title in PHASES:
        for mmu in ("c", "rust"):
            if "all" not in results.get((phase, mmu), {}):
                die(f"'{phase}' was not measured on the MMU '{mmu}'")
    return results


def micro(nanoseconds):
    value = nanoseconds / 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def cell(result, field):
    """Of all repetitions, and the extremes of single ones that saw a fault."""
    single = [run[field] for run in result["repetitions"] if run["faults"]]
    return f"{micro(result['all'][field])} ({micro(min(single))}-{micro(max(single))})"


def table(results, load_averages, exact):
    repeats = len(results["idle", "c"]["repetitions"])
    yield (f"Microseconds, of {repeats} repetitions together, and the extremes of single ones; " +
           ("one instruction is one nanosecond, and the two processors run in turn:" if exact else
            f"the host's load average was {load_averages[0]} before and {load_averages[1]} after:"))
    yield ""
    yield "| during | MMU | it takes | faults | p50 | p99 | longest |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for phase, title in PHASES:
        for mmu, name in (("c", "C"), ("rust", "Rust")):
            result = results[phase, mmu]
            cells = [cell(result, field) for field in ("duration", "p50", "p99", "longest")]
            cells.insert(1, f"{result['all']['faults']:,}")
            yield f"| {title} | {name} | " + " | ".join(cells) + " |"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logs = pathlib.Path(sys.argv[1])
    results = load(logs)
    load_averages = (logs / "load").read_text().split()
    exact = "icount" in (logs / "time").read_text()
    print("\n".join(table(results, load_averages, exact)))
    (logs / "brownout.json").write_text(json.dumps(
        {"unit": "ns", "exact": exact, "load": load_averages,
         "results": [{"phase": phase, "mmu": mmu, **result}
                     for (phase, mmu), result in results.items()]},
        indent=1) + "\n")


main()
