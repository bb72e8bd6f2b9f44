#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Turns what bench.sh collected into a table, JSON and a plot.

  bench.py LOGDIR

LOGDIR has "lines" (MMU MiB RUN OPERATION NANOSECONDS, from the guest) and
"counts" (from the plugin, a line for each of those). Writes LOGDIR/bench.json and
LOGDIR/bench.svg, and a table in Markdown to stdout.
"""
import json
import pathlib
import statistics
import sys
from collections import defaultdict

# Operation, what it is, and the target: instructions per 2 MiB, or a part of C's.
OPERATIONS = [
    ("enable", "enable (legacy, eager split)", 15000),
    ("enable-again", "enable again, not written since", 6500),
    ("clear-first", "CLEAR, first pass (splits)", 16000),
    ("clear-all-dirty", "CLEAR, all pages dirty", 1 / 3),
    ("get-all-dirty", "GET (legacy), all pages dirty", 1 / 3),
    ("get-clean", "GET (legacy), clean", 1.0),
    ("disable", "disable (promote)", 7000),
    ("disable-again", "disable, not written since", 7000),
    ("map-2m", "map 2 MiB pages", 1.0),
    ("map-4k", "map 4 KiB pages", 1.0),
    ("age-4k", "age 4 KiB pages", 1.0),
    ("zap-notifier-4k", "unmap 4 KiB pages (notifier)", 1.0),
    ("teardown-4k", "VM teardown, 4 KiB pages", 1 / 3),
]
FIELDS = ["instructions", "rmws", "read_locks", "write_locks", "longest_read", "longest_write"]


def die(message):
    sys.exit(f"error: bench.py: {message}")


def load(logs):
    lines = (logs / "lines").read_text().split("\n")[:-1]
    counts = (logs / "counts").read_text().split("\n")[:-1]
    if len(lines) != len(counts) or not lines:
        die(f"{len(lines)} operations ran, but {len(counts)} were counted; see {logs}")
    results = defaultdict(list)
    for line, count in zip(lines, counts):
        mmu, mib, _run, operation, nanoseconds = line.split()
        values = dict(zip(FIELDS, map(int, count.split())))
        # The clock counts instructions as well, with those of reading it.
        if abs(int(nanoseconds) - values["instructions"]) > 0.05 * int(nanoseconds) + 12000:
            die(f"clock and plugin disagree: {line} against {count}")
        results[operation, int(mib), mmu].append(values)
    return results


def per_huge_page(values, mib):
    return values / (mib / 2)


def summarize(results):
    rows = []
    for (operation, mib, mmu), runs in results.items():
        row = {"operation": operation, "mib": mib, "mmu": mmu, "runs": len(runs)}
        for field in FIELDS:
            values = [run[field] for run in runs]
            row[field] = statistics.median(values)
            row[field + "_spread"] = max(values) - min(values)
        row["instructions_per_2m"] = per_huge_page(row["instructions"], mib)
        rows.append(row)
    return rows


def number(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def table(rows, mib):
    found = {(r["operation"], r["mmu"]): r for r in rows if r["mib"] == mib}
    yield "| operation | C | Rust | C / Rust | target | spread | RMWs C, Rust | longest hold C | longest hold Rust |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for operation, title, target in OPERATIONS:
        if (operation, "c") not in found:
            continue
        c, rust = found[operation, "c"], found[operation, "rust"]
        a, b = c["instructions_per_2m"], rust["instructions_per_2m"]
        limit = target if target > 1 else target * a
        spread = max(r["instructions_spread"] / r["instructions"] for r in (c, rust))
        rmws = [number(per_huge_page(r["rmws"], mib)) for r in (c, rust)]
        holds = []
        for r in (c, rust):
            mode = "write" if r["longest_write"] else "read"
            holds.append(f"{r['longest_' + mode]:,.0f} {mode[0]}" if r["longest_" + mode] else "-")
        yield (f"| {title} | {number(a)} | {number(b)} | {a / b:.2f} | "
               f"{'' if b <= limit else 'missed: '}{number(limit)} | {100 * spread:.2f} % | "
               f"{', '.join(rmws)} | {holds[0]} | {holds[1]} |")


def locks(rows, mib):
    yield "| operation | acquisitions per GiB: C, read + write | Rust, read + write |"
    yield "|---|--:|--:|"
    for operation, title, _target in OPERATIONS:
        cells = []
        for mmu in ("c", "rust"):
            for r in rows:
                if (r["operation"], r["mib"], r["mmu"]) == (operation, mib, mmu):
                    scale = 1024 / mib
                    cells.append(f"{number(r['read_locks'] * scale)} + "
                                 f"{number(r['write_locks'] * scale)}")
        if len(cells) == 2:
            yield f"| {title} | {cells[0]} | {cells[1]} |"


def plot(rows):
    """Cost per 2 MiB over the size of the slot, on a logarithmic scale, as SVG."""
    width, height, left, top = 760, 420, 70, 30
    sizes = sorted({r["mib"] for r in rows})
    shown = ["enable", "clear-first", "clear-all-dirty", "get-all-dirty", "disable"]
    colours = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"]
    low, high = 3, 5.3

    def x(mib):
        return left + 60 + sizes.index(mib) * (width - left - 320) / max(len(sizes) - 1, 1)

    def y(value):
        from math import log10
        return top + (high - log10(max(value, 10 ** low))) / (high - low) * (height - top - 50)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="18">instructions per 2 MiB (log scale) by size of the memslot'
           '</text>']
    for value in (1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000):
        out.append(f'<line x1="{left}" x2="{width - 250}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                   'stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,}</text>')
    for mib in sizes:
        out.append(f'<text x="{x(mib):.1f}" y="{height - 20}" text-anchor="middle">{mib} MiB</text>')
    for n, (operation, colour) in enumerate(zip(shown, colours)):
        for mmu, dash in (("c", "6,4"), ("rust", "")):
            points = [(x(r["mib"]), y(r["instructions_per_2m"])) for r in
                      sorted(rows, key=lambda r: r["mib"])
                      if r["operation"] == operation and r["mmu"] == mmu]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
                       f'stroke-dasharray="{dash}"/>')
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        out.append(f'<text x="{width - 230}" y="{top + 20 + 18 * n}" fill="{colour}">{operation}'
                   '</text>')
    out.append(f'<text x="{width - 230}" y="{top + 30 + 18 * len(shown)}">dashed: C, solid: Rust'
               '</text></svg>')
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 2:
        die("usage: bench.py LOGDIR")
    logs = pathlib.Path(sys.argv[1])
    rows = summarize(load(logs))
    (logs / "bench.json").write_text(json.dumps(rows, indent=1) + "\n")
    (logs / "bench.svg").write_text(plot(rows))
    sizes = sorted({r["mib"] for r in rows})
    text = []
    for mib in sizes:
        text += ["", f"{mib} MiB: instructions per 2 MiB", "", *table(rows, mib)]
    text += ["", f"mmu_lock, {sizes[-1]} MiB", "", *locks(rows, sizes[-1])]
    text = "\n".join(text[1:]) + "\n"
    (logs / "bench.md").write_text(text)
    print(text, end="")


main()
