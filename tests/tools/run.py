#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Test the tools that judge test results: they must fail when they should.

Prints TAP. Runs the scripts as they are run by tests/run.sh and the others.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SCRIPTS = TESTS.parent / "scripts"
LOG = """Populate memory time: 0.076886939s
Enabling dirty logging time: 0.{enable:09d}s

Iteration 1 dirty memory time: 0.038888576s
Iteration 1 get dirty log time: 0.001836772s
KVM_RUN 0 time: 0.070000000s
KVM_RUN 1 time: 0.030000000s
"""
END = "Disabling dirty logging time: 0.001865175s\n"
CONFIGS = {"legacy": "Y", "default": "Y", "legacy-noeager": "N", "default-noeager": "N"}


def tool(name, *args):
    """Run a tool; returns its exit status and all that it said."""
    done = subprocess.run([sys.executable, "-B", TESTS / name, *args], text=True,
                          env={**os.environ, "PYTHONPATH": str(TESTS)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout


def bench(directory, engine="rust", build="b", eager=None, end=END, failed=False,
          others=(), both=False, dirty_log="dirty_bits"):
    """The logs of a measured boot."""
    for side, eng, bld, enable, log_by in (
            ("c", "c", "a", 4000000, None), ("rust", engine, build, 1000000, "auto"),
            ("rust-bits", "rust", "b", 2000000, dirty_log)):
        (directory / side).mkdir()
        for config, page_split in CONFIGS.items():
            log = directory / side / f"{config}.1.log"
            log.write_text(LOG.format(enable=enable) + (end if side == "rust" else END))
            if eager and side == "rust":
                page_split = eager
            (directory / side / f"{config}.identity").write_text(
                f"engine={eng}\nbuild={bld}\neager_page_split={page_split}\ntdp_mmu=Y\n"
                + (f"dirty_log={log_by}\n" if log_by else ""))
    if failed:
        (directory / "rust/legacy.1.failed-1.log").write_text("exit status 254\n")
    for number, enable in enumerate(others, 2):
        (directory / f"rust/legacy.{number}.log").write_text(LOG.format(enable=enable) + END)
        if both:
            (directory / f"c/legacy.{number}.log").write_text(LOG.format(enable=4000000) + END)
    return tool("dirty_log_perf/report.py", directory, "title", directory / "out.json")


def table_tests(tmp):
    def case(**kwargs):
        directory = tmp / f"table{len(list(tmp.iterdir()))}"
        directory.mkdir()
        return bench(directory, **kwargs)

    status, out = case()
    yield "table: shows all sides and their ratios to C", \
        status == 0 and out.count("0.250") == 4 and out.count("0.500") == 4 and "4.000" in out
    yield "table: exact vCPU times replace the noticed ones", \
        "30.000" in out and "38.889" not in out
    status, out = case(engine="c")
    yield "table: refuses a Rust side that is not Rust", \
        status != 0 and "does not say it is Rust" in out
    status, out = case(build="a")
    yield "table: refuses the same module on both sides", \
        status != 0 and "the same module" in out
    status, out = case(eager="N")
    yield "table: refuses sides with different parameters", \
        status != 0 and "eager_page_split" in out
    status, out = case(dirty_log="auto")
    yield "table: refuses D bits that were not chosen", \
        status != 0 and "kvm.dirty_log is auto" in out
    status, out = case(end="")
    yield "table: refuses a test that did not finish", \
        status != 0 and "did not finish" in out
    yield "table: where runs overlap there is no ratio", "~" not in case()[1] and \
        any(line.split() == ["enable", "4.000", "3.000", "~", "2.000", "0.500"]
            for line in case(others=(3000000, 9000000), both=True)[1].splitlines())
    status, out = case(others=(3000000, 9000000))
    yield "table: of several runs, shows the median", \
        status == 0 and "3.000" in out and "0.750" in out
    status, out = case(failed=True)
    yield "table: says when a test needed another attempt", \
        status == 0 and "another attempt" in out


def tap_file(tmp, *lines, plan=None):
    path = tmp / f"tap{len(list(tmp.iterdir()))}"
    path.write_text(f"1..{len(lines) if plan is None else plan}\n"
                    + "".join(f"{line}\n" for line in lines))
    return path


def compare_tests(tmp):
    ok = "ok 1 - t # time=1s"
    bad = "not ok 1 - t # exit status 254"
    splat = "not ok 1 - t # kernel report: WARNING: x"
    todo = "not ok 1 - t # TODO fails on C too: why"
    skip = "ok 1 - t # SKIP no hardware"

    def compare(c, rust, *args, **kwargs):
        return tool("selftests/compare.py", *args, tap_file(tmp, c), tap_file(tmp, rust, **kwargs))

    yield "compare: pass on both passes", compare(ok, ok)[0] == 0
    yield "compare: skip on both skips", "# SKIP no hardware" in compare(skip, skip)[1]
    for name, c, rust in (("C passes, Rust fails", ok, bad), ("C fails, Rust passes", bad, ok),
                          ("C passes, Rust skips", ok, skip), ("C skips, Rust passes", skip, ok),
                          ("both fail, unexpectedly", bad, bad),
                          ("both fail as expected, Rust with a report", todo, splat)):
        yield f"compare: {name}: fails", compare(c, rust)[0] == 1
    yield "compare: both fail as expected passes", compare(todo, todo)[0] == 0
    better = "not ok 1 - t # TODO must pass on Rust only: why"
    yield "compare: Rust is better, as expected, passes", compare(better, ok)[0] == 0
    yield "compare: Rust should be better and is not: fails", compare(better, better)[0] == 1
    yield "compare: Rust should be better and is worse: fails", compare(ok, better)[0] == 1
    only = "ok 1 - t # SKIP is for the Rust MMU only: why (what it said)"
    yield "compare: Rust passes what C skips, as expected: passes, and is told", \
        compare(only, ok)[0] == 0 and "only: why" in compare(only, ok)[1]
    for name, c, rust in (("Rust skips, too", only, only), ("C passes", ok, only)):
        yield f"compare: a test for Rust only, {name}: fails", compare(c, rust)[0] == 1
    again = ("--rerun", tap_file(tmp, ok), tap_file(tmp, ok))
    status, out = compare(ok, bad, *again)
    yield "compare: a flake that is the same again passes, and is told", \
        status == 0 and "again, in one boot: both pass" in out and "exit status 254" in out
    yield "compare: a kernel report is not forgiven", compare(ok, splat, *again)[0] == 1
    yield "compare: a boot that broke off fails", compare(ok, ok, plan=2)[0] == 1
    yield "compare: a test without a result fails", \
        tool("selftests/compare.py", tap_file(tmp, ok, "ok 2 - u"), tap_file(tmp, ok))[0] == 1
    hung = tool("selftests/compare.py", tap_file(tmp, ok, "ok 2 - u"), tap_file(tmp, ok, plan=2))
    yield "compare: a hang is one failure, and what comes after it is named", \
        hung[0] == 1 and hung[1].count("not ok") == 1 and "u # SKIP not run" in hung[1]
    status, out = tool("selftests/compare.py", tap_file(tmp, "ok 1 - v", plan=2), tap_file(tmp, bad, plan=2))
    yield "compare: a failure on Rust counts, though C has hung before", \
        status == 1 and "not ok 4 - t" in out and "ok 3 - v # SKIP not run" in out
    late = "ok 1 - t # SKIP not run: no time is left"
    yield "compare: what there was no time for is skipped", \
        all(compare(*pair)[0] == 0 and "# SKIP not run" in compare(*pair)[1]
            for pair in ((ok, late), (late, ok), (late, late), (bad, late)))
    yield "compare: a failure on Rust counts, though there was no time for C", \
        compare(late, bad)[0] == 1
    halves = f"{tap_file(tmp, ok)},{tap_file(tmp, 'ok 1 - u')}"
    status, out = tool("selftests/compare.py", "--subset", halves, tap_file(tmp, "ok 1 - u"))
    yield "compare: a part is compared with its tests only", \
        status == 0 and "ok 2 - u" in out and "- t\n" not in out
    yield "compare: a part with a test that fails there only fails", \
        tool("selftests/compare.py", "--subset", halves, tap_file(tmp, "not ok 1 - u"))[0] == 1


def summary_tests(tmp):
    def summary(*files):
        status, out = tool("tap.py", "summary", *files)
        return status, out.splitlines()[-1]

    good = tap_file(tmp, "ok 1 - a", "ok 2 - b # SKIP why")
    yield "summary: counts", summary(good) == (0, "1 passed, 0 failed, 1 skipped")
    yield "summary: a failure fails", \
        summary(good, tap_file(tmp, "not ok 1 - a")) == (1, "1 passed, 1 failed, 1 skipped")
    yield "summary: a plan not carried out fails", \
        summary(tap_file(tmp, "ok 1 - a", plan=2)) == (1, "1 passed, 1 failed, 0 skipped")
    yield "summary: a stage that bailed out fails", \
        summary(tap_file(tmp, "ok 1 - a", "Bail out! x")) == (1, "1 passed, 1 failed, 0 skipped")
    yield "summary: a stage that left nothing fails", summary(tmp / "none")[0] == 1

    suites = tmp / "kunit"
    suites.mkdir()
    yield "kunit: no suite at all fails", "Bail out!" in tool("tap.py", "kunit", suites)[1]
    (suites / "s.ktap").write_text("KTAP version 1\n1..1\n    # Subtest: s\n    1..2\n"
                                   "    ok 1 one\n    not ok 2 two\nnot ok 1 s\n")
    out = tool("tap.py", "kunit", suites)[1]
    yield "kunit: cases are tests", "ok 1 - s.one" in out and "not ok 2 - s.two" in out


def stages_tests(tmp):
    """tests/run.sh, of which a stage fails before it has a plan."""
    scripts = {"tests/calibrate.sh": "", "scripts/in-root": 'exec "$@"',
               "tests/model/run.sh": 'seq 30 >&2; echo "error: it is broken" >&2; exit 3'}
    for name, text in scripts.items():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp / name).chmod(0o755)
    for source in (TESTS / "run.sh", TESTS / "tap.py", SCRIPTS / "lib.sh"):
        shutil.copy(source, tmp / source.parent.name)
    # What is killed has ended when run.sh goes on: the shell would say so then.
    done = subprocess.run(["timeout", "60", tmp / "tests/run.sh", "model"], text=True, check=False,
                          env={**os.environ, "LAB_PROGRESS": "0.05",
                               "BASH_FUNC_kill%%": '() { builtin kill "$@" && sleep 0.1; }'},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = done.stdout.splitlines()
    yield "run: a stage without a result fails, and the end of its log is shown once", \
        done.returncode == 1 and [out.count(line) for line in ("10", "30", "error: it is broken")] \
        == [0, 1, 1]
    yield "run: just before the summary, to which a line points", \
        out[-3] == "error: it is broken" and out[-1] == "0 passed, 1 failed, 0 skipped" and \
        any("model: 0 passed, 1 failed" in line and "before the summary" in line for line in out)
    yield "run: the shell says nothing of its own", "Terminated" not in done.stdout


BENCH = ("enable", "enable-again", "clear-first", "clear-all-dirty", "get-all-dirty", "get-clean",
         "disable", "disable-again", "write-recovered", "map-2m", "map-4k", "enable-4k",
         "disable-4k", "write-unlogged-4k", "age-4k", "zap-notifier-4k", "teardown-4k",
         "clear-empty", "free-recovered", "free-uncharged") + \
    tuple(f"{op}-{log}" for op in ("get", "get-manual", "clear")
          for log in ("four", "tenth", "random"))
# Of these it is measured only how long somebody waits.
LATE = ("map-1g", "enable-1g", "disable-1g")
# What is measured on AMD only.
NESTED = ("map-2m", "enable", "enable-both", "clear-first", "clear-all-dirty", "get-all-dirty",
          "disable", "gone-clear-first", "gone-clear-all-dirty", "map-4k", "enable-4k", "age-4k",
          "zap-notifier-4k", "teardown-4k")
# What C does not have.
AHEAD = tuple(f"ahead-{op}" for op in ("split", "again", "enable", "disable", "recover"))
BENCH_AMD = BENCH + tuple(f"nested-{op}" for op in NESTED) + \
    tuple(f"alias-{op}-{n}" for op in ("map", "split", "replace") for n in (1, 14, 200))


def bench_tests(tmp):
    def case(*rust, uncounted=0, stats=70, around=400, softirq=20):
        """64 MiB on the C MMU, and on one that takes @rust times as much, in a run each. With
        statistics of mmu_lock a hold takes @stats instructions more; with pages around a fault, a
        page takes @around; a callback takes @softirq for each table that it has a kworker free."""
        logs = tmp / f"bench{len(list(tmp.iterdir()))}"
        logs.mkdir()
        sides = [(mmu, op, int(factor * 3200000)) for mmu, factors in (("c", (1,)), ("rust", rust))
                 for factor in factors for op in BENCH_AMD + (AHEAD if mmu == "rust" else ())]
        sides += [(f"rust-stats-{on}", op, 32000000 + more * 64 * 256) for on, more in
                  (("N", 0), ("Y", stats)) for op in ("stats-fault", "stats-hold")]
        sides += [("rust-around-16", "stats-fault", around * 64 * 256)]
        (logs / "lines").write_text("".join(f"{mmu} 64 1 {op} {n}\n" for mmu, op, n in sides))
        (logs / "counts").write_text("".join(
            f"{n} {n // (10 if mmu == 'c' else 100)} {'1000 100' if mmu == 'c' else '1 0'} {n} {n}"
            + f" 1000 {n}" * 3 + (f" 1000 {n}\n" if mmu == "c" else f" 200 {softirq * 32} 1 {n}\n")
            for mmu, _op, n in sides[:len(sides) - uncounted]))
        late = [side for side in sides if side[0] in ("c", "rust")]
        late += [(mmu, op, int(factor * 3200000000))
                 for mmu, factor in (("c", 1), ("rust", rust[0])) for op in LATE]
        (logs / "late").write_text("".join(f"{mmu} 64 {y} {op} {n // 10}\n"
                                           for y in "YN" for mmu, op, n in late))
        status, out = tool("bench/report.py", "--tap", logs)
        return status, out, out.count("\nok "), out.count("\nnot ok ")

    better, same, worse = case(0.001), case(1), case(1.5)
    yield "bench: what is better everywhere passes", better[0] == 0 and better[3] == 0
    yield "bench: what is the same is no improvement", \
        same[2] > 0 and all(re.search(f"^not ok [0-9]+ - {name}", same[1], re.M)
                            for name in ("enabling protects", "CLEAR splits a huge page once"))
    noisy = case(1, 1.09, 1.09)
    yield "bench: what is worse in some runs only is no more", \
        bool(re.search("^ok [0-9]+ - map 2 MiB pages", noisy[1], re.M))
    yield "bench: what is worse fails", worse[2] <= same[2] and worse[3] > same[3]
    yield "bench: statistics that cost too much fail", case(0.001, stats=91)[3] == 1
    yield "bench: pages around a fault that save too little fail", case(0.001, around=800)[3] == 1
    yield "bench: callbacks that free fail", case(0.001, softirq=91)[3] == 2
    yield "bench: refuses counts that do not belong to the lines", \
        case(0.1, uncounted=3)[0] != 0


# As RCU's tracepoints are shown, between functions that are traced. A time is in ticks.
TRACE = """
  ksoftirqd/0-15 [000] ..s1. 1000: rcu_invoke_callback: rcu_preempt rhp=1 func=file_free_rcu
  ksoftirqd/0-15 [000] ..s1. 1100: rcu_invoke_callback: rcu_preempt rhp=1 func=tdp_mmu_free_sp_rcu_callback [kvm]
  qemu-77        [001] ..s1. 1150: rcu_invoke_callback: rcu_preempt rhp=1 func=file_free_rcu
  qemu-77        [000] ..... 1200: vfree <-kvm_vm_ioctl
  ksoftirqd/0-15 [000] ..s1. 1250: rcu_invoke_callback: rcu_preempt rhp=1 func=_RINvNtC1_8rust_mmu3rcu8callbackE [kvm]
  ksoftirqd/0-15 [000] ..s1. 1300: rcu_batch_end: rcu_preempt CBs-invoked=3 idle=....
  ksoftirqd/0-15 [000] ..s1. 1400: rcu_invoke_callback: rcu_preempt rhp=1 func=tdp_mmu_free_sp_rcu_callback [kvm]
  ksoftirqd/0-15 [000] ..s1. 1490: rcu_invoke_callback: rcu_preempt rhp=1 func=free_buffer [kvm]
"""


def callbacks(trace):
    """What tests/migrate/tracing.py finds there; it is imported as the driver does."""
    program = "import json, sys, tracing; print(json.dumps(tracing.in_callbacks(sys.stdin.read())))"
    return json.loads(subprocess.run([sys.executable, "-B", "-c", program], cwd=TESTS / "migrate",
                                     input=trace, text=True, stdout=subprocess.PIPE, check=True).stdout)


def migrate_tests(tmp):
    """The table of what QEMU has split ahead."""
    ahead = {"threads": 2, "total": 1 << 27, "split": 1 << 27, "recovered": 1 << 27, "setup_ms": 9,
             "before": [40, 31, 0], "logging": [15912, 0, 0], "cancelled": [40, 31, 0]}

    def run(split_ahead, ran=("c", "rust")):
        logs = tmp / f"migrate{len(list(tmp.iterdir()))}"
        for side in ran:
            (logs / "hugetlb-1" / side).mkdir(parents=True)
            result = {"scenario": "s", "title": "a title", "status": "pass", "pages": 7}
            if side == "rust" and split_ahead:
                result["split_ahead"] = split_ahead
            (logs / "hugetlb-1" / side / "hugetlb.json").write_text(json.dumps(
                {"engine": side, "build": side, "backend": "hugetlb", "results": [result]}))
        (logs / "hugetlb-1/wanted").write_text("c rust\nhugetlb\ns\n")
        (logs / "parts").write_text("hugetlb-1\n")
        page = logs / "page.md"
        page.write_text("".join(f"<!-- {name}: {end} -->\n" for name in ("migrate", "migrate-ours")
                                for end in ("begin", "end")))
        return *tool("migrate/report.py", page, logs), page.read_text()

    status, out, page = run(ahead)
    yield "migrate: shows what was split ahead, and where", status == 0 and \
        "| 2 | 100% | 100% | 9 | 40, 31 | 15912, 0 | 40, 31 |" in out and \
        page.startswith("<!-- migrate: begin -->\n<!-- migrate: end -->")
    yield "migrate: what was not cancelled has no pages then", \
        "| 9 | 40, 31 | 15912, 0 | - |" in run({k: v for k, v in ahead.items() if k != "cancelled"})[1]
    status, out, page = run(None)
    yield "migrate: without it there is no such table", status == 0 and "threads" not in out and \
        page.endswith("<!-- migrate-ours: begin -->\n<!-- migrate-ours: end -->\n")
    yield "migrate: a side that has not run fails", run(ahead, ("rust",))[0] == 1
    yield "migrate: tells callbacks that free tables from others, and rows of them", \
        callbacks(TRACE) == {"in_callbacks": [[1100, 1250], [1250, 1300], [1400, 1490]],
                             "in_rows_of_callbacks": [[1100, 1300], [1400, 1490]]}

    def modes(sides):
        logs = tmp / f"modes{len(sides)}"
        page = {"rust": 1.6, "rust-bits": 0.2}
        for part, name in (("meter", "completes"), ("writer", "fast_writer")):
            for side in sides:
                directory = logs / f"modes-{part}" / side
                directory.mkdir(parents=True)
                meter = {"p50_us": 1, "p99_us": 2, "max_us": 3}
                result = {"scenario": name, "title": name, "status": "pass", "rounds": 4,
                          "migration_ms": 5000, "downtime_us": 600, "throttle_percent": 30,
                          "rates": [{"written_mb_s": 400, "sent_mb_s": 9}, {"written_mb_s": 20, "sent_mb_s": 8}],
                          "phases": {"before": meter | {"page_us": 0.2},
                                     "pre-copy": meter | {"page_us": page[side]}}}
                (directory / "hugetlb.json").write_text(json.dumps(
                    {"engine": "rust", "build": "b", "backend": "hugetlb", "results": [result]}))
            (logs / f"modes-{part}" / "wanted").write_text(f"rust rust-bits\nhugetlb\n{name}\n")
        return tool("migrate/report.py", "--modes", logs / "modes-meter", logs / "modes-writer")

    status, out = modes(("rust", "rust-bits"))
    yield "migrate: compares ways to find writes", status == 0 and \
        "| completes | share of the writer's time in pre-copy that logging takes | 88% | 0% |" in out \
        and "| fast_writer | the guest is stopped for [%] | 30 | 30 |" in out \
        and "| fast_writer | the guest writes, not throttled [MB/s] | 400 | 400 |" in out \
        and "| fast_writer | throttled as far as it had to be [MB/s] | 20 | 20 |" in out \
        and "| fast_writer | is sent then [MB/s] | 8 | 8 |" in out
    yield "migrate: and fails if one has not run", modes(("rust",))[0] == 1


LOCK_STATS = """mmu_lock_stats Y
vm write_wait count=2 ns=5000 max_ns=3000 hist=2048:1,4096:1,
vm hold_clear count=1 ns=40000000 max_ns=40000000 hist=67108864:1,
vcpu0 lock_wait count=3 ns=90 max_ns=60 hist=16:2,64:1,
vcpu0 invalidate_retries count=7
vcpu0 wait_for_clear ns=90
vcpu1 lock_wait count=0 ns=0 max_ns=0 hist=
"""


def hist(*buckets):
    """A histogram of times. hist(4, 2): two of less than 16 ns, and not less than 8."""
    counts = dict(zip(buckets[::2], buckets[1::2]))
    return [counts.get(n, 0) for n in range(32)]


def lock_times(count, ns, max_ns, *buckets):
    """A time in the JSON of mmu_lock_stat."""
    return {"count": count, "ns": ns, "max_ns": max_ns, "hist": hist(*buckets)}


# Whoever reads it relies on these names, on their order, and on what is a number.
LOCK_STATS_JSON = {
    "vm": {"write_wait": lock_times(2, 5000, 3000, 11, 1, 12, 1),
           "hold_clear": lock_times(1, 40000000, 40000000, 26, 1)},
    "vcpu0": {"lock_wait": lock_times(3, 90, 60, 4, 2, 6, 1),
              "invalidate_retries": {"count": 7}, "wait_for_clear": {"ns": 90}},
    "vcpu1": {"lock_wait": lock_times(0, 0, 0)}}


def prometheus_faults(text):
    """What is wrong with a text in Prometheus' format, as promtool would see it."""
    types, helped, series, counts = {}, set(), {}, {}
    for line in text.splitlines():
        if match := re.fullmatch(r"# HELP (\w+) \S.*", line):
            if match[1] in helped:
                yield f"explained twice: {line}"
            helped.add(match[1])
            continue
        if match := re.fullmatch(r"# TYPE (\w+) (counter|gauge|histogram)", line):
            if match[1] in types or match[1] not in helped:
                yield f"not once, after its HELP: {line}"
            types[match[1]] = match[2]
            last = match[1]
            continue
        match = re.fullmatch(r'(\w+)(?:\{((?:\w+="[^"\\]*",?)+)\})? ([0-9.e+-]+)', line)
        if not match:
            yield f"not understood: {line}"
            continue
        name, value = match[1], float(match[3])
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        family = re.sub("_(bucket|sum|count)$", "", name) if name not in types else name
        if family != last or family == name and types[name] == "histogram":
            yield f"not below its TYPE: {line}"
        if types.get(family) == "counter" and not name.endswith("_total"):
            yield f"a counter that is not called _total: {line}"
        if (key := (name, tuple(sorted(labels.items())))) in series:
            yield f"twice: {line}"
        series[key] = value
        if name.endswith("_bucket"):
            counts.setdefault((family, labels.get("vcpu")), []).append((float(labels["le"]), value))
        elif types.get(family) == "histogram" and name.endswith("_count"):
            buckets = counts.get((family, labels.get("vcpu")), [])
            if not buckets or buckets[-1] != (float("inf"), value) or any(
                    low[0] >= high[0] or low[1] > high[1] for low, high in zip(buckets, buckets[1:])):
                yield f"buckets that do not grow up to the count: {line}"


def lock_stat_tests(tmp):
    """tools/kvm/mmu_lock_stat, on what debugfs and QEMU say."""
    def run(*args):
        return tool("../tools/kvm/mmu_lock_stat/mmu_lock_stat", *args)

    def serve():
        cpus = [{"cpu-index": n, "qom-path": f"/machine/cpu{n}"} for n in range(2)]
        answers = [{"QMP": {}}, {"return": {}}, {"return": cpus}, {"return": [
            {"provider": "kvm", "stats": [
                {"name": "mmu_hold_clear_ns", "value": 40000000},
                {"name": "mmu_hold_clear_max_ns", "value": 40000000},
                # As QEMU lists it: from its end.
                {"name": "mmu_hold_clear_hist", "value": [0] * 5 + [1] + [0] * 26},
                # The longest time is in a bucket that is used either way round.
                {"name": "mmu_hold_fault_ns", "value": 3300000},
                {"name": "mmu_hold_fault_max_ns", "value": 1500000},
                {"name": "mmu_hold_fault_hist", "value": hist(10, 2, 21, 419)},
                {"name": "pages_4k", "value": 3}]}]}, {"return": [
            # As QEMU lists them: the last vCPU first.
            {"provider": "kvm", "qom-path": "/machine/cpu1", "stats": [
                {"name": "mmu_invalidate_retries", "value": 3}]},
            {"provider": "kvm", "qom-path": "/machine/cpu0", "stats": [
                {"name": "mmu_invalidate_retries", "value": 7},
                {"name": "mmu_wait_for_clear_ns", "value": 90}]}]}]
        connection = server.accept()[0]
        for answer in answers:
            connection.sendall(json.dumps(answer).encode() + b"\n")
            if answer is not answers[-1]:
                connection.recv(4096)
        connection.recv(4096)

    def go_on():
        """CLEAR twice, for which a vCPU waits, and the end of logging."""
        clear = re.sub("hold_clear.*", "hold_clear count=3 ns=100000000 max_ns=50000000 "
                       "hist=67108864:3,", LOCK_STATS)
        clear = clear.replace("wait_for_clear ns=90", "wait_for_clear ns=1000090")
        for text in (clear, clear + "vm hold_disable count=1 ns=7 max_ns=7 hist=8:1,\n"):
            time.sleep(0.4)
            (tmp / "new").write_text(text)
            (tmp / "new").rename(tmp / "stats")

    (tmp / "stats").write_text(LOCK_STATS)
    code, out = run(tmp / "stats", "json")
    by_file = json.loads(out)
    yield "mmu_lock_stat: reads histograms", code == 0 and \
        by_file["vcpu0"]["lock_wait"]["hist"][4:7] == [2, 0, 1] and \
        by_file["vm"]["hold_clear"]["ns"] == 40000000
    yield "mmu_lock_stat: its JSON is what it always was", \
        out == json.dumps(LOCK_STATS_JSON, indent=1) + "\n"
    code, out = run(tmp / "stats", "prometheus")
    yield "mmu_lock_stat: Prometheus' histograms are cumulative", code == 0 and all(
        f"kvm_mmu_lock_wait_seconds_{line}\n" in out for line in (
            'bucket{vcpu="0",le="1.6e-08"} 2', 'bucket{vcpu="0",le="6.4e-08"} 3',
            'bucket{vcpu="0",le="+Inf"} 3', 'count{vcpu="0"} 3', 'sum{vcpu="0"} 0.000000090'))
    yield "mmu_lock_stat: Prometheus' format is valid", not list(prometheus_faults(out))
    lines = out.splitlines()
    yield "mmu_lock_stat: what is not valid would be noticed", all(
        list(prometheus_faults("\n".join(broken))) for broken in (
            [line for line in lines if not line.startswith("# TYPE kvm_mmu_lock_wait_seconds ")],
            [line for line in lines if not line.startswith("# HELP")],
            lines + [lines[-1]], [line.replace('le="+Inf"} 3', 'le="+Inf"} 2') for line in lines],
            [line.replace("_total", "") for line in lines],
            [line.replace('"', "") for line in lines]))
    thread = threading.Thread(target=go_on)
    thread.start()
    code, out = run("-s", "1.5", tmp / "stats", "record", tmp / "vm.svg")
    thread.join()
    picture = (tmp / "vm.svg").read_text()
    yield "mmu_lock_stat: draws what it has recorded, and when writes were logged", \
        code == 0 and picture.rstrip().endswith("</svg>") and ">logged<" in picture and \
        ">clear 1 ms<" in picture and ">50 ms, 2<" in picture
    code, out = run("-i", "0.1", tmp / "stats", "table", tmp / "table.svg")
    yield "mmu_lock_stat: draws the table of a terminal", code == 0 and \
        ">vcpu0      0.00%" in (tmp / "table.svg").read_text()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp / "qmp"))
    server.listen()
    thread = threading.Thread(target=serve)
    thread.start()
    code, out = run("--qmp", tmp / "qmp", "json")
    thread.join()
    by_qmp = json.loads(out)
    yield "mmu_lock_stat: QEMU's statistics are those of the file", code == 0 and \
        by_qmp["vcpu1"]["invalidate_retries"]["count"] == 3 and \
        by_qmp["vm"]["hold_clear"] == by_file["vm"]["hold_clear"] and \
        by_qmp["vm"]["hold_fault"]["hist"] == hist(10, 419, 21, 2) and by_qmp["vcpu0"] == {
            name: by_file["vcpu0"][name] for name in ("invalidate_retries", "wait_for_clear")}
    yield "mmu_lock_stat: says what it does not find", run("999999999")[0] == 1
    yield "mmu_lock_stat: refuses what it does not know", run(tmp / "stats", "show")[0] == 2


