#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Show what the migration scenarios found on the C and on the Rust MMU.

usage: report.py [FILE.md] [FILE.svg] LOGS
       report.py --tap LOG
       report.py --modes [FILE.md] LOG...

LOGS is build/logs/migrate, with a directory for each part of tests/migrate/run.sh:
"wanted" says what was to run there, MMU/BACKEND.json what was found. The tables
go to standard output, or into FILE.md between its marks; the plot goes to FILE.svg
and LOGS/migrate.svg, all numbers to LOGS/migrate.json. The exit status is 1 if a
scenario failed, or was not run.
--tap reports one part as tests. --modes compares the ways to find writes, in parts of
"run.sh modes", each of which has marks of its own.
"""
import json
import sys
from pathlib import Path

from into import put_into

SIDES = ("c", "rust")
# "rust-bits" is with kvm.dirty_log=dirty_bits.
NAMES = {"c": "C", "rust": "Rust", "rust-bits": "Rust, by D bits"}
# Phases in which the MMU has something to do, and so a target: half of C's stalls.
TARGETED = ("enable", "pre-copy", "during CLEAR", "cancel", "during recovery")
# Phases that function tracing has found.
TRACED = {"during CLEAR": "during_clear", "during recovery": "during_recovery"}


def die(message):
    sys.exit(f"error: migrate/report.py: {message}")


def load_part(part):
    """The results of one boot: {(backend, scenario): {side: result}}, wanted ones first."""
    wanted = part / "wanted"
    if not wanted.exists():
        die(f"{part} was not run; run tests/migrate/run.sh part {part.name}")
    sides, backends, scenarios = (line.split() for line in wanted.read_text().splitlines())
    found = {(backend, scenario): {side: {"scenario": scenario, "status": "none"}
                                   for side in sides}
             for backend in backends for scenario in scenarios}
    builds = {}
    for side in sides:
        for path in sorted((part / side).glob("*.json")):
            data = json.loads(path.read_text())
            if data["engine"] != side.removesuffix("-bits"):
                die(f"{path} says that the MMU is '{data['engine']}'")
            builds[side] = data["build"]
            for result in data["results"]:
                found[data["backend"], result["scenario"]][side] = result
    return found, builds


def load(parts):
    """The results of all parts, which have to be of the same modules."""
    found, builds = {}, {}
    for part in parts:
        results, of_part = load_part(part)
        for side, build in of_part.items():
            if builds.setdefault(side, build) != build:
                die(f"{part} was run with another kvm.ko than the parts before it; "
                    "run it, or all, again")
        found |= results
    return found


def milliseconds(us):
    return f"{us / 1000:,.1f}" if us is not None else "-"


def scenario_table(found):
    yield "| memory | scenario | C | Rust | pages checked, C | Rust | downtime [ms], C | Rust |"
    yield "|---|---|---|---|--:|--:|--:|--:|"
    for (backend, name), sides in found.items():
        title = next((r["title"] for r in sides.values() if "title" in r), name)
        status, pages, down = [], [], []
        for side in SIDES:
            result = sides.get(side, {"status": "none"})
            status.append(result["status"])
            pages.append(f"{result.get('pages', 0) + result.get('compared', 0):,}")
            down.append(milliseconds(result.get("downtime_us")))
        yield "| " + " | ".join([backend, title, *status, *pages, *down]) + " |"


def split_table(found):
    """What the QEMU of contrib/qemu split ahead: pages before, when logging begins, and when
    the migration has been cancelled."""
    yield ("| memory | scenario | threads | split | recovered | setup [ms] | 4 KiB and 2 MiB pages "
           "before | when logging begins | cancelled |")
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for (backend, name), sides in found.items():
        ahead = sides.get("rust", {}).get("split_ahead", {})
        if "total" not in ahead:
            continue
        pages = ["{}, {}".format(*ahead[when]) if when in ahead else "-"
                 for when in ("before", "logging", "cancelled")]
        cells = [f"{ahead[key] / ahead['total']:.0%}" for key in ("split", "recovered")]
        yield "| " + " | ".join([backend, sides["rust"]["title"], str(ahead["threads"]), *cells,
                                 str(ahead.get("setup_ms", "-")), *pages]) + " |"


def problems(found):
    """(backend, scenario, side, why) of what did not pass."""
    for (backend, name), sides in found.items():
        for side, result in sides.items():
            if result["status"] != "pass":
                yield backend, name, NAMES[side], result["status"], result.get("reason", "")


def verdict(c, rust):
    ratio = rust / c
    return f"{ratio:.2f}" if ratio <= 0.5 else f"{ratio:.2f} (missed)"


def stall_table(found):
    """Stalls by phase, of the exact run."""
    yield ("| scenario | phase | p50 [us], C | Rust | p99 [us], C | Rust | Rust / C "
           "| max [us], C | Rust | Rust / C | writing a page [us], C | Rust |")
    yield "|---|---|" + "--:|" * 10
    for sides in found.values():
        if any("phases" not in sides.get(side, {}) for side in SIDES):
            continue
        for phase in ("before", "enable", "pre-copy", "during CLEAR", "cancel",
                      "during recovery", "after"):
            both = [sides[side]["phases"].get(phase) for side in SIDES]
            if phase in TRACED:
                both = [sides[side].get(TRACED[phase]) for side in SIDES]
            # What comes after a switch is the downtime, and another host's clock.
            if phase == "after" and "downtime_us" in sides["c"]:
                continue
            if not all(b and "samples" in b for b in both):
                continue
            # There the guest stands still until it is over.
            if phase == "cancel" and sides["c"]["scenario"] == "cancelled":
                continue
            cells = [sides["c"]["title"], phase]
            for key in ("p50_us", "p99_us", "max_us", "page_us"):
                cells += [f"{b[key]:,.1f}" if key in b else "-" for b in both]
                if key in ("p99_us", "max_us"):
                    cells.append(verdict(*(b[key] for b in both)) if phase in TARGETED else "")
            yield "| " + " | ".join(cells) + " |"


def callback_table(found):
    """How long RCU's callbacks take that free page tables, of the exact run."""
    lines = []
    for sides in found.values():
        seen = [[sides.get(side, {}).get(what, {}).get("us", []) for side in SIDES]
                for what in ("in_callbacks", "in_rows_of_callbacks")]
        if any(seen[0]):
            title = next(r["title"] for r in sides.values() if "title" in r)
            cells = [str(len(us)) for us in seen[0]]
            cells += [f"{max(us):,.1f}" if us else "-" for both in seen for us in both]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    if lines:
        yield "RCU's callbacks that free page tables, with what interrupts them, and with tracing them:"
        yield ""
        yield ("| scenario | callbacks, C | Rust | the longest [us], C | Rust (target: 5) "
               "| the longest row of them [us], C | Rust |")
        yield "|---|" + "--:|" * 6
        yield from lines
        yield ""


