#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What 'make test-mutants' has found, as a table for results/mutants.md.

usage: run.sh | report.py | into.py results/mutants.md mutants

Reads the TAP of run.sh, or those of several runs one after the other, and what the planted
bugs are from their patches.
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


def results(tap):
    """{bug: (outcome, text, commit)} in a TAP or several, of which the last one counts."""
    found, commit = {}, "unknown"
    for line in tap:
        if line.startswith("# commit "):
            commit = line.removeprefix("# commit ").strip()
        elif match := RESULT.match(line):
            outcome, name, text = match.groups()
            found[name] = (outcome, text, commit)
    return found


def on_commits(bugs):
    """What was run on which commit: that of most bugs, and what was on another."""
    by_commit = {}
    for bug, (_, _, commit) in bugs.items():
        by_commit.setdefault(commit, []).append(f"`{bug}`")
    most, *others = sorted(by_commit, key=lambda commit: -len(by_commit[commit]))
    return "; ".join([f"On commit {most}"] + [f"{', '.join(by_commit[commit])} on {commit}"
                                              for commit in others]) + "."


def report(tap):
    """The lines of the table for the lines of a TAP, or of several."""
    found = results(tap)
    without = {name: one for name, one in found.items() if name.startswith("no-bug/")}
    bugs = {name: found[name] for name in sorted(found.keys() - without.keys())}
    if not bugs:
        sys.exit("error: no bug in the TAP")
    lines = ["| bug | what | has to be found by | what that said |", "|---|---|---|---|"]
    for bug, (outcome, text, _) in bugs.items():
        what, found_by = head(bug)
        lines.append(f"| `{bug}` | {cell(what)} | {cell(found_by)} | "
                     f"{cell(evidence(text)) if outcome == 'ok' else '**not found**'} |")
    lines += ["", on_commits(bugs)]
    missing = sorted(set(planted()) - bugs.keys())
    if missing:
        lines.append("Not run: " + ", ".join(f"`{bug}`" for bug in missing) + ".")
    failed = [name.removeprefix("no-bug/") for name, one in without.items() if one[0] != "ok"]
    if without:
        lines.append(f"Without a bug, {len(without) - len(failed)} of the {len(without)} tests pass"
                     + (": all but " + ", ".join(failed) if failed else "") + ".")
    return lines


if __name__ == "__main__":
    print("\n".join(report(sys.stdin)))
