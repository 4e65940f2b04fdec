#!/usr/bin/env python3
"""Draws a flame graph of `perf script`'s output.

Usage: perf script | flame_graph.py [--title TEXT] > flame.svg

Each box is a function; its width is the share of samples in which it was on the stack, what it
called stands above it, and hovering shows its name and share. Boxes thinner than a fifth of a pixel
are left out. Standard library only.
"""
import argparse
import html
import re
import sys
import zlib

WIDTH, ROW = 1200, 17
# "  7f12ab conclave::Linear(...)+0x1c (/path/of/program)"
FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \((.*)\)$")


def stacks(lines):
    """The stack of each sample, outermost function first, thread name before it."""
    name, frames = None, []
    for line in lines:
        match = FRAME.match(line)
        if match:
            function = re.sub(r"\+0x[0-9a-f]+$", "", match[1])
            frames.append(match[2].rsplit("/", 1)[-1] if function == "[unknown]" else function)
        elif line.strip():
            # "thread name  pid/tid  time:  count event:"
            name = re.sub(r"\s+\d+(/\d+)?\s.*", "", line.strip())
        elif name is not None:
            yield [name] + frames[::-1]
            name, frames = None, []
    if name is not None:
        yield [name] + frames[::-1]


class Box:
    """A function as called from one place, with what it called."""

    def __init__(self, name):
        self.name, self.samples, self.callees = name, 0, {}

    def add(self, stack):
        box = self
        box.samples += 1
        for name in stack:
            box = box.callees.setdefault(name, Box(name))
            box.samples += 1

    def depth(self):
        return 1 + max((callee.depth() for callee in self.callees.values()), default=0)


def short(name, width):
    """As much of a name as fits into so many pixels of 12-pixel monospace."""
    room = int(width / 7.3)
    name = re.sub(r"\(.*", "", name)
    if room < 3:
        return ""
    return name if len(name) <= room else name[: room - 2] + ".."


def draw(box, left, level, scale, height, total, out):
    width = box.samples * scale
    if width < 0.2:
        return
    # Equal names have equal warm colours, so that a function is found again elsewhere.
    hue = zlib.crc32(box.name.encode()) % 50
    top = height - (level + 1) * ROW
    text = html.escape(box.name)
    out.append(
        f'<g><title>{text}: {box.samples} samples, {100 * box.samples / total:.1f} %</title>'
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}" '
        f'fill="hsl({hue},80%,65%)"/>'
        f'<text x="{left + 3:.1f}" y="{top + 12}">{html.escape(short(box.name, width))}</text></g>')
    for callee in sorted(box.callees.values(), key=lambda callee: callee.name):
        draw(callee, left, level + 1, scale, height, total, out)
        left += callee.samples * scale


def flame_graph(lines, title):
    root = Box(title)
    for stack in stacks(lines):
        root.add(stack)
    if root.samples == 0:
        raise SystemExit("flame_graph.py: no samples on standard input, want what perf script prints")
    height = root.depth() * ROW
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           'font-family="monospace" font-size="12">']
    draw(root, 0, 0, WIDTH / root.samples, height, root.samples, out)
    return "\n".join(out + ["</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--title", default="all samples")
    print(flame_graph(sys.stdin, parser.parse_args().title))


if __name__ == "__main__":
    sys.setrecursionlimit(10000)  # a stack may be a few hundred deep
    main()