def ahead_table(found):
    """Stalls while a VM is split ahead and recovered, of the exact run."""
    for sides in found.values():
        ways = sides.get("rust", {}).get("ways", {})
        if not ways:
            continue
        yield ("| how | a vCPU is served late, Rust | samples | p50 [us] | p99 [us] | max [us] "
               "| p99, times that before (target 1.10) |")
        yield "|---|---|--:|--:|--:|--:|--:|"
        for title, phases in ways.items():
            for name, seen in phases.items():
                ratio = seen["p99_us"] / phases["before"]["p99_us"]
                aim = f"{ratio:.2f}, {'met' if ratio <= 1.1 else 'missed'}"
                yield (f"| {title} | {name} | {seen['samples']:,} | {seen['p50_us']:,.1f} "
                       f"| {seen['p99_us']:,.1f} | {seen['max_us']:,.1f} "
                       f"| {'' if name == 'before' else aim} |")
        yield ""


def row(what, phase, key, digits=1):
    """What to show of a result's phase."""
    return what, lambda result: f"{result['phases'][phase][key]:,.{digits}f}"


# What to show of each scenario that compares the ways to find writes, and how to get it.
METER = (
    row("a vCPU is served late in pre-copy, p50 [us]", "pre-copy", "p50_us"),
    row("p99 [us]", "pre-copy", "p99_us"),
    row("longest [us]", "pre-copy", "max_us"),
    row("writing a page before the migration [us]", "before", "page_us", 2),
    row("in pre-copy [us]", "pre-copy", "page_us", 2),
    ("share of the writer's time in pre-copy that logging takes", lambda result:
     f"{round(100 - 100 * result['phases']['before']['page_us'] / result['phases']['pre-copy']['page_us'])}%"),
)
TRANSFER = (
    ("rounds", lambda result: f"{result['rounds']}"),
    ("the migration takes [ms]", lambda result: f"{result['migration_ms']:,}"),
    ("downtime [ms]", lambda result: milliseconds(result["downtime_us"])),
)
MODES = {
    "completes": (*METER, *TRANSFER),
    "cancel_running": METER,
    "fast_writer": (*(
        (f"{what} [MB/s]", lambda result, i=i, key=key: f"{result['rates'][i][key]:,.0f}")
        for what, i, key in (("the guest writes, not throttled", 0, "written_mb_s"),
                             ("throttled as far as it had to be", -1, "written_mb_s"),
                             ("is sent then", -1, "sent_mb_s"))),
        ("the guest is stopped for [%]", lambda result: f"{result['throttle_percent']}"), *TRANSFER),
}


