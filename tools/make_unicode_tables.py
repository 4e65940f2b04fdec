#!/usr/bin/env python3
"""Writes text/unicode_tables.cc from the facts in tests/data/text/unicode.

Usage: make_unicode_tables.py SOURCE_DIR

The facts are what the reference engine does, which mixes two Unicode versions: letters, numbers and
spaces of the split pattern are Unicode 16.0, normalisation (NFC) is Unicode 9.0.
"""
import pathlib
import sys

NUM_CODE_POINTS = 0x110000
LETTER, NUMBER, SPACE = 1, 2, 3  # CharClass of text/unicode_properties.h
NFC_SUSPECT = 4
CCC_SHIFT = 8
HANGUL_V = range(0x1161, 0x1176)
HANGUL_T = range(0x11A8, 0x11C3)


def rows(folder: pathlib.Path, name: str):
    for line in (folder / name).read_text().splitlines():
        yield line.split()


def load_properties(folder: pathlib.Path):
    classes = [0] * NUM_CODE_POINTS
    for char_class, name in ((LETTER, "letters"), (NUMBER, "numbers"), (SPACE, "spaces")):
        for first, last in rows(folder, f"{name}.txt"):
            for code_point in range(int(first, 16), int(last, 16) + 1):
                classes[code_point] = char_class
    ccc = {int(row[0], 16): int(row[1]) for row in rows(folder, "ccc.txt")}
    decompositions = {}
    for row in rows(folder, "nfd_full.txt"):
        values = [int(value, 16) for value in row]
        decompositions[values[0]] = values[1:]
    pairs = [[int(value, 16) for value in row] for row in rows(folder, "compose_pairs.txt")]
    return classes, ccc, decompositions, pairs


def suspects(ccc, decompositions, pairs):
    """Code points that may change, or may change what is before them, when a text that holds them
    is normalised: a text without any, whose marks are in order, is NFC already."""
    composed = {c: [a, b] for a, b, c in pairs}
    seconds = {b for _, b, _ in pairs} | set(HANGUL_V) | set(HANGUL_T)
    found = set(seconds)
    for code_point, parts in decompositions.items():
        whole = [code_point]  # taken apart as far as composition can put together again
        while whole[0] in composed:
            whole[:1] = composed[whole[0]]
        if whole != parts:
            found.add(code_point)  # does not come back: a singleton or an exclusion
        elif not ccc.get(code_point, 0) and (parts[0] in seconds or ccc.get(parts[0], 0)):
            found.add(code_point)
    return found


def wrapped(values, indent="    ", width=100):
    line = indent
    for value in values:
        item = f"{value}, "
        if len(line) + len(item.rstrip()) > width:
            yield line.rstrip()
            line = indent
        line += item
    yield line.rstrip()


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    classes, ccc, decompositions, pairs = load_properties(root / "tests/data/text/unicode")
    suspect = suspects(ccc, decompositions, pairs)
    properties = [
        classes[c] | (NFC_SUSPECT if c in suspect else 0) | ccc.get(c, 0) << CCC_SHIFT
        for c in range(NUM_CODE_POINTS)
    ]
    runs = [
        f"{{0x{c:X}, 0x{properties[c]:X}}}"
        for c in range(NUM_CODE_POINTS)
        if c == 0 or properties[c] != properties[c - 1]
    ]
    flat = []
    for code_point, parts in sorted(decompositions.items()):
        flat += [code_point | len(parts) << 24, *parts]
    out = [
        "// Written by tools/make_unicode_tables.py; not to be edited. Facts of the Unicode",
        "// Character Database (Unicode licence, see tests/data/text/README.md).",
        '#include "text/unicode_tables.h"',
        "",
        "// clang-format off",
        "namespace conclave::unicode_tables {",
        "",
        "const PropertyRun kPropertyRuns[] = {",
        *wrapped(runs),
        "};",
        "const size_t kNumPropertyRuns = std::size(kPropertyRuns);",
        "",
        "const char32_t kDecompositions[] = {",
        *wrapped(f"0x{value:X}" for value in flat),
        "};",
        "const size_t kDecompositionsLength = std::size(kDecompositions);",
        "",
        "const Composition kCompositions[] = {",
        *wrapped(f"{{0x{a:X}, 0x{b:X}, 0x{c:X}}}" for a, b, c in sorted(pairs)),
        "};",
        "const size_t kNumCompositions = std::size(kCompositions);",
        "",
        "}  // namespace conclave::unicode_tables",
        "",
    ]
    (root / "text/unicode_tables.cc").write_text("\n".join(out))


if __name__ == "__main__":
    main()
