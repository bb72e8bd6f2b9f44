#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Report what the checks of a machine found (tests/hw-check/check.sh).

usage: report.py DIR

DIR has what check.sh left there, and gets report.json and report.txt, which is printed as
well. Fails if anything has failed on the Rust MMU that does not fail on the C MMU.

There is nothing in it that tells whose machine it is: the processor's model, the kernel's
version and parameters of KVM, and what the checks found.
"""
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import tap

SPLAT = re.compile(r"WARNING:|BUG:|BUG at|Oops|general protection|INFO: task|"
                   r"rcu:.*(stall|detected)|UBSAN|Kernel panic|unable to handle|"
                   r"soft lockup|Call Trace:|KVM_BUG")
CPU = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode")
CUT_OFF = re.compile(r"not run: cut off after (\d+) seconds")
TIME = re.compile(r"time=([\d.]+)s")
FLAGS = ("svm", "npt", "vmcb_clean", "flushbyasid", "decodeassists", "vmx", "ept", "vpid",
         "ept_ad", "tdp_mmu", "pcid", "invpcid", "pdpe1gb", "la57", "hypervisor")
# "bits" is Rust that finds writes by D bits.
MMUS = ("c", "rust", "bits")
NAMES = {"c": "C", "rust": "Rust", "bits": "Rust, D bits"}


def machine(directory):
    """What was tested, on what."""
    cpu, flags = {}, set()
    for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in CPU:
            cpu[key] = value
        if key in ("flags", "vmx flags"):
            flags |= set(value.split())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True,
                          check=False).stdout.split("\n", 1)[0]
    facts = {"cpu": cpu, "flags": [flag for flag in FLAGS if flag in flags],
             "processors": os.cpu_count(), "memory_mib": int(memory[1]) // 1024,
             "kernel": os.uname().release, "kernel_version": os.uname().version,
             "qemu": qemu, "commit": os.environ.get("lab_commit", "unknown"),
             "date": os.environ.get("lab_date", "unknown"), "mmu": {}}
    for mmu in MMUS:
        path = directory / f"parameters.{mmu}"
        if not path.exists():
            continue
        parameters = dict(line.rsplit("/sys/module/", 1)[-1].replace("/parameters/", ".")
                          .split(":", 1) for line in path.read_text().splitlines())
        facts["mmu"][mmu] = {"build": (directory / f"build-id.{mmu}").read_bytes().hex(),
                             "parameters": parameters}
    return facts


def steps(directory):
    """{name: (status, seconds, the last line)} of what was carried out."""
    result = {}
    for line in (directory / "steps").read_text().splitlines():
        name, status, seconds, *last = line.split(" ", 3)
        result[name] = {"status": status, "seconds": int(seconds), "last": "".join(last)}
    return result


def probes(directory, mmu):
    """{name: what a probe found}, in their order."""
    result = {}
    path = directory / f"tlb.{mmu}.log"
    for line in path.read_text().splitlines() if path.exists() else ():
        words = line.split("\t")
        if len(words) != 5:
            continue
        kind, name, n, of, text = words
        result[name] = {"kind": kind, "n": float(n),
                        "of": int(of) if kind != "value" else of, "text": text}
    return result


def bench(directory, mmu):
    """{operation: {counter: median}} and what is not counted here."""
    samples, missing = {}, []
    for path in sorted(directory.glob(f"bench.{mmu}.*.log")):
        for line in path.read_text().splitlines():
            if line.startswith("# "):
                missing.append(line[2:])
            elif match := re.fullmatch(r"(\S+) (\d+)((?: [a-z-]+=\d+)*)", line):
                row = samples.setdefault(match[1], {})
                row.setdefault("ns", []).append(int(match[2]))
                for word in match[3].split():
                    name, count = word.split("=")
                    row.setdefault(name, []).append(int(count))
    return ({name: {what: statistics.median(of) for what, of in row.items()}
             for name, row in samples.items()}, sorted(set(missing)))


def selftests(directory):
    """{MMU: {test: (outcome, note)}}, and why an MMU's are not complete."""
    found, missing = {}, {}
    for mmu in MMUS:
        path = directory / "selftests" / f"{mmu}.tap"
        if not path.exists():
            continue
        results, why = tap.parse(path)
        found[mmu] = {name: (one.outcome, one.note) for name, one in results.items()}
        if why:
            missing[mmu] = why
    return found, missing


def soaks(directory):
    """[(MMU, backend, result of the scenario)]"""
    found = []
    for mmu in MMUS:
        for path in sorted((directory / f"soak.{mmu}").glob("*.json")):
            for result in json.loads(path.read_text())["results"]:
                result.pop("timeline", None)
                found.append((mmu, path.stem, result))
    return found


def kernel_reports(directory):
    return [f"{path.name}: {line}" for path in sorted(directory.glob("dmesg.*"))
            for line in path.read_text().splitlines() if SPLAT.search(line)]