def modes_table(found):
    """What a guest feels that is logged by faults, and by D bits."""
    sides = list(dict.fromkeys(side for results in found.values() for side in results))
    yield "| scenario | what | " + " | ".join(
        "Rust, by faults" if side == "rust" else NAMES[side] for side in sides) + " |"
    yield "|---|---|" + "--:|" * len(sides)
    for (_, name), results in found.items():
        for what, get in MODES[name]:
            passed = [results.get(side, {}) for side in sides]
            cells = [get(one) if one.get("status") == "pass" else "-" for one in passed]
            title = next((one["title"] for one in passed if "title" in one), name)
            # What was not run is among the problems.
            if any(cell != "-" for cell in cells):
                yield "| " + " | ".join([title, what, *cells]) + " |"


def modes(documents, parts):
    failed = [*problems(load(parts))]
    for part in parts:
        lines = [*modes_table(load([part]))]
        for document in documents:
            put_into(Path(document), f"migrate-{part.name}", lines)
        print("\n".join(lines))
    for problem in failed:
        print(*problem)
    sys.exit(bool(failed))


COLORS = {"c": "#c0392b", "rust": "#2471a3"}
SHADES = {"enable": "#fdebd0", "pre-copy": "#eaf2f8", "cancel": "#fadbd8"}
# As the driver numbers them.
PHASES = ("before", "enable", "pre-copy", "cancel", "after", "split ahead", "recovered",
          "over and over")


def shown(result):
    """The windows to plot: from shortly before the migration, without the downtime."""
    timeline = result.get("timeline", [])
    start = next((p[0] for p in timeline if PHASES[p[4]] == "enable"), 0) - 20
    ends = "downtime_us" in result
    return [p for p in timeline if p[0] >= start and not (ends and PHASES[p[4]] == "after")
            and p[1] < 100000]


