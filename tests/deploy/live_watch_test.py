"""A real Prometheus watches a live cluster under load: every panel, rule and alert is asked through
its API; nothing fires while all is well, and the loss of a shard does.

What differs from deploy/prometheus: it scrapes and evaluates every second, and an alert's `for` is
one second. The true durations are tested by promtool (alerts.yml). Rates keep their windows, which
hold less than a window's time here."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unittest
import urllib.error
import urllib.parse
import urllib.request

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
sys.path.insert(0, str(SOURCE_DIR / "tests" / "integration"))

from harness import DEADLINE_SECONDS, IntegrationTest, wait_until  # noqa: E402
from metrics_test import base, documented  # noqa: E402

DASHBOARDS = SOURCE_DIR / "deploy" / "grafana" / "dashboards"
LABELS = {"cluster": "test", "model": "demo"}
# Most thoughts end by themselves, so that ConclaveThinkingCutShort stays quiet.
CHATS = [{}, {"thinking_budget": 4096}, {"enable_thinking": False}, {"thinking_budget": 16},
         {"thinking_budget": 4096, "stream": True}]


class Load:
    """Chats of every kind, one after another, by two clients, until it is stopped."""

    def __init__(self, url):
        self.url, self.stopping, self.answered = url, threading.Event(), 0
        self.failures = []
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True)
                        for i in range(2)]
        for thread in self.threads:
            thread.start()

    def run(self, turn):
        while not self.stopping.is_set():
            body = {"model": "demo", "temperature": 0, **CHATS[turn % len(CHATS)],
                    "messages": [{"role": "user", "content": f"What is {turn % 90 + 9} + 25?"}]}
            path = "/v1/chat/completions"
            if turn % 7 == 0:
                path = "/v1/completions"
                body = {"model": "demo", "prompt": "17+25=", "max_tokens": 8}
            request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
                    answer.read()
                self.answered += 1
            except OSError as error:
                self.failures.append(str(error))
            turn += 1

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(DEADLINE_SECONDS)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Prometheus:
    def __init__(self, folder, cluster):
        config = folder / "prometheus"
        shutil.copytree(SOURCE_DIR / "deploy" / "prometheus", config)
        main = config / "prometheus.yml"
        main.write_text(re.sub(r"(_interval|_timeout): \w+", r"\1: 1s", main.read_text()))
        alerts = config / "rules" / "alerts.yml"
        text, count = re.subn(r"(?m)^( +)for: \w+$", r"\1for: 1s", alerts.read_text())
        assert count > 10
        alerts.write_text(text)
        for kind in ("router", "worker", "shard"):
            addresses = [urllib.parse.urlsplit(process["metrics"]).netloc
                         for name, process in cluster.processes.items() if name.startswith(kind)]
            (config / "targets" / f"{kind}.yml").write_text(
                json.dumps([{"targets": addresses, "labels": LABELS}]))  # JSON is YAML
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(folder / "prometheus.log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={main}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=self.log, stderr=self.log)
        wait_until(self.answers, "Prometheus answers")

    def answers(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            raise AssertionError(f"prometheus has ended: {self.log.read()[-4000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=10).status == 200
        return False

    def api(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def values(self, expression):
        """The numbers of an instant query; those that are not a number are no data."""
        found = self.api("query", query=expression)["result"]
        return [float(sample["value"][1]) for sample in found if sample["value"][1] != "NaN"]

    def rules(self, kind):
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]
                if rule["type"] == kind]

    def active(self):
        return {alert["labels"]["alertname"]: alert["state"]
                for alert in self.api("alerts")["alerts"]}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class LiveWatchTest(IntegrationTest):
    def setUp(self):
        super().setUp()
        self.cluster = self.start_cluster(
            SOURCE_DIR / "models" / "demo", "--model_name", "demo", "--workers", 1, "--shards", 2,
            "--threads", 2, "--log_dir", self.dir / "logs").wait_ready()
        self.prometheus = Prometheus(self.dir, self.cluster)
        self.addCleanup(self.prometheus.close)
        self.load = Load(self.cluster.http)
        self.addCleanup(self.load.stop)

    def expressions(self):
        """(where, expression) of every panel, as Grafana sends it with both variables at All."""
        for path in sorted(DASHBOARDS.glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                for target in panel.get("targets", []):
                    yield (f"{path.name}: {panel['title']} {target['refId']}",
                           target["expr"].replace("$__rate_interval", "1m")
                           .replace("$cluster", ".*").replace("$model", ".*"))

    def test_everything_is_seen_and_a_lost_shard_is_told(self):
        prometheus = self.prometheus
        wait_until(lambda: self.load.answered >= 15, "the load runs")
        panels = list(self.expressions())
        self.assertGreater(len(panels), 50)
        for where, expression in panels:
            wait_until(lambda e=expression: prometheus.values(e), f"{where} has data: {expression}")
        for rule in prometheus.rules("recording"):
            wait_until(lambda r=rule: prometheus.values(r["name"]), f"{rule['name']} has data")
        self.assertEqual([rule["lastError"] for rule in prometheus.rules("alerting")
                          if rule.get("lastError")], [])
        for rule in prometheus.rules("alerting"):
            self.assertEqual(rule["health"], "ok", rule)
            prometheus.values(rule["query"])  # an error of the expression fails
        self.assertEqual([target for target in prometheus.api("targets")["activeTargets"]
                          if target["health"] != "up"], [])
        # Whatever a live cluster exports is in docs/metrics.md.
        scraped = [name for name in prometheus.api("label/__name__/values")
                   if name.startswith("conclave_")]
        self.assertGreater(len(scraped), 60)
        known = documented()
        self.assertEqual([name for name in scraped if base(name, known) not in known], [])
        for name in ("cluster", "model"):  # what the dashboards' variables offer
            self.assertEqual(prometheus.api(f"label/{name}/values"), [LABELS[name]])

        evaluated = prometheus.rules("alerting")[0]["lastEvaluation"]
        wait_until(lambda: prometheus.rules("alerting")[0]["lastEvaluation"] > evaluated,
                   "alerts are evaluated again")
        self.assertEqual(prometheus.active(), {}, "an alert of a healthy cluster")
        self.assertEqual(self.load.failures, [])

        # Killed whenever it starts, it is down for longer each time: the supervisor backs off.
        pid = self.cluster.processes["shard-1"]["pid"]
        for _ in range(20):
            os.kill(pid, signal.SIGKILL)
            if prometheus.active().get("ConclaveShardDownNoReplica") == "firing":
                break
            pid = int(self.cluster.program.wait_for(r"^shard-1 starts again, pid (\d+)")[1])
        active = prometheus.active()
        self.assertEqual(active.get("ConclaveShardDownNoReplica"), "firing", active)
        self.assertNotIn("ConclaveShardDown", active, "there is no replica")
        (alert,) = [alert for alert in prometheus.api("alerts")["alerts"]
                    if alert["labels"]["alertname"] == "ConclaveShardDownNoReplica"]
        self.assertEqual({name: alert["labels"][name] for name in LABELS}, LABELS)

        # It returns by itself; the requests that waited are answered, and the alert ends.
        self.cluster.program.wait_for("^shard-1 is ready again")
        answered = self.load.answered
        wait_until(lambda: self.load.answered > answered + 2, "requests are answered again")
        wait_until(lambda: "ConclaveShardDownNoReplica" not in prometheus.active(),
                   "the alert ends")
        self.assertEqual(self.load.failures, [])


if __name__ == "__main__":
    if shutil.which("prometheus") is None:
        print("SKIPPED: live_watch_test.py: no prometheus here (Debian's package has it)")
        sys.exit(77)
    unittest.main()
