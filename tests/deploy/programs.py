"""The programs under test: what they take, and one command run to its end."""
import os
import pathlib
import re
import subprocess

BIN_DIR = pathlib.Path(os.environ["CONCLAVE_BIN_DIR"])


def variables(program):
    told = subprocess.run([BIN_DIR / program, "--help"], capture_output=True, text=True,
                          check=True).stdout
    return set(re.findall(r"Env:(CONCLAVE_\w+)", told))


def program(name, *arguments):
    """Runs one to its end: (exit code, standard output, standard error)."""
    done = subprocess.run([BIN_DIR / name, *map(str, arguments)], capture_output=True, text=True,
                          check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def conclave(*arguments):
    return program("conclave", *arguments)