def plot(found, path):
    """The largest stall in each millisecond, C above and Rust below, as SVG."""
    width, height, left, step = 900, 110, 70, 150
    out, base = [], 0
    for sides in found.values():
        panels = {side: shown(result) for side, result in sides.items() if shown(result)}
        for side, points in panels.items():
            base += step
            # Both on one scale.
            top = max(p[1] for other in panels.values() for p in other) or 1
            span = max(other[-1][0] - other[0][0] for other in panels.values()) + 1
            scale = width / span
            start = points[0][0]
            # The processor that writes notes the phase. There may be several of a name.
            phases = []
            for p in (p for p in points if p[2]):
                if not phases or phases[-1][0] != PHASES[p[4]]:
                    phases.append([PHASES[p[4]], p[0], 0])
                phases[-1][2] = p[0] + 1
            for phase, low, high in phases:
                x = left + (low - start) * scale
                out.append(f'<rect x="{x:.1f}" y="{base - height}" height="{height}" '
                           f'width="{(high - low) * scale:.1f}" '
                           f'fill="{SHADES.get(phase, "none")}"/>')
                if (high - low) * scale > 50:
                    out.append(f'<text x="{x + 3:.1f}" y="{base + 13}" fill="#555">{phase}</text>')
            out.append(f'<text x="{left}" y="{base - height - 5}">{sides[side]["title"]}: '
                       f'{NAMES[side]}</text>')
            for share in (0, 0.5, 1):
                y = base - height * share
                out.append(f'<path d="M{left} {y:.0f}h{width}" stroke="#ccc"/>')
                out.append(f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end">'
                           f'{top * share / 1000:.2f} ms</text>')
            # Of the windows that fall on two pixels, the worst; what is less than half a
            # pixel high is not seen.
            columns = {}
            for p in points:
                column = int((p[0] - start) * scale / 2)
                columns[column] = max(columns.get(column, 0), p[1] * height / top)
            lines = "".join(f"M{left + 2 * column} {base}v{-value:.1f}"
                            for column, value in columns.items() if value > 0.5)
            out.append(f'<path d="{lines}" stroke-width="2" stroke="{COLORS[side]}"/>')
            out.append(f'<text x="{left + width}" y="{base + 13}" text-anchor="end">'
                       f'{span} ms</text>')
    path.write_text("\n".join([
        '<!-- SPDX-License-Identifier: GPL-2.0 -->',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + left + 20}" '
        f'height="{base + 40}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>', *out,
        f'<text x="{left}" y="{base + 32}">the largest stall of a vCPU, over time; C and Rust on one scale'
        '</text></svg>']) + "\n")


def tap(found):
    yield f"1..{sum(len(sides) for sides in found.values())}"
    n = 0
    for (backend, name), sides in found.items():
        for side, result in sides.items():
            n += 1
            good = result["status"] == "pass"
            yield f"{'ok' if good else 'not ok'} {n} - {name}, {backend}, {NAMES[side]}: " \
                f"{result.get('title', 'not run')}"
            if not good:
                yield f"# {result.get('reason', result['status'])}"


def main():
    args = sys.argv[1:]
    if args[:1] == ["--tap"] and len(args) == 2:
        found = load([Path(args[1])])
        print("\n".join(tap(found)))
        sys.exit(any(problems(found)))
    if args[:1] == ["--modes"] and len(args) > 1 and not args[-1].endswith(".md"):
        modes([a for a in args[1:] if a.endswith(".md")],
              [Path(a) for a in args[1:] if not a.endswith(".md")])
    if not args or not all(a.endswith((".md", ".svg")) for a in args[:-1]):
        sys.exit(__doc__)
    logs = Path(args[-1])
    parts = [logs / name for name in (logs / "parts").read_text().split()]
    missing = [p.name for p in parts if not (p / "wanted").exists()]
    parts = [p for p in parts if p.name not in missing]
    real = load([p for p in parts if not p.name.endswith("-exact")])
    exact = load([p for p in parts if p.name.endswith("-exact")])
    lines = []
    if real:
        lines += ["In real time on the emulator, 64 MiB:", "", *scenario_table(real), ""]
    if missing:
        lines += [f"Not run: the parts {', '.join(missing)} of `make migrate`.", ""]
    if exact:
        lines += ["Where one instruction is one nanosecond (`-icount`), 128 MiB:", "",
                  *scenario_table(exact), "",
                  "How late a vCPU is served there, by phase (target: half of C's):", "",
                  *stall_table(exact), "", *callback_table(exact), *ahead_table(exact)]
    name = "migrate"
    if any("split_ahead" in side for found in (real, exact) for sides in found.values()
           for side in sides.values()):
        name = "migrate-ours"
        lines += ["What was split ahead on Rust:", "", *split_table(real | exact)]
    failed = [*problems(real), *problems(exact)]
    for document in args[:-1]:
        if document.endswith(".md"):
            put_into(Path(document), name, lines)
        else:
            plot(exact, Path(document))
    print("\n".join(lines))
    for problem in failed:
        print(*problem)
    plot(exact, logs / "migrate.svg")
    everything = [{"memory": backend, "exact": found is exact, **{"results": sides}}
                  for found in (real, exact) for (backend, _), sides in found.items()]
    (logs / "migrate.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"plot and JSON: {logs}/migrate.svg {logs}/migrate.json", file=sys.stderr)
    sys.exit(bool(missing) or any(status != "skip" for _, _, _, status, _ in failed))


main()
