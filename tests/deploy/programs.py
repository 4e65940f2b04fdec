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


def conclave(*arguments):
    """Runs one command to its end: (exit code, standard output, standard error)."""
    done = subprocess.run([BIN_DIR / "conclave", *map(str, arguments)], capture_output=True,
                          text=True, check=False)
    return done.returncode, done.stdout, done.stderr
