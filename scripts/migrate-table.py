#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Print what the migration scenarios found on the C and on the Rust MMU.

usage: migrate-table.py LOGS

LOGS is build/logs, with migrate/MMU/BACKEND.json and the same in migrate-exact,
as tests/guest/migrate/run.sh leaves them. The plot of the exact run goes to
LOGS/migrate.svg, all of the numbers to LOGS/migrate.json. The exit status is 1
if a scenario failed, or was not run.
"""
import json
import sys
from pathlib import Path

SIDES = ("c", "rust")
NAMES = {"c": "C", "rust": "Rust"}


def load(directory):
    """{backend: {scenario: {side: result}}}; of each side what there is."""
    found = {}
    for side in SIDES:
        for path in sorted((directory / side).glob("*.json")):
            data = json.loads(path.read_text())
            if data["engine"] != side:
                sys.exit(f"error: {path} says that the MMU is '{data['engine']}'")
            for result in data["results"]:
                scenarios = found.setdefault(data["backend"], {})
                scenarios.setdefault(result["scenario"], {})[side] = result
    return found


def milliseconds(us):
    return f"{us / 1000:.1f}" if us is not None else "-"


def show_scenarios(found):
    """The scenario table. Returns whether all is well."""
    good = True
    print(f"  {'':<8}{'scenario':<40}{'C':>6}{'Rust':>6}{'pages checked':>20}"
          f"{'downtime [ms]':>18}")
    for backend, scenarios in found.items():
        for name, sides in scenarios.items():
            any_side = next(iter(sides.values()))
            status, pages, down = [], [], []
            for side in SIDES:
                result = sides.get(side, {"status": "none"})
                status.append(result["status"])
                pages.append(str(result.get("pages", 0) + result.get("compared", 0)))
                down.append(milliseconds(result.get("downtime_us")))
            print(f"  {backend:<8}{any_side['title'] or name:<40}{status[0]:>6}{status[1]:>6}"
                  f"{' | '.join(pages):>20}{' | '.join(down):>18}")
            for side in SIDES:
                if side not in sides:
                    print(f"    {NAMES[side]}: not run")
                    good = False
                elif sides[side]["status"] != "pass":
                    print(f"    {NAMES[side]}: {sides[side].get('reason')}")
                    good &= sides[side]["status"] == "skip"
    return good


def show_stalls(found):
    """Stalls by phase, of the exact run."""
    print(f"  {'':<15}{'phase':<10}{'p50':>16}{'p99':>18}{'max':>20}{'writing a page':>18}")
    for scenarios in found.values():
        for name, sides in scenarios.items():
            if set(sides) != set(SIDES) or any("phases" not in s for s in sides.values()):
                continue
            for phase in sides["c"]["phases"]:
                both = [sides[side]["phases"].get(phase) for side in SIDES]
                if None in both:
                    continue
                row = f"  {name:<15}{phase:<10}"
                for key, width in (("p50_us", 16), ("p99_us", 18), ("max_us", 20),
                                   ("page_us", 18)):
                    cell = " | ".join(f"{b[key]:.1f}" if key in b else "-" for b in both)
                    row += f"{cell:>{width}}"
                print(row)


COLORS = {"c": "#c0392b", "rust": "#2471a3"}


def plot(found, path):
    """The largest stall in each millisecond, C above and Rust below, as SVG."""
    panels = []
    for scenarios in found.values():
        for sides in scenarios.values():
            panels += [(sides[side], side) for side in SIDES if sides.get(side, {}).get("timeline")]
    if not panels:
        return
    width, height, left = 900, 130, 60
    top = max(point[1] for result, _ in panels for point in result["timeline"]) or 1
    end = max(point[0] for result, _ in panels for point in result["timeline"]) + 1
    total = len(panels) * (height + 30) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + left + 20}" '
           f'height="{total}" font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>']
    for n, (result, side) in enumerate(panels):
        base = n * (height + 30) + height + 20
        out.append(f'<text x="{left}" y="{base - height - 4}">{result["title"]}, '
                   f'{NAMES[side]}</text>')
        out.append(f'<line x1="{left}" y1="{base}" x2="{left + width}" y2="{base}" '
                   'stroke="black"/>')
        for share in (0.5, 1):
            y = base - height * share
            out.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">'
                       f'{top * share / 1000:.2f} ms</text>')
            out.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" '
                       'stroke="#ddd"/>')
        for window, late, *_ in result["timeline"]:
            x = left + window * width / end
            y = base - late * height / top
            out.append(f'<line x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{y:.1f}" '
                       f'stroke="{COLORS[side]}"/>')
    out.append(f'<text x="{left}" y="{total - 8}">time, {end} ms in all; each line the largest '
               'stall in 1 ms</text></svg>')
    path.write_text("\n".join(out) + "\n")
    print(f"  plot: {path}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logs = Path(sys.argv[1])
    real, exact = load(logs / "migrate"), load(logs / "migrate-exact")
    if not real:
        sys.exit("error: no scenario was run, see build/logs/migrate")
    print("live migration of 64 MiB and 2 vCPUs between two QEMUs")
    good = show_scenarios(real)
    if exact:
        print("stalls of a vCPU, in us, C | Rust (-icount: 1 instruction = 1 ns)")
        for scenarios in exact.values():
            for name, sides in scenarios.items():
                for side in SIDES:
                    result = sides.get(side, {"status": "none"})
                    if result["status"] != "pass":
                        print(f"  {name}, {NAMES[side]}: {result['status']} "
                              f"{result.get('reason', '')}")
                        good = False
        show_stalls(exact)
        plot(exact, logs / "migrate.svg")
    (logs / "migrate.json").write_text(json.dumps({"real": real, "exact": exact}, indent=1) + "\n")
    print(f"  JSON: {logs / 'migrate.json'}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
