"""What the client tests share: one cluster of the demo model for each class, and plain HTTP."""
import collections
import json
import os
import pathlib
import re
import sys
import unittest
import urllib.error
import urllib.request

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE_DIR / "tests" / "integration"))

from harness import DEADLINE_SECONDS, IntegrationTest, wait_until  # noqa: E402

MODEL_DIR = SOURCE_DIR / "models" / "demo"
MODEL = "demo"
# The demo model thinks this over in some 70 tokens, and gets it right.
SUM = "What is 48 + 37 - 19 + 43?"
SUM_ANSWER = "109"


def user(text):
    return [{"role": "user", "content": text}]


def http(url, body=None, headers=None):
    """(status, text) of a GET, or of a POST of a JSON body; an error's status is returned too."""
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def read_metrics(url):
    """The series of a metrics page, summed over their labels: name -> value."""
    totals = collections.Counter()
    for line in http(url)[1].splitlines():
        if line and not line.startswith("#"):
            name, value = re.fullmatch(r"([^{ ]+)(?:\{.*\})? (\S+)(?: \d+)?", line).groups()
            totals[name] += float(value)
    return totals


class ClientTest(unittest.TestCase):
    """Tests of one client. `url` is the router's HTTP door, without a slash at the end."""

    shards = 0

    @classmethod
    def setUpClass(cls):
        cls._owner = IntegrationTest()
        cls._owner.setUp()
        cls.addClassCleanup(cls._owner.doCleanups)
        cls.cluster = cls._owner.start_cluster(
            MODEL_DIR, "--model_name", MODEL, "--workers", 1, "--shards", cls.shards,
            "--threads", 2, "--log_dir", cls._owner.dir / "logs").wait_ready()
        cls.metrics_url = cls.cluster.processes["router"]["metrics"]
        cls.url = cls.cluster.http

    def chat_http(self, text=SUM, **fields):
        """One greedy chat by plain HTTP: the answer's JSON."""
        body = {"model": MODEL, "messages": user(text), "temperature": 0, **fields}
        status, answer = http(f"{self.url}/v1/chat/completions", body)
        self.assertEqual(status, 200, answer)
        return json.loads(answer)

    def think_end(self):
        """The id of </think>. Where a bias bars it, thinking goes on until something ends it."""
        status, answer = http(f"{self.url}/tokenize", {"model": MODEL, "prompt": "</think>"})
        self.assertEqual(status, 200, answer)
        (think_end,) = json.loads(answer)["tokens"]
        return think_end

    def wait_idle(self):
        """Until neither the router nor the worker has a request in flight."""
        def idle():
            status = self.cluster.ask("status")
            return (read_metrics(self.metrics_url)["conclave_router_inflight"] == 0 and
                    all(worker["running"] == 0 for worker in status["workers"]))
        wait_until(idle, "a request is still in flight")
