#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What 'make test-mutants' has found, as a table for results/mutants.md.

usage: run.sh | report.py | into.py results/mutants.md mutants

Reads the TAP of run.sh, and what the planted bugs are from their patches.
"""
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
RESULT = re.compile(r"(ok|not ok) \d+ - (\S+) # (.*)")


def cell(text):
    """Text for a cell of a table."""
    return text.strip().replace("|", "\\|")


def head(bug):
    """What a bug is, and what has to find it."""
    lines = (HERE / f"{bug}.patch").read_text().splitlines()
    found_by = next(line for line in lines if line.startswith("Found by: "))
    return lines[1], found_by.removeprefix("Found by: ")


def planted():
    """The bugs that a test has to find."""
    return [path.stem for path in HERE.glob("*.patch") if "\nFound by: " in path.read_text()]


def evidence(text):
    """What the test said, without the time that it took and the place in its source."""
    text = text.removeprefix("found: ")
    match = re.match(r"not ok \d+ - \S+ (.*?)time=[\d.]+s: ?(.*)", text)
    if match:
        # What the kernel reported, or else what is in the log.
        report_of_kernel = re.search(r"kernel report: (.*?) ?\) *$", match[1])
        text = report_of_kernel[1] if report_of_kernel else match[2]
    elif re.match(r" *not ok \d+ \w+( |$)", text):
        # KUnit's suites.
        return ", ".join(f"`{name}`" for name in re.findall(r"not ok \d+ (\w+)", text))
    text = re.sub(r"^not ok \d+ -? ?", "", text)
    # What follows in the log.
    text = re.sub(r" (ok \d+ |vCPU \d+: |page 0x|Totals: ).*", "", text)
    return text.replace("==== Test Assertion Failure ==== ", "")


def report(tap):
    """The lines of the table for the lines of a TAP."""
    bugs, seen, without, commit = [], [], [], "unknown"
    for line in tap:
        if line.startswith("# commit "):
            commit = line.removeprefix("# commit ").strip()
        match = RESULT.match(line)
        if not match:
            continue
        outcome, name, text = match.groups()
        if name.startswith("no-bug/"):
            without.append((name.removeprefix("no-bug/"), outcome, text))
        else:
            seen.append(name)
            what, found_by = head(name)
            bugs.append(f"| `{name}` | {cell(what)} | {cell(found_by)} | "
                        f"{cell(evidence(text)) if outcome == 'ok' else '**not found**'} |")
    if not bugs:
        sys.exit("error: no bug in the TAP")
    failed = [name for name, outcome, _ in without if outcome != "ok"]
    lines = ["| bug | what | has to be found by | what that said |", "|---|---|---|---|", *bugs, "",
             f"On commit {commit}."]
    missing = sorted(set(planted()) - set(seen))
    if missing:
        lines.append("Not run: " + ", ".join(f"`{bug}`" for bug in missing) + ".")
    if without:
        lines.append(f"Without a bug, {len(without) - len(failed)} of the {len(without)} tests pass"
                     + (": all but " + ", ".join(failed) if failed else "") + ".")
    return lines


if __name__ == "__main__":
    print("\n".join(report(sys.stdin)))