def matrix_tests(tmp):
    def run(name, mmu, *lines, commit="abc1234"):
        (tmp / "logs" / name).mkdir(parents=True, exist_ok=True)
        path = tmp / "logs" / name / f"{mmu}.tap"
        path.write_text(f"# mmu {mmu}\n# commit {commit}\n# date 2026-01-02\n"
                        + "".join(f"{line}\n" for line in lines))
        return path

    def rows():
        status, out = tool("selftests/matrix.py", tmp / "logs")
        return out if status == 0 else ""

    (tmp / "logs").mkdir()
    run("a", "c", "ok 1 - unsaid")
    yield "matrix: what does not say where it ran is left out", not rows()
    run("a", "c", "# kernel lab", "# machine amd", "ok 1 - t", "# machine shadow", "ok 2 - u")
    run("a", "rust", "# kernel lab", "# machine amd", "not ok 1 - t # why")
    out = rows()
    yield "matrix: both MMUs in a cell, and what did not run", \
        "t     ok/FAIL a  no run" in out and "ok/- a\n" in out
    yield "matrix: a failure is told with its reason", \
        any(line.split() == ["t", "AMD", "normal", "rust", "why"] for line in out.splitlines())
    yield "matrix: what did not run says so", out.count("No run.") == 5
    (tmp / "logs" / "alloc-sites").mkdir()
    (tmp / "logs" / "alloc-sites" / "sites").write_text(
        "# 2026-01-02 abc1234\ntimes  allocation site\n   32  fill: alloc\n"
        "    0  load: alloc (2)  (not here)\n2 sites, 1 failed\n")
    out = rows()
    yield "matrix: allocation sites, and why one did not fail", \
        "2 sites, 1 failed.\nRun on 2026-01-02 abc1234" in out and \
        any(line.split("  ") == ["0", "", "", "load: alloc (2)", "not here"]
            for line in out.splitlines())
    run("b", "rust", "# kernel lab", "# machine amd", "ok 1 - t", commit="later-dirty")
    yield "matrix: the last run counts", "t     ok/ok a,b" in rows()
    run("bb", "rust", "# kernel lab", "# machine amd", "ok 1 - t # SKIP x", commit="later-still")
    yield "matrix: what is skipped does not hide a run", "t     ok/ok a,b" in rows()
    run("d", "rust", "# modules plant-bug", "# kernel lab", "# machine amd", "not ok 1 - t")
    yield "matrix: what ran with other modules is left out", "t     ok/ok a,b" in rows()
    run("c", "rust", "# kernel kasan", "# machine intel-pml", "not ok 1 - t # TODO known")
    yield "matrix: what is expected to fail is no failure", \
        "-/xfail a" in rows() and "TODO" not in rows()


