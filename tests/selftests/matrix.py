#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Which test ran on which machine and kernel, with what outcome, as reST.

usage: matrix.py LOGS >runs.rst

Reads all that tests/selftests/guest.sh has left below LOGS (c.tap, rust.tap and the
KUnit results beside them), what the planted bugs gave (plant-*.tap), and which
allocation sites have failed (alloc-sites/sites), and nothing else: no cell can be
filled by hand. Where something ran more than once, the last run counts that was not
skipped. What the TAP says of itself ("# machine" and so on) decides where a result
belongs, not the name of a file; TAP that does not say it is left out.
"""
import re
import sys
from pathlib import Path

import tap

MACHINES = {"amd": "AMD", "intel-pml": "Intel PML", "intel-ad": "Intel, no PML",
            "intel-noad": "Intel, no A/D", "shadow": "shadow paging"}
KERNELS = {"lab": "normal", "debug": "lockdep", "kasan": "KASAN", "kcsan": "KCSAN"}
SAID = re.compile(r"^# (mmu|modules|kernel|commit|date|machine) (\S+)$")
SHORT = {"pass": "ok", "fail": "FAIL", "skip": "skip"}
HEAD = """\
.. SPDX-License-Identifier: GPL-2.0

==================================
The x86 TDP MMU in Rust: test runs
==================================

Made by ``make matrix`` from the TAP in ``build/logs``; not to be edited. Each cell
has the outcome on the C MMU, that on the Rust MMU, and a letter that stands for
date and commit. ``xfail``: fails, and the list says why. ``-``: not run on that
MMU. ``no run``: on neither.
"""


class Cell:
    """The last result of one test on one machine and kernel, of each MMU."""

    def __init__(self):
        self.results = {}

    def add(self, mmu, when, run, result):
        def rank(when, _run, result):
            return result.outcome != "skip", when

        if mmu not in self.results or rank(*self.results[mmu]) <= rank(when, run, result):
            self.results[mmu] = (when, run, result)

    def text(self, letters):
        if not self.results:
            return "no run"
        words, runs = [], []
        for mmu in ("c", "rust"):
            if mmu not in self.results:
                words.append("-")
                continue
            _, run, result = self.results[mmu]
            words.append(outcome(result))
            if letters[run] not in runs:
                runs.append(letters[run])
        return f"{'/'.join(words)} {','.join(sorted(runs))}"


def outcome(result):
    if result.outcome == "fail" and result.note.startswith("TODO"):
        return "xfail"
    return SHORT.get(result.outcome, result.outcome)


def read_tap(path):
    """Yields (said, result): what the TAP has said of itself up to each result."""
    said = {}
    for line in path.read_text(errors="replace").splitlines():
        if match := SAID.match(line):
            said[match[1]] = match[2]
        elif match := tap.RESULT.match(line):
            note = match["note"] or ""
            state = "fail" if match["not"] else "pass"
            if state == "pass" and note.upper().startswith("SKIP"):
                state, note = "skip", note[4:].strip()
            yield said, tap.Result(match["id"], state, note)


def read_kunit(directories):
    """All suites' cases below the first of the directories that has any, as one result."""
    for directory in directories:
        cases = [line for path in sorted(directory.glob("*.ktap"))
                 for line in path.read_text(errors="replace").splitlines()
                 if re.match(r"^ {4}(not )?ok ", line)]
        if cases:
            good = sum(line.startswith("    ok ") for line in cases)
            result = tap.Result("KUnit", "pass" if good == len(cases) else "fail", "")
            result.outcome = f"{good} of {len(cases)}"
            return result
    return None


