# SPDX-License-Identifier: GPL-2.0
"""A QEMU with one guest, as a scenario sees it."""
import json
import os
import select
import socket
import struct
import subprocess
import time
from pathlib import Path

from common import (
    CONTROL, COST, FIELDS, MAX_LATE, MIB, NR_FIELDS, NR_PHASES, NR_SAMPLED, PHASES, RAM, Failed,
    check, note)


# Where contrib/qemu/build.sh leaves it, as the guest sees it; what Debian has belongs to it.
OURS = ["/build/qemu/qemu-system-x86_64", "-L", "/usr/share/qemu"]


class Qemu:
    """A QEMU with one guest, and its QMP connection."""
    count = 0

    def __init__(self, test, incoming):
        Qemu.count += 1
        self.name = f"qemu{Qemu.count}"
        self.test = test
        self.path = test.tmp / f"{self.name}.qmp"
        # For others: a monitor talks to one at a time.
        self.monitors = [test.tmp / f"{self.name}.qmp{n}" for n in range(3)]
        self.events = []
        self.buffer = b""
        size = f"{RAM // MIB}M"
        if test.backend == "hugetlb":
            mem = (f"memory-backend-memfd,id=mem,size={size},hugetlb=on,hugetlbsize=2M,"
                   "share=on,prealloc=on")
        else:
            mem = f"memory-backend-ram,id=mem,size={size},prealloc=on"
        accel = "kvm" + test.accel
        maxmem, more = "1G", []
        if test.untouched_gib and not incoming:
            maxmem = f"{test.untouched_gib + 1}G"
            more = ["-object", f"memory-backend-ram,id=big,size={test.untouched_gib}G,reserve=off",
                    "-device", "pc-dimm,memdev=big"]
        args = [*(OURS if test.threads else ["qemu-system-x86_64"]), "-name", self.name,
                "-machine", "pc,memory-backend=mem", "-accel", accel, "-cpu", "host", "-smp", "2",
                "-m", f"{size},slots=2,maxmem={maxmem}", "-object", mem, *more, "-bios", test.rom,
                "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
                "-no-shutdown", "-S", *test.options,
                *(word for path in (self.path, *self.monitors)
                  for word in ("-qmp", f"unix:{path},server=on,wait=off"))]
        if incoming:
            args += ["-incoming", "defer"]
        environment = dict(os.environ)
        self.fifos = None
        if test.ahead:
            self.fifos = [f"{self.path}.{way}" for way in ("in", "out")]
            for fifo in self.fifos:
                os.mkfifo(fifo)
            environment |= {"SPLIT_AHEAD": str(self.path),
                            "LD_PRELOAD": "/build/migrate/split_ahead.so"}
        if test.held and not incoming:
            environment |= {"HOLD_SPLIT": str(test.held),
                            "LD_PRELOAD": "/build/migrate/hold_split.so"}
        self.log = open(test.logdir / f"{test.backend}-{self.name}.log", "wb")
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, env=environment)
        self.connect()
        note(f"{self.name} is up, incoming {incoming}")
        self.hva = self.find_ram()
        self.mem = open(f"/proc/{self.process.pid}/mem", "r+b", buffering=0)
        # The destination is another machine: until it runs, nobody waits for it.
        if not incoming:
            self.set_priorities()

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.socket.connect(str(self.path))
                break
            except OSError:
                if self.process.poll() is not None:
                    raise Failed(f"{self.name} ended at once, see its log") from None
                check(time.monotonic() < deadline, f"{self.name} has no QMP")
                time.sleep(0.01)
        self.receive()
        self.qmp("qmp_capabilities")

    def set_priorities(self):
        """The vCPUs come first, so that what delays them is KVM, not the scheduler."""
        if self.test.shared:
            return
        for cpu in self.qmp("query-cpus-fast"):
            os.sched_setscheduler(cpu["thread-id"], os.SCHED_FIFO,
                                  os.sched_param(40 + 10 * cpu["cpu-index"]))

    def receive(self):
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            check(data, f"{self.name} is gone, see its log")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message

    def poll_events(self):
        while b"\n" in self.buffer or select.select([self.socket], [], [], 0)[0]:
            self.receive()

    def qmp(self, command, **arguments):
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self.receive()
            if "error" in message:
                raise Failed(f"{self.name}: {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def hmp(self, line):
        return self.qmp("human-monitor-command", command_line=line)

    def event_time(self, name, status=None):
        """When the last such event was, in microseconds."""
        self.poll_events()
        for event in reversed(self.events):
            if event["event"] == name and status in (None, event.get("data", {}).get("status")):
                stamp = event["timestamp"]
                return stamp["seconds"] * 1000000 + stamp["microseconds"]
        return None

    def find_ram(self):
        for line in self.hmp("info ramblock").splitlines():
            words = line.split()
            if words and words[0] in ("mem", "/objects/mem"):
                return [int(word, 16) for word in words if word.startswith("0x")][-1]
        raise Failed("no RAM block 'mem'")

    def read(self, gpa, size):
        data = os.pread(self.mem.fileno(), size, self.hva + gpa)
        check(len(data) == size, f"{self.name}: short read of guest memory")
        return data

    def write(self, gpa, data):
        os.pwrite(self.mem.fileno(), data, self.hva + gpa)

    def control(self):
        values = struct.unpack(f"<{NR_FIELDS}Q", self.read(CONTROL, NR_FIELDS * 8))
        control = dict(zip(FIELDS, values))
        control["cost"] = [values[COST + 2 * i:COST + 2 * i + 2] for i in range(NR_PHASES)]
        control["max_late"] = values[MAX_LATE:MAX_LATE + NR_PHASES]
        control["samples"] = values[NR_SAMPLED]
        return control

    def set(self, **fields):
        for name, value in fields.items():
            self.write(CONTROL + 8 * FIELDS.index(name), struct.pack("<Q", value))

    def phase(self, name):
        self.set(phase=PHASES.index(name))

    def alive(self):
        self.poll_events()
        control = self.control()
        if control["fault0"]:
            raise Failed("exception %d in the guest, rip %#x code %#x cr2 %#x" % (
                control["fault0"] - 1, control["fault1"], control["fault2"],
                control["fault3"]))
        for event in self.events:
            if event["event"] in ("SHUTDOWN", "GUEST_PANICKED"):
                raise Failed(f"{self.name}: {event['event']} {event.get('data')}")
        return control

    def command(self, command, timeout=60):
        """Has the guest obey, and waits until both its processors have."""
        serial = self.control()["serial"] + 1
        self.set(command=command)
        self.set(serial=serial)
        deadline = time.monotonic() + timeout
        while True:
            control = self.alive()
            if control["ack0"] == control["ack1"] == serial:
                return control
            check(time.monotonic() < deadline,
                  f"the guest does not obey, ticks {control['ticks0']} {control['ticks1']}")
            time.sleep(0.002)

    def debugfs(self):
        found = list(Path("/sys/kernel/debug/kvm").glob(f"{self.process.pid}-*"))
        check(len(found) == 1, "the VM is not in debugfs")
        return found[0]

    def stats(self):
        result = {}
        for path in self.debugfs().iterdir():
            if path.is_file():
                try:
                    result[path.name] = int(path.read_text())
                except (ValueError, OSError):
                    pass
        return result

    def pages(self):
        stats = self.stats()
        return tuple(stats[f"pages_{size}"] for size in ("4k", "2m", "1g"))

    def split_and_recover(self, threads, times, budget=0, pause=0, rest=0, phases=()):
        """Splits the memory ahead and recovers it, so often, in so many threads of QEMU's, with
        budget bytes a call and pause us between calls, and rests for so many us after either.
        phases are those to split in, to recover in, and to rest in."""
        phases = " ".join(str(PHASES.index(phase)) for phase in phases)
        address = self.hva + CONTROL + 8 * FIELDS.index("phase")
        with open(self.fifos[0], "w", encoding="ascii") as file:
            file.write(f"{RAM} {threads} {times} {budget} {pause} {rest} {address} {phases}\n")
        with open(self.fifos[1], encoding="ascii") as file:
            error = int(file.read())
        check(not error, f"splitting ahead: {os.strerror(error)}")

    def stop(self):
        if self.process.poll() is None:
            try:
                self.qmp("quit")
                self.process.wait(20)
            except (Failed, OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.socket.close()
        self.mem.close()
        self.log.close()