KERNEL_TYPES = """struct list { struct list *next; };
union word { long whole; struct { int low, high; }; };
struct kvm { int users; struct list list; union word word; char name[4]; };
struct stats { long reads; };
struct holder { struct stats stats; int id; };
struct kvm *vm;
struct holder *held;
"""


def btf_tests(tmp):
    def compile_c(name, text, base=None):
        source, made = tmp / f"{name}.c", tmp / f"{name}.ko"
        source.write_text(text)
        subprocess.run(["gcc", "-g", "-c", source, "-o", made], check=True)
        subprocess.run(["pahole", "-J", *(["--btf_base", base] if base else []), made],
                       check=True, env={**os.environ, "LLVM_OBJCOPY": "objcopy"})
        return made

    vmlinux = compile_c("vmlinux", KERNEL_TYPES)
    number = 0

    def module(old="", new="", more=""):
        nonlocal number
        number += 1
        made = compile_c(f"m{number}", KERNEL_TYPES.replace(old, new) + more, vmlinux)
        return tool(SCRIPTS / "package" / "btf.py", vmlinux, "--", made)

    status, out = module(more="struct own { struct kvm *vm; } own;")
    yield "btf: the same structures agree", status == 0 and "agree" in out
    status, out = module("int users;", "int users; long mine;")
    yield "btf: a member in between does not", status == 1 and "struct kvm in" in out
    status, out = module("int low, high;", "int high, low;")
    yield "btf: nor do others inside of an anonymous one", status == 1 and "union word in" in out
    status, out = module("char name[4]", "char name[8]")
    yield "btf: nor does another type", status == 1 and "name" in out
    status, out = module("char name[4];", "")
    yield "btf: nor does one with a member less", status == 1 and "nothing" in out
    yield "btf: members of our own may come last", \
        module("char name[4];", "char name[4]; long mine;")[0] == 0
    status, out = module("long reads;", "long reads, writes;")
    yield "btf: but not in what lies inside of others", status == 1 and "struct stats in" in out
    plain = tmp / "plain.ko"
    subprocess.run(["gcc", "-c", tmp / "vmlinux.c", "-o", plain], check=True)
    status, out = tool(SCRIPTS / "package" / "btf.py", vmlinux, "--", plain)
    yield "btf: a module without BTF is refused", status == 2 and "has no BTF" in out


