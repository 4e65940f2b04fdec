"""A cluster that `conclave up` runs, for the scripts that measure one."""
import re
import subprocess
import time


class RunningCluster:
    """Started when made, ready when that returns; stopped by stop(), or at the end of a with."""

    def __init__(self, bin_dir, model, name, threads, *up_flags):
        """`name` is WORKERS+SHARDS, with "/grpc" behind it without shared memory."""
        self.name = name
        size, _, way = name.partition("/")
        workers, shards = size.split("+")
        self.endpoint, self.metrics = None, []  # the router's; of workers and shards
        began = time.monotonic()
        # A session of its own: a Ctrl-C reaches the script alone, which stops the cluster once.
        self.process = subprocess.Popen(
            [bin_dir / "conclave", "up", "--model", model, "--workers", workers, "--shards", shards,
             "--threads", str(threads), "--log_level", "error",
             "--shared_memory", "off" if way == "grpc" else "auto", *up_flags],
            stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - began

    def _await_ready(self):
        for line in self.process.stdout:
            match = re.match(r"(\S+) +gRPC (\S+).*metrics (\S+)", line)
            if match and match[1] == "router":
                self.endpoint = match[2]
            elif match:
                self.metrics.append(match[3])
            if line.startswith("Conclave is ready"):
                return
        raise SystemExit(f"cluster {self.name} did not start: exit code {self.process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.terminate()
        self.process.communicate()
