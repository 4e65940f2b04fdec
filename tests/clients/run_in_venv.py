#!/usr/bin/env python3
"""Runs a test with the packages of a requirements file, in a virtual environment made once.

Usage: run_in_venv.py --venv DIR [--requirements FILE] TEST.py [ARGUMENT..]

FILE is requirements.txt beside this script if not given. The environment is DIR-HASH, of the hash
of FILE and the Python version: changed pins
make a new one and remove the old. Tests started together wait for the first to make it. Exits with
77, which ctest shows as skipped, where it cannot be made because PyPI is out of reach or this
Python has no venv module; with CONCLAVE_REQUIRE_CLIENTS=1 that is a failure. Pins that PyPI refuses
are always a failure.
"""
import argparse
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77
# What pip prints, once for each retry, when it cannot reach an index.
UNREACHABLE = "after connection broken by"


class CannotPrepare(Exception):
    """The environment cannot be made here; nothing is wrong with the repository."""


def run(argv):
    done = subprocess.run(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    return done.returncode, done.stdout


def make(venv, requirements):
    code, output = run([sys.executable, "-m", "venv", venv])
    if code != 0:
        raise CannotPrepare(f"{sys.executable} -m venv failed (Debian's package python3-venv has "
                            f"it):\n{output}")
    # --no-deps: the file names every package with its version, so nothing is left to resolve.
    code, output = run([venv / "bin" / "python", "-m", "pip", "install", "--no-deps", "--quiet",
                        "--disable-pip-version-check", "--retries", "2", "--timeout", "20",
                        "--requirement", requirements])
    if code != 0:
        if UNREACHABLE in output:
            raise CannotPrepare(f"PyPI cannot be reached:\n{output}")
        sys.exit(f"pip cannot install {requirements}:\n{output}")


def prepare(prefix, requirements):
    """The environment's Python; made if need be, by one process at a time."""
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    venv = prefix.with_name(f"{prefix.name}-{key}")
    complete = venv / "complete"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with open(prefix.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            for old in prefix.parent.glob(f"{prefix.name}-*"):
                shutil.rmtree(old)
            try:
                make(venv, requirements)
            except CannotPrepare:
                shutil.rmtree(venv, ignore_errors=True)
                raise
            complete.touch()
    return venv / "bin" / "python"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--requirements", type=pathlib.Path,
                        default=pathlib.Path(__file__).with_name("requirements.txt"))
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    try:
        python = prepare(args.venv, args.requirements)
    except CannotPrepare as error:
        required = os.environ.get("CONCLAVE_REQUIRE_CLIENTS") == "1"
        print(f"{'FAILED' if required else 'SKIPPED'}: {args.test.name}: {error}", flush=True)
        return 1 if required else SKIPPED
    os.execv(python, [str(python), str(args.test), *args.arguments])


if __name__ == "__main__":
    sys.exit(main())