def hw_check_tests(tmp):
    tlb = {"ok": "must\ta\t4\t4\tso\nseen\tb\t1\t9\tperhaps\n", "bad": "must\ta\t3\t4\tso\n"}
    soak = {"status": "pass", "migrations": 3, "cancelled": 1, "compared": 9, "pages": 9}
    number = 0

    def check(probed="ok", step="tlb.rust 0 9", status="ok", c="ok", note="x", c_note=None,
              result=None, dmesg="", mmu="rust", bits="ok", soaked=True):
        nonlocal number
        number += 1
        directory = tmp / str(number)
        for name in ("selftests", "soak.rust"):
            (directory / name).mkdir(parents=True)
        (directory / "bench.mib").write_text("64\n")
        (directory / "soak.slow").write_text("40\n")
        (directory / "steps").write_text(f"bench.rust.1 0 5 x\n{step}\n")
        (directory / f"tlb.{mmu}.log").write_text(tlb[probed])
        if bits:
            (directory / "tlb.bits.log").write_text(tlb[bits])
        (directory / "bench.rust.1.log").write_text("# cycles are not counted: no\n"
                                                    "enable 2000 instructions=77\nget 500\n")
        for side, state, said in (("c", c, c_note or note), ("rust", status, note)):
            (directory / "selftests" / f"{side}.tap").write_text(
                f"1..2\nok 1 - kvm-load\n{state} 2 - test # {said}\n")
        if soaked:
            (directory / "soak.rust" / "thp.json").write_text(
                json.dumps({"results": [{**soak, **(result or {})}]}))
        (directory / "dmesg.rust").write_text(dmesg)
        code, out = tool("hw-check/report.py", directory)
        made = directory / "report.json"
        return code, out, json.loads(made.read_text()) if made.exists() else {}

    code, out, data = check()
    yield "hw-check: all is well", code == 0 and "Nothing has failed" in out
    yield "hw-check: figures are in the report", data["bench"]["rust"]["enable"] == {
        "ns": 2000, "instructions": 77} and "cycles are not counted: no" in out
    code, out, _ = check("bad")
    yield "hw-check: a promise that is broken fails", code == 1 and "a: so: 3 of 4" in out
    code, out, _ = check(status="not ok", c="not ok")
    yield "hw-check: what fails on both is told", code == 0 and "both: test" in out
    yield "hw-check: what fails on Rust alone fails", check(status="not ok")[0] == 1
    code, out, _ = check(note="SKIP no time")
    yield "hw-check: nor is it enough that modules load", \
        code == 1 and "no selftest has a result" in out and "skip test: no time" in out
    cut = "SKIP not run: cut off after 20 seconds, its share of the time"
    hangs = "Rust: test: does not end within 20 s, C within 4.9"
    yield "hw-check: what hangs on Rust alone fails", \
        hangs in check(note=cut, c_note="time=4.9s")[2]["failed"]
    for c_note in (cut, "time=5.0s"):
        out = check(note=cut, c_note=c_note)[1]
        yield f"hw-check: not if it is '{c_note}' on C", \
            "skip test: not run: cut off" in out and "does not end" not in out
    yield "hw-check: a migration that fails does", check(result={"status": "fail"})[0] == 1
    code, out, _ = check(step="soak.rust skip 0 no time was left", soaked=False)
    yield "hw-check: nor are migrations that there was no time for a pass", \
        code == 1 and "soak.rust: not run, no time was left" in out and "no migration has" in out
    yield "hw-check: a program that is killed does", check(step="tlb.rust 139 9 x")[0] == 1
    yield "hw-check: migrations that end with an error do", \
        check(step="soak.rust.hugetlb 1 9 x")[0] == 1
    yield "hw-check: one that does not end does", check(step="soak.rust.thp 124 9 x")[0] == 1
    yield "hw-check: a bench that ends with an error does", check(step="bench.rust.2 1 9 x")[0] == 1
    yield "hw-check: what the kernel reports does", check(dmesg="[ 1.0] WARNING: at x\n")[0] == 1
    code, out, _ = check(mmu="c")
    yield "hw-check: what has no result does", code == 1 and "Rust: tlb has no result" in out
    code, out, _ = check(bits="bad")
    yield "hw-check: a promise that is broken by D bits fails", \
        code == 1 and "Rust, D bits: a: so: 3 of 4" in out
    code, out, _ = check(bits=None)
    yield "hw-check: D bits that were not tried do", code == 1 and "D bits: tlb has no result" in out
    yield "hw-check: but not where there are none", \
        check(bits=None, step="tlb.bits skip 0 x")[0] == 0


def main():
    number = failed = 0
    with tempfile.TemporaryDirectory() as name:
        for index, tests in enumerate((table_tests, compare_tests, summary_tests,
                                       stages_tests, bench_tests, matrix_tests,
                                       btf_tests, hw_check_tests, lock_stat_tests,
                                       migrate_tests)):
            tmp = Path(name) / str(index)
            tmp.mkdir()
            for what, passed in tests(tmp):
                number += 1
                failed += not passed
                print(f"{'ok' if passed else 'not ok'} {number} - {what}")
    print(f"1..{number}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
