#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Live-migrate a guest between two QEMUs on this machine, in several ways.

usage: driver.py [-o SCENARIO]... [-s SCALE] [-t SECONDS] [--shared] [--ours THREADS]
                 BACKEND ROM LOGDIR

BACKEND is hugetlb or thp, ROM the guest (guest.c). What each scenario found
goes to LOGDIR/BACKEND.json, and one line of it to standard output. SECONDS is how
long the scenario "soak" goes on. With --shared the machine is used for other things,
too: no real-time priorities, and nothing is traced. --ours takes the QEMU of contrib/qemu,
and on the MMU in Rust has it split huge pages ahead in so many threads.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from illnesses import Illnesses
from scenarios import Scenarios


def names(cls):
    """The scenarios that a class has itself."""
    return [name.removeprefix("scenario_") for name in vars(cls) if name.startswith("scenario_")]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("-o", dest="only", action="append", choices=names(Scenarios) + names(Illnesses))
    parser.add_argument("-s", dest="scale", type=int, default=1)
    parser.add_argument("-t", dest="seconds", type=int, default=60)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--ours", dest="threads", type=int, default=0)
    parser.add_argument("backend", choices=("hugetlb", "thp"))
    parser.add_argument("rom")
    parser.add_argument("logdir")
    args = parser.parse_args()
    if not args.shared:
        Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1")
    build = Path("/sys/module/kvm/notes/.note.gnu.build-id").read_bytes().hex()
    test = Illnesses(args)
    results = []
    for name in args.only or names(Scenarios):
        result = test.run(name)
        results.append(result)
        print(f"{test.engine:4} {args.backend:7} {name:16} {result['status']:4} "
              f"{result.get('pages', 0):7} pages {result['seconds']:6.1f} s "
              f"{result.get('reason', '')}", flush=True)
        (test.logdir / f"{args.backend}.json").write_text(
            json.dumps({"engine": test.engine, "build": build, "backend": args.backend,
                        "results": results}))
    test.shut()
    shutil.rmtree(test.tmp)
    sys.exit(any(result["status"] == "fail" for result in results))


if __name__ == "__main__":
    main()
