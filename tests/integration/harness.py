"""What the integration tests share: programs started and watched, with a deadline on every wait."""
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

BIN_DIR = pathlib.Path(os.environ["CONCLAVE_BIN_DIR"])
SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
# Generous: the machine may be busy with other tests. Nothing waits this long when all is well.
DEADLINE_SECONDS = 120


class Program:
    """A running program whose lines on standard output and error are read as they come."""

    def __init__(self, argv, env=None):
        self.process = subprocess.Popen(
            [str(argument) for argument in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines = []  # of standard output, so far
        self.errors = []  # of standard error
        self._queue = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._queue.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @staticmethod
    def _read(stream, put):
        for line in stream:
            put(line.rstrip("\n"))
        put(None)

    def wait_for(self, pattern, seconds=DEADLINE_SECONDS):
        """The match of the next line of standard output that has one."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(
                    f"no line like {pattern!r} in {self.lines}; on standard error: {self.errors}")
            self.lines.append(line)
            match = re.search(pattern, line)
            if match:
                return match

    def wait(self, seconds=DEADLINE_SECONDS):
        """The exit code, once both streams have been read to their end."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(seconds)
        while not self._queue.empty():
            line = self._queue.get()
            if line is not None:
                self.lines.append(line)
        self.errors = [line for line in self.errors if line is not None]
        return code

    def signal(self, number):
        self.process.send_signal(number)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()


def is_gone(pid):
    """Whether a process has ended; one that nobody has reaped counts as ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rsplit(")", 1)[1].split()[0] in "ZX"


def wait_until(condition, what, seconds=DEADLINE_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def conclave(*arguments, stdin="", seconds=DEADLINE_SECONDS):
    """Runs one command to its end: (exit code, standard output, standard error)."""
    done = subprocess.run([str(BIN_DIR / "conclave"), *map(str, arguments)], input=stdin,
                          capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout, done.stderr


class Cluster:
    """`conclave up`, with the processes it printed."""

    def __init__(self, model, *arguments, env=None):
        self.program = Program([BIN_DIR / "conclave", "up", "--model", model, *arguments], env)
        self.processes = {}  # name -> {"grpc", "http" (the router's), "metrics", "pid"}

    def wait_ready(self):
        self.program.wait_for("^Conclave is ready after")
        for line in self.program.lines:
            match = re.match(
                r"(\S+) +gRPC (\S+) +(?:HTTP (\S+)/v1 +)?metrics (\S+) +pid (\d+)$", line)
            if match:
                self.processes[match[1]] = {
                    "grpc": match[2], "http": match[3], "metrics": match[4], "pid": int(match[5])}
        return self

    @property
    def endpoint(self):
        return self.processes["router"]["grpc"]

    @property
    def http(self):
        """The URL of the router's HTTP door, without a slash at the end."""
        return self.processes["router"]["http"]

    def ask(self, command, *arguments, stdin=""):
        """The JSON object a command prints; fails the test if the command fails."""
        code, out, err = conclave(command, "--endpoint", self.endpoint, *arguments, "--json",
                                  stdin=stdin)
        if code != 0:
            raise AssertionError(f"conclave {command} exited with {code}: {err}\n"
                                 f"the cluster said: {self.program.errors[-20:]}")
        return json.loads(out)

    def stop(self):
        self.program.signal(signal.SIGTERM)
        return self.program.wait()

    def close(self):
        self.program.close()


class IntegrationTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="conclave_test_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def start_cluster(self, model, *arguments, env=None):
        cluster = Cluster(model, *arguments, env=env)
        self.addCleanup(cluster.close)
        return cluster