class Matrix:
    """All results below a directory."""

    def __init__(self, logs):
        self.cells, self.runs, self.tests, self.plants = {}, set(), [], []
        self.logs = logs
        for mmu in ("c", "rust"):
            for path in sorted(logs.rglob(f"{mmu}.tap")):
                self.read(path, mmu)
        for path in sorted(logs.rglob("plant-*.tap")):
            results, missing = tap.parse(path)
            self.plants += [(path.parent.name, result) for result in results.values()
                            if not missing]

    def read(self, path, mmu):
        when, first = path.stat().st_mtime, None
        for said, result in read_tap(path):
            # Modules with a planted bug, or upstream's, are not the fork's.
            if said.get("mmu") == mmu and "machine" in said and "modules" not in said:
                first = first or dict(said)
                self.add(said, mmu, when, result)
        # The suites run when the module is loaded, before all tests.
        if mmu == "rust" and first:
            kunit = read_kunit([path.parent / "rust" / "kunit", path.parent / "kunit"])
            if kunit:
                self.add(first, mmu, when, kunit)

    def add(self, said, mmu, when, result):
        run = (said.get("date", "unknown"), said.get("commit", "unknown"))
        kernel = said.get("kernel", "lab")
        self.runs.add(run)
        if result.name not in self.tests:
            self.tests.append(result.name)
        self.cells.setdefault((result.name, said["machine"], kernel), Cell()).add(
            mmu, when, run, result)

    def cell(self, test, machine, kernel):
        return self.cells.get((test, machine, kernel), Cell())

    def failures(self):
        """What did not pass, was not skipped and was not expected to fail."""
        for (test, machine, kernel), cell in sorted(self.cells.items()):
            for mmu, (_, _, result) in sorted(cell.results.items()):
                if outcome(result) == "FAIL":
                    yield (test, MACHINES.get(machine, machine), KERNELS.get(kernel, kernel),
                           mmu, result.note)


SITE = re.compile(r"^ *(\d+)  (\S.*?)(?:  \((.*)\))?$")


def sites(logs):
    """What the last 'make alloc-sites' has left, as lines of reST."""
    paths = sorted(logs.rglob("alloc-sites/sites"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return ["No run.", ""]
    lines = paths[-1].read_text().splitlines()
    runs = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    rows = [match.groups("") for match in map(SITE.match, lines) if match
            and not match[2].startswith("allocations elsewhere")]
    return [f"{lines[-1]}.", f"Run on {', '.join(runs)} by ``make alloc-sites``, which makes each",
            "allocation fail in turn, on the lockdep kernel.", "",
            table([("times", "allocation site", "why it did not fail"), *rows])]


def table(rows):
    """A simple table; the first row is its head, and the last column is free text."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
             for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def letter(number):
    return chr(ord("a") + number) if number < 26 else f"a{chr(ord('a') + number - 26)}"


def render(matrix):
    parts = [HEAD]
    runs = sorted(matrix.runs)
    letters = {run: letter(n) for n, run in enumerate(runs)}
    parts.append(table([("run", "date", "commit")]
                       + [(letters[run], *run) for run in runs]))

    for kernel, title in KERNELS.items():
        parts.append(f"The {title} kernel\n{'=' * len(f'The {title} kernel')}\n")
        tests = [test for test in matrix.tests
                 if any((test, machine, kernel) in matrix.cells for machine in MACHINES)]
        if not tests:
            parts.append("No run.\n")
            continue
        parts.append(table([("test", *MACHINES.values())] + [
            (test, *(matrix.cell(test, machine, kernel).text(letters) for machine in MACHINES))
            for test in tests]))

    parts.append("Failures\n========\n")
    failures = list(matrix.failures())
    parts.append(table([("test", "machine", "kernel", "MMU", "what"), *failures])
                 if failures else "None.\n")

    parts.append("Planted bugs\n============\n")
    parts.append(table([("kernel", "bug", "reported", "as")] + [
        (kernel, result.name.removeprefix("plant "),
         "yes" if result.outcome == "pass" else "NO", result.note or "-")
        for kernel, result in matrix.plants]) if matrix.plants else "No run.\n")

    parts.append("Allocation sites\n================\n")
    parts += sites(matrix.logs)
    return "\n".join(parts)


def main():
    if len(sys.argv) != 2:
        return __doc__
    matrix = Matrix(Path(sys.argv[1]))
    if not matrix.cells:
        return f"error: no TAP below {sys.argv[1]} says what it was run on"
    print(render(matrix), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
