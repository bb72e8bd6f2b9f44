# SPDX-License-Identifier: GPL-2.0
"""What was recorded of a VM, as a picture (SVG): phases of the migration on top, below them what
faults took by cause, then what vCPUs waited for mmu_lock, because of whom, then who held it."""
import math
from html import escape

from sources import CAUSES, HOLDERS, duration, grown, longest, total, vcpus

LEFT, WIDTH, RIGHT = 90, 760, 230
BAND, PANEL, LANE, GAP = 22, 130, 18, 34
FAULTS = {"missing": "#9ecae1", "logged": "#fdae6b", "split": "#d94801", "spurious": "#bdbdbd",
          "nx": "#9e9ac8", "invalidation": "#31a354", "other": "#636363"}
HOLDS = {"enable": "#1f77b4", "clear": "#ff7f0e", "get": "#bcbd22", "disable": "#17becf",
         "rmap": "#8c564b", "notifier": "#2ca02c", "zap": "#d62728", "nx_recovery": "#9467bd",
         "fault": "#7f7f7f", "other": "#000000"}
SHADES = ["#deebf7", "#fee6ce", "#e5f5e0", "#efedf5"]


class Picture:
    """Samples, (seconds, sample, phase), drawn."""

    def __init__(self, samples, title):
        self.samples = samples
        self.pairs = list(zip(samples, samples[1:]))
        self.first, self.last = samples[0][1], samples[-1][1]
        self.start, self.end = samples[0][0], samples[-1][0]
        self.whose = vcpus(self.last)
        self.out = []
        # The rectangles that belong to one thing, by colour.
        self.areas = {}
        self.y = 0
        self.text(LEFT, 18, title, weight="bold")
        self.y = 30
        self.phases()
        self.panel("In faults, by cause", self.faults(), FAULTS)
        self.panel("Of that, waiting for mmu_lock, by who had it", self.waits(), HOLDS)
        self.lanes()
        self.axis()

    def x(self, when):
        """Where a time is."""
        return LEFT + WIDTH * (when - self.start) / max(self.end - self.start, 1e-9)

    def text(self, x, y, text, anchor="start", weight="normal", colour="#222"):
        """Adds a text."""
        self.out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
                        f'font-weight="{weight}" fill="{colour}">{escape(text)}</text>')

    def rect(self, x, y, width, height, fill):
        """Adds a rectangle, which flush() draws."""
        if width > 0 and height > 0:
            self.areas.setdefault(fill, []).append(
                f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z")

    def flush(self):
        """Draws the rectangles so far, one path for each colour."""
        for fill, parts in self.areas.items():
            self.out.append(f'<path fill="{fill}" shape-rendering="crispEdges" '
                            f'd="{"".join(parts)}"/>')
        self.areas = {}

    def phases(self):
        """The phases, and where they end in all that is below."""
        spans = []
        for (begin, _, phase), (end, _, _) in self.pairs:
            if spans and spans[-1][2] == phase:
                spans[-1][1] = end
            else:
                spans.append([begin, end, phase])
        free = 0
        for n, (begin, end, phase) in enumerate(spans):
            left, width = self.x(begin), self.x(end) - self.x(begin)
            if phase:
                self.rect(left, self.y, width, BAND, SHADES[n % len(SHADES)])
                self.flush()
                # Of a row of short phases only those are named that there is room for.
                if left >= free and width > 12:
                    if width > 6.5 * len(phase) + 4:
                        self.text(left + 3, self.y + 15, phase)
                        free = left + 6.5 * len(phase) + 6
                    elif phase.startswith("round "):
                        self.text(left + 2, self.y + 15, phase[6:])
                        free = left + 14
            if n:
                bottom = self.y + BAND + 2 * (PANEL + GAP) + GAP + LANE * self.nr_lanes()
                self.out.append(f'<path d="M{left:.1f} {self.y}V{bottom}" stroke="#ccc" '
                                'stroke-dasharray="2 3"/>')
        self.text(LEFT - 8, self.y + 15, "phase", "end")
        self.y += BAND

    def shares(self, name):
        """What vCPUs spent in something, in percent of the time of all of them, in each interval.

        It is accounted when it is over: what is longer than an interval began before it.
        """
        shares = [0.0] * len(self.pairs)
        for who in self.whose:
            left = 0
            for n in reversed(range(len(self.pairs))):
                a, b = self.pairs[n]
                time = max((b[0] - a[0]) * 1e9, 1)
                left += grown(b[1], a[1], who, name)
                here = min(left, time)
                left -= here
                shares[n] += 100 * here / time / len(self.whose)
        return shares

    def rows(self, names):
        """Of those that are not always 0: {name: (statistic, share of each interval)}."""
        return {name: (stat, self.shares(stat))
                for name, stat in names if total(self.last, self.first, stat) > 0}

    def faults(self):
        """Whole faults."""
        return self.rows((cause, f"fault_{cause}") for cause in CAUSES)

    def waits(self):
        """The part of them that is waiting."""
        return self.rows((holder, f"wait_for_{holder}") for holder in HOLDERS + ["other"])

    def panel(self, title, rows, colours):
        """One above the other, over time."""
        self.y += GAP
        base = self.y + PANEL
        self.text(LEFT, self.y - 8, f"{title}, in % of the vCPUs' time")
        most = max(map(sum, zip(*(shares for _, shares in rows.values()))), default=0)
        if most <= 0:
            self.text(LEFT + WIDTH / 2, self.y + PANEL / 2, "nothing", "middle", colour="#888")
            most = 1
        top = nice(most)
        for n in range(3):
            y = base - PANEL * n / 2
            self.out.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>')
            self.text(LEFT - 8, y + 4, f"{top * n / 2:g}%", "end")
        for n, (a, b) in enumerate(self.pairs):
            y = base
            for name, (_, shares) in rows.items():
                tall = PANEL * shares[n] / top
                y -= tall
                self.rect(self.x(a[0]), y, self.x(b[0]) - self.x(a[0]), tall, colours[name])
        self.flush()
        for n, (name, (stat, _)) in enumerate(rows.items()):
            y = self.y + 4 + 17 * n
            self.rect(LEFT + WIDTH + 12, y, 11, 11, colours[name])
            self.flush()
            text = f"{name} {duration(total(self.last, self.first, stat))}"
            count = total(self.last, self.first, stat, "count")
            self.text(LEFT + WIDTH + 28, y + 10, text + (f" in {count:,}" if count else ""))
        self.y = base

    def held(self):
        """Who held the lock."""
        return [holder for holder in HOLDERS
                if grown(self.last, self.first, "vm", f"hold_{holder}") > 0]

    def nr_lanes(self):
        """How many lines that takes."""
        return max(1, len(self.held()))

    def part(self, holder, a, b):
        """Of the time between two samples, the part that a holder had the lock."""
        return grown(b[1], a[1], "vm", f"hold_{holder}") / 1e9 / max(b[0] - a[0], 1e-9)

    def lanes(self):
        """A line for each holder."""
        self.y += GAP
        most = max((self.part(holder, a, b) for holder in self.held() for a, b in self.pairs),
                   default=0)
        self.text(LEFT, self.y - 8, "Who held mmu_lock" + (
            f", in parts of the time (the highest bar of all: {100 * most:.2g}%)" if most else ""))
        if self.held():
            self.text(LEFT + WIDTH + 12, self.y - 8, "longest, and how often")
        else:
            self.text(LEFT + WIDTH / 2, self.y + 13, "nobody", "middle", colour="#888")
        for holder in self.held():
            name = f"hold_{holder}"
            self.text(LEFT - 8, self.y + 13, holder, "end")
            self.out.append(f'<path d="M{LEFT} {self.y + LANE - 2}h{WIDTH}" stroke="#eee"/>')
            for a, b in self.pairs:
                part = self.part(holder, a, b)
                if part > 0:
                    # What is little has to be seen as well.
                    tall = max((LANE - 3) * part / most, 1.5)
                    self.rect(self.x(a[0]), self.y + LANE - 2 - tall,
                              max(self.x(b[0]) - self.x(a[0]), 1), tall, HOLDS[holder])
            self.flush()
            ns, exact = longest(self.last, self.first, ["vm"], name)
            self.text(LEFT + WIDTH + 12, self.y + 13, ("" if exact else "< ") + duration(ns) +
                      f", {grown(self.last, self.first, 'vm', name, 'count'):,}")
            self.y += LANE
        self.y += LANE * (self.nr_lanes() - len(self.held()))

    def axis(self):
        """The time."""
        step = nice((self.end - self.start) / 12)
        for n in range(int((self.end - self.start) / step) + 1):
            x = self.x(self.start + n * step)
            self.out.append(f'<path d="M{x:.1f} {self.y}v4" stroke="#222"/>')
            self.text(x, self.y + 17, f"{n * step:g}" + (" s" if not n else ""), "middle")
        self.y += 26

    def svg(self):
        """All of it."""
        width = LEFT + WIDTH + RIGHT
        return "\n".join([
            "<!-- SPDX-License-Identifier: GPL-2.0 -->",
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{self.y}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>', *self.out, "</svg>"]) + "\n"


def nice(value):
    """The next of 1, 2, 5, 10..."""
    power = 10 ** math.floor(math.log10(max(value, 1e-9)))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= value * 0.999)


def terminal(lines):
    """Lines of a terminal, as SVG."""
    lines = list(lines)
    width = 16 + 7.3 * max(map(len, lines))
    text = [f'<text x="8" y="{20 + 16 * n}" xml:space="preserve">{escape(line)}</text>'
            for n, line in enumerate(lines) if line]
    return "\n".join([
        "<!-- SPDX-License-Identifier: GPL-2.0 -->",
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{16 * len(lines) + 16}" font-family="monospace" font-size="12" fill="#ddd">',
        '<rect width="100%" height="100%" fill="#222"/>', *text, "</svg>"]) + "\n"
