#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Read TAP, as the stages of 'make test' leave it, and sum it up.

usage: tap.py summary FILE...
       tap.py kunit DIR

summary prints every failure and skip, then "N passed, N failed, N skipped",
and fails if anything failed. A plan that was not carried out is a failure: what
did not run did not pass.
kunit turns DIR/*.ktap, results of KUnit suites, into TAP.
"""
import re
import sys
from pathlib import Path

RESULT = re.compile(r"^(?P<not>not )?ok\s+\d+\s*-?\s*(?P<id>[^#]*?)\s*(?:#\s*(?P<note>.*))?$")
PLAN = re.compile(r"^1\.\.(\d+)")


class Result:
    """One test's outcome: pass, fail or skip, and what was said about it."""

    def __init__(self, name, outcome, note=""):
        self.name, self.outcome, self.note = name, outcome, note


def parse(path):
    """The results in a TAP file by test, and why it is incomplete, if it is."""
    results, plan, bail = {}, None, None
    text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        if line.startswith("Bail out!"):
            bail = line[len("Bail out!"):].strip()
        elif match := PLAN.match(line):
            plan = int(match[1])
        elif match := RESULT.match(line):
            note = match["note"] or ""
            outcome = "fail" if match["not"] else "pass"
            if outcome == "pass" and note.upper().startswith("SKIP"):
                outcome, note = "skip", note[4:].strip()
            results[match["id"]] = Result(match["id"], outcome, note)
    missing = None
    if bail is not None:
        missing = f"bailed out: {bail}"
    elif plan is None:
        missing = "no TAP plan: it did not start"
    elif len(results) < plan:
        missing = f"only {len(results)} of {plan} tests have a result"
    return results, missing


def parse_all(names):
    """As parse(), of several files with commas between their names, as if they were one."""
    results, missing = {}, []
    for name in names.split(","):
        more, why = parse(Path(name))
        results.update(more)
        if why:
            missing.append(why)
    return results, "; ".join(missing) or None


def summary(files):
    counts = {"pass": 0, "fail": 0, "skip": 0}
    for name in files:
        path = Path(name)
        results, missing = parse(path)
        if missing:
            results[""] = Result("the stage itself", "fail", f"{missing}, see {path}")
        for result in results.values():
            counts[result.outcome] += 1
            if result.outcome != "pass":
                print(f"{result.outcome.upper()}: {path.stem}: {result.name}"
                      + (f" ({result.note})" if result.note else ""))
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    return 1 if counts["fail"] or not counts["pass"] else 0


def kunit(directory):
    """The cases of a suite are the results one level (4 spaces) deep."""
    lines = []
    for path in sorted(Path(directory).glob("*.ktap")):
        cases = [line[4:] for line in path.read_text(errors="replace").splitlines()
                 if re.match(r"^ {4}(not )?ok ", line)]
        if not cases:
            lines.append(("not ok", path.stem, " # the suite has no result"))
        for case in cases:
            match = RESULT.match(case)
            lines.append(("not ok" if match["not"] else "ok",
                          f"{path.stem}.{match['id']}",
                          f" # {match['note']}" if match["note"] else ""))
    print("TAP version 13")
    if not lines:
        print("Bail out! the Rust module left no KUnit results")
        return 1
    print(f"1..{len(lines)}")
    for number, (state, name, note) in enumerate(lines, 1):
        print(f"{state} {number} - {name}{note}")
    return 0


def main():
    if len(sys.argv) > 2 and sys.argv[1] == "summary":
        return summary(sys.argv[2:])
    if len(sys.argv) == 3 and sys.argv[1] == "kunit":
        return kunit(sys.argv[2])
    return __doc__


if __name__ == "__main__":
    sys.exit(main())
