#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs the model, and shows what it says as tables and as a plot.

usage: report.py [--effort E] [FILE.md FILE.svg]

E is how much of each phase is simulated; the default of 1 is what results/model.md has. With
files, the tables go between the marks of FILE.md, too, and the plot to FILE.svg. The exit status is 1 if the
model does not come near what was measured upstream.
"""
import argparse
import html
import math
import sys
from pathlib import Path

import inputs as given
from into import put_into
from model import FACTOR, FOUNDING, GIB, MACHINES, WAYS, Migration, Way, first_pass, percentile

PHASES = ("split ahead", "enable", "CLEAR", "disable", "recover")
COLORS = {"split ahead": "#95a5a6", "enable": "#c0392b", "CLEAR": "#e67e22", "disable": "#2471a3",
          "recover": "#aed6f1"}


def seconds(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def us(value):
    return f"{value / 1000:.1f}" if value < 1e6 else f"{value / 1000:,.0f}"


def machine_name(vcpus, gib):
    return f"{vcpus} vCPU, {f'{gib} GiB' if gib < 1024 else f'{gib // 1024} TiB'}"


def founding_table(v):
    """Returns the lines, and whether all is within the factor."""
    lines = ["| 96 vCPUs, 96 GiB, C | measured [s] | model [s] | model / measured | fitted input |",
             "|---|--:|--:|--:|---|"]
    good = True
    for item in FOUNDING:
        said = item.model(v)
        ratio = said / item.measured
        good &= 1 / FACTOR <= ratio <= FACTOR
        lines.append(f"| {item.what} | {item.measured:g} | {said:.3g} | {ratio:.2f} | "
                     f"{f'`{item.fitted}`' if item.fitted else 'none'} |")
    return lines, good


def phase_table(found):
    yield "| VM | | " + " [s] | ".join(PHASES) + " [s] | while a migration waits [s] |"
    yield "|---|---|" + "--:|" * (len(PHASES) + 1)
    for vcpus, gib in MACHINES:
        for way in WAYS:
            phases = found[vcpus, gib, way.name]
            waits = phases["enable"].seconds + phases["disable"].seconds
            yield "| " + " | ".join([
                machine_name(vcpus, gib), way.name,
                *(seconds(phases[name].seconds if name in phases else None) for name in PHASES),
                seconds(waits)]) + " |"


def same(way, name):
    """Where the number of threads changes nothing."""
    return way.threads > 1 and name not in ("split ahead", "recover")


def stall_table(found, before):
    yield ("| VM | | phase | a fault waits, p99 [us] | longest | share of the vCPUs' time | a notifier "
           "waits, p99 [us] |")
    yield "|---|---|---|--:|--:|--:|--:|"
    for vcpus, gib in MACHINES:
        def line(way, name, phase, vcpus=vcpus, gib=gib):
            waits = phase.fault_waits
            share = sum(waits) / (phase.piece * vcpus)
            return "| " + " | ".join([
                machine_name(vcpus, gib), way, name, us(percentile(waits, 0.99)),
                us(max(waits, default=0)), f"{share:.2%}",
                us(percentile(phase.notifier_waits, 0.99))]) + " |"

        yield line("", "before", before[vcpus, gib])
        for way in WAYS:
            for name in PHASES:
                if name in found[vcpus, gib, way.name] and not same(way, name):
                    yield line(way.name, name, found[vcpus, gib, way.name][name])


def faults_table(v):
    """Without eager splitting: what made the authors of the RFC of 2020 ask."""
    yield "| VM | first pass, pages split by faults [s] |"
    yield "|---|--:|"
    for vcpus, gib in MACHINES:
        yield f"| {machine_name(vcpus, gib)} | {seconds(first_pass(v, vcpus, False) * gib / vcpus)} |"


def budget_table(v, effort):
    """How many threads are worth it, by the budget of a call."""
    vcpus, gib = MACHINES[0]
    budgets = (16, 32, GIB)
    yield f"| threads ({machine_name(vcpus, gib)}) | " + " | ".join(
        f"{n * 2} MiB a call [s]" for n in budgets) + " |"
    yield "|--:|" + "--:|" * len(budgets)
    for threads in (1, 2, 4, 8, 16, 32, 64):
        row = [Migration(v, vcpus, gib, Way("", "rust", threads, unit), effort).phases()
               ["split ahead"].seconds for unit in budgets]
        yield f"| {threads} | " + " | ".join(seconds(value) for value in row) + " |"


def outcomes(v, effort):
    """What may depend on an input, as {name: value}."""
    vcpus, gib = MACHINES[0]
    ways = {name: Migration(v, vcpus, gib, way, effort).phases()
            for name, way in (("C", WAYS[0]), ("Rust", WAYS[1]), ("ahead", WAYS[3]),
                              ("64", WAYS[4]))}
    return {
        "enable, C": ways["C"]["enable"].seconds,
        "enable, Rust": ways["Rust"]["enable"].seconds,
        "enable, ahead": ways["ahead"]["enable"].seconds,
        "split ahead by 8": ways["ahead"]["split ahead"].seconds,
        "by 64": ways["64"]["split ahead"].seconds,
        "fault in CLEAR, p99, C": percentile(ways["C"]["CLEAR"].fault_waits, 0.99),
        "Rust": percentile(ways["Rust"]["CLEAR"].fault_waits, 0.99),
        "split ahead by 64, p99": percentile(ways["64"]["split ahead"].fault_waits, 0.99),
    }


def sensitivity(table, effort):
    """Each input that was not measured, halved and doubled."""
    effort /= 2
    base = outcomes(given.values(table), effort)
    yield "| input | times | published | " + " | ".join(base) + " |"
    yield "|---|--:|---|" + "--:|" * len(base)
    for name, item in table.items():
        if item.kind == given.MEASURED:
            continue
        for factor in (0.5, 2):
            v = given.values(table, **{name: factor})
            missed = [f"{item.what}: {item.model(v) / item.measured:.2f}" for item in FOUNDING
                      if not 1 / FACTOR <= item.model(v) / item.measured <= FACTOR]
            changes = [f"{value / base[what]:.2f}" for what, value in outcomes(v, effort).items()]
            yield f"| `{name}` | {factor:g} | {'; '.join(missed) or 'hold'} | " + \
                " | ".join(changes) + " |"


def input_table(table):
    yield "| input | value | kind | source |"
    yield "|---|--:|---|---|"
    for name, item in table.items():
        yield f"| `{name}` | {item.value:,.6g} {item.unit} | {item.kind} | {item.source} |"


def plot(found):
    """Above what each phase takes, below how long a fault waits; both on logarithmic scales."""
    left, panel, gap, height, top = 76, 270, 24, 210, 60
    width = left + len(MACHINES) * (panel + gap)
    scales = (("seconds", 1e-3, 200, top, lambda p: p.seconds),
              ("us, p99 of a fault's waits for mmu_lock", 0.05, 10000, top + height + 70,
               lambda p: percentile(p.fault_waits, 0.99) / 1000))
    out = []

    def text(x, y, what, anchor="middle", more=""):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(what)}</text>')

    for label, low, high, base, value_of in scales:
        def at(value, base=base, low=low, high=high):
            inside = min(max(value, low), high)
            return base + height * math.log(high / inside) / math.log(high / low)
        for number, (vcpus, gib) in enumerate(MACHINES):
            start = left + number * (panel + gap)
            text(start + panel / 2, base - 8, machine_name(vcpus, gib), more=' font-weight="bold"')
            power = math.ceil(math.log10(low))
            while 10 ** power <= high:
                y = at(10 ** power)
                out.append(f'<path d="M{start} {y:.1f}h{panel}" stroke="#ddd"/>')
                if not number:
                    text(start - 6, y + 4, f"{10 ** power:g}", "end")
                power += 1
            for group, way in enumerate(WAYS):
                room = panel / len(WAYS)
                phases = [(name, found[vcpus, gib, way.name][name]) for name in PHASES
                          if name in found[vcpus, gib, way.name]]
                bar = (room - 8) / len(PHASES)
                for n, (name, phase) in enumerate(phases):
                    x = start + group * room + 4 + n * bar
                    y = at(value_of(phase))
                    out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 1:.1f}" '
                               f'height="{base + height - y:.1f}" fill="{COLORS[name]}"/>')
                short = way.name.replace("Rust, split ahead by ", "by ")
                text(start + group * room + room / 2, base + height + 14, short)
        text(left, base - 26, label, "start")
    for n, name in enumerate(PHASES):
        x = left + n * 110
        y = top + 2 * height + 108
        out.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLORS[name]}"/>')
        text(x + 16, y, name, "start")
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 2 * height + 124}" '
        'font-family="sans-serif" font-size="11">',
        '<!-- SPDX-License-Identifier: GPL-2.0 -->',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="16">What the model says: C, Rust, and Rust when 1, 8 or 64 threads have '
        'split ahead; logarithmic</text>', *out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--effort", type=float, default=1)
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if [Path(file).suffix for file in args.files] not in ([], [".md", ".svg"]):
        sys.exit(__doc__)
    table = given.load()
    v = given.values(table)
    founding, good = founding_table(v)
    found = {(vcpus, gib, way.name): Migration(v, vcpus, gib, way, args.effort).phases()
             for vcpus, gib in MACHINES for way in WAYS}
    before = {(vcpus, gib): Migration(v, vcpus, gib, WAYS[0], args.effort).before()
              for vcpus, gib in MACHINES}
    lines = ["What was measured upstream:", "", *founding, "",
             "Phases:", "", *phase_table(found), "",
             "Waits for `mmu_lock`:", "", *stall_table(found, before), "",
             "C with `eager_page_split=N`, where vCPUs split pages in faults:", "", *faults_table(v), "",
             "Splitting ahead, by threads and by what one call does:", "",
             *budget_table(v, args.effort), "",
             "Each input that was not measured, halved and doubled; outcomes as a ratio to those with the inputs below, for "
             f"{machine_name(*MACHINES[0])}:", "", *sensitivity(table, args.effort), "",
             "Inputs:", "", *input_table(table)]
    print("\n".join(lines))
    if args.files:
        put_into(Path(args.files[0]), "model", lines)
        Path(args.files[1]).write_text(plot(found), encoding="utf-8")
    if not good:
        sys.exit(f"error: the model is off by more than {FACTOR:g} from what was measured")


if __name__ == "__main__":
    main()