class Judge:
    """What failed, by whether it fails on the Rust MMU alone."""

    def __init__(self, data):
        self.failed, self.noted = [], []
        self.steps(data["steps"], {f"soak.{mmu}.{backend}" for mmu, backend, _ in data["soak"]})
        for mmu in MMUS:
            for name, one in data["tlb"].get(mmu, {}).items():
                if one["kind"] == "must" and one["n"] != one["of"]:
                    self.add(mmu, f"{name}: {one['text']}: {one['n']:.0f} of {one['of']}")
        self.tests(data["selftests"])
        for mmu, backend, result in data["soak"]:
            if result["status"] != "pass":
                self.add(mmu, f"migrations, {backend}: {result.get('reason')}")
        for line in data["kernel_reports"]:
            self.failed.append(f"the kernel reports: {line}")

    def add(self, mmu, text):
        (self.noted if mmu == "c" else self.failed).append(f"{NAMES[mmu]}: {text}")

    def steps(self, found, reported):
        for name, one in found.items():
            kind, *rest = name.split(".")
            mmu = rest[0] if rest else "rust"
            if one["status"] == "skip":
                self.noted.append(f"{name}: not run, {one['last'] or 'no time was left'}")
            elif one["status"] == "124":
                self.add(mmu, f"{name}: does not end")
            elif one["status"] == "1" and (kind in ("tlb", "selftests") or name in reported):
                # What has failed is told by its own results.
                pass
            elif one["status"] != "0":
                self.add(mmu, f"{name}: status {one['status']}, {one['last']}")

    def tests(self, found):
        for name, (outcome, note) in found.get("rust", {}).items():
            other, other_note = found.get("c", {}).get(name, ("none", ""))
            cut, took = CUT_OFF.match(note), TIME.search(other_note)
            # A slow machine has too little time for some tests, on both MMUs.
            if outcome == "skip" and other == "pass" and cut and took and \
                    int(cut[1]) > 3 * float(took[1]) + 5:
                self.add("rust", f"{name}: does not end within {cut[1]} s, C within {took[1]}")
            if outcome == "fail" and not note.startswith("TODO"):
                text = f"{name}: {note}"
                if other == "fail":
                    self.noted.append(f"both: {text}")
                else:
                    self.add("rust", text)
        for name, (outcome, note) in found.get("c", {}).items():
            if outcome == "fail" and found.get("rust", {}).get(name, ("",))[0] != "fail" and \
                    not note.startswith("TODO"):
                self.noted.append(f"C: {name}: {note}")


def table(rows):
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join([str(row[0]).ljust(widths[0])] + [
            str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:])]).rstrip()


def shown(one):
    """What a probe found, in a cell."""
    if not one:
        return "-"
    if one["kind"] == "value":
        return f"{one['n']:,.1f}"
    if one["kind"] == "skip":
        return "not seen"
    if not one["of"]:
        return f"{one['n']:.0f} FAILED" if one["n"] else "none"
    cell = f"{one['n']:.0f} of {one['of']}"
    return cell if one["kind"] == "seen" or one["n"] == one["of"] else f"{cell} FAILED"


def tlb_lines(data):
    yield "TLB and page walker. 'must' is what the architecture or KVM promises, 'seen' what this"
    yield "processor does; both in the guest's own tables, where nothing else is said."
    mmus = [mmu for mmu in MMUS if data["tlb"].get(mmu)]
    names = dict.fromkeys(name for mmu in mmus for name in data["tlb"][mmu])
    rows = [["probe", "", *(NAMES[mmu] for mmu in mmus), ""]]
    for name in names:
        found = [data["tlb"][mmu].get(name) for mmu in mmus]
        one = next(one for one in found if one)
        unit = f"{one['of']} " if one["kind"] == "value" else ""
        rows.append([name, one["kind"], *(shown(one) for one in found), unit + one["text"]])
    width = max(len(row[-1]) for row in rows)
    for row in rows:
        row[-1] = row[-1].ljust(width)
    yield from table(rows)


def bench_lines(data):
    yield f"Bench: microseconds on the clock, medians; {data['bench_mib']} MiB in huge pages, " \
          "unless a name says 4k."
    mmus = [mmu for mmu in MMUS if data["bench"].get(mmu)]
    counters = dict.fromkeys(what for mmu in mmus for row in data["bench"][mmu].values()
                             for what in row if what != "ns")
    head = ["operation", *(NAMES[mmu] for mmu in mmus)]
    for what in counters:
        head += [f"{what} {NAMES[mmu]}" for mmu in mmus]
    rows = [head]
    for name in dict.fromkeys(name for mmu in mmus for name in data["bench"][mmu]):
        row = [data["bench"][mmu].get(name, {}) for mmu in mmus]
        cells = [f"{one['ns'] / 1000:,.1f}" if one else "-" for one in row]
        for what in counters:
            cells += [f"{one[what]:,.0f}" if what in one else "-" for one in row]
        rows.append([name, *cells])
    yield from table(rows)
    for why in data["not_counted"]:
        yield f"  {why}"


def selftest_lines(data):
    for mmu, results in data["selftests"].items():
        counts = {kind: sum(one[0] == kind for one in results.values())
                  for kind in ("pass", "fail", "skip")}
        yield (f"Selftests, {NAMES[mmu]}: {counts['pass']} passed, {counts['fail']} failed, "
               f"{counts['skip']} skipped")
        # What has no time left says the same of each.
        alike = {}
        for name, (outcome, note) in results.items():
            if outcome != "pass":
                alike.setdefault((outcome, note), []).append(name)
        for (outcome, note), names in alike.items():
            yield f"  {outcome} {', '.join(names)}: {note}"
        if why := data["selftests_missing"].get(mmu):
            yield f"  not complete: {why}"


def soak_lines(data):
    yield "Live migrations there and back, all memory compared each time, and some cancelled:"
    if data["soak_slow"] != 1:
        yield f"  This machine is slow: the guest writes {data['soak_slow']} times more rarely."
    rows = [["MMU, memory", "outcome", "migrations", "cancelled", "pages compared",
             "pages checked by the guest", "longest stall [us]", "downtime [us]"]]
    for mmu, backend, result in data["soak"]:
        stall = max((one["max_us"] for one in result.get("phases", {}).values()), default=0)
        rows.append([f"{NAMES[mmu]}, {backend}", result["status"],
                     result.get("migrations", "-"), result.get("cancelled", "-"),
                     result.get("compared", 0), result.get("pages", 0), f"{stall:,.0f}",
                     result.get("downtime_us", "-")])
    yield from table(rows)


def text(data):
    facts, cpu = data["machine"], data["machine"]["cpu"]
    yield "Hardware check of KVM's MMU in Rust"
    yield ""
    yield f"{cpu.get('model name')} (family {cpu.get('cpu family')}, model {cpu.get('model')}, " \
          f"stepping {cpu.get('stepping')}, microcode {cpu.get('microcode')})"
    yield f"{facts['processors']} processors, {facts['memory_mib']} MiB, {' '.join(facts['flags'])}"
    yield f"Linux {facts['kernel']} {facts['kernel_version']}; {facts['qemu']}"
    yield f"commit {facts['commit']}, {facts['date']}"
    for mmu, one in facts["mmu"].items():
        yield f"{NAMES[mmu]}: kvm.ko {one['build'][-40:]}"
    if "hypervisor" in facts["flags"]:
        yield "This is a virtual machine: what is said of the TLB is what its host makes of it."
    yield ""
    if data["failed"]:
        yield f"{len(data['failed'])} FAILED:"
        yield from (f"  {line}" for line in data["failed"])
    else:
        yield "Nothing has failed on the MMU in Rust."
    if data["noted"]:
        yield "Also:"
        yield from (f"  {line}" for line in data["noted"])
    for part in (tlb_lines, bench_lines, selftest_lines, soak_lines):
        yield ""
        yield from part(data)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    tests, missing = selftests(directory)
    benches = {mmu: bench(directory, mmu) for mmu in MMUS}
    data = {"machine": machine(directory), "steps": steps(directory),
            "tlb": {mmu: probes(directory, mmu) for mmu in MMUS},
            "bench": {mmu: benches[mmu][0] for mmu in MMUS},
            "bench_mib": int((directory / "bench.mib").read_text()),
            "soak_slow": int((directory / "soak.slow").read_text()),
            "not_counted": sorted(set(benches["c"][1] + benches["rust"][1])),
            "selftests": tests, "selftests_missing": missing, "soak": soaks(directory),
            "kernel_reports": kernel_reports(directory)}
    judge = Judge(data)
    data["failed"], data["noted"] = judge.failed, judge.noted
    # What did not run has not passed; D bits need some that KVM uses.
    if not data["tlb"]["bits"] and data["steps"].get("tlb.bits", {}).get("status") != "skip":
        data["failed"].append(f"{NAMES['bits']}: tlb has no result")
    for kind in ("tlb", "bench"):
        if not data[kind].get("rust"):
            data["failed"].append(f"Rust: {kind} has no result")
    if not any(outcome != "skip" and not name.startswith("kvm-")
               for name, (outcome, _) in tests.get("rust", {}).items()):
        data["failed"].append("Rust: no selftest has a result")
    if not any(mmu == "rust" for mmu, _, _ in data["soak"]):
        data["failed"].append("Rust: no migration has a result")
    (directory / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = "\n".join(text(data)) + "\n"
    (directory / "report.txt").write_text(lines)
    print(lines, end="")
    return 1 if data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
