"""Prometheus' own checks of deploy/prometheus, and of the dashboards' expressions."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
PROMETHEUS = SOURCE_DIR / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules"
DASHBOARDS = SOURCE_DIR / "deploy" / "grafana" / "dashboards"


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout + done.stderr


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


class PrometheusTest(unittest.TestCase):
    def test_config_is_accepted(self):
        code, said = promtool("check", "config", PROMETHEUS / "prometheus.yml")
        self.assertEqual(code, 0, said)

    def test_config_for_kubernetes_is_accepted(self):
        """Debian's Prometheus is built without Kubernetes' discovery: where promtool does not know
        it, the rest of the file is checked with another discovery in its place."""
        path = PROMETHEUS / "kubernetes.yml"
        code, said = promtool("check", "config", path)
        if "kubernetes_sd_configs not found" in said:
            print("NOT CHECKED: kubernetes_sd_configs, which this promtool was built without")
            text, count = re.subn(r"kubernetes_sd_configs:\n +- role: pod\n",
                                  "static_configs: []\n", path.read_text())
            self.assertEqual(count, 1)
            with tempfile.TemporaryDirectory(prefix="conclave_test_") as folder:
                copy = pathlib.Path(folder, "kubernetes.yml")
                copy.write_text(text.replace("rules/*.yml", f"{RULES}/*.yml"))
                code, said = promtool("check", "config", copy)
        self.assertEqual(code, 0, said)

    def test_rules_are_accepted(self):
        for path in RULES.glob("*.yml"):
            code, said = promtool("check", "rules", path)
            self.assertEqual(code, 0, said)

    def test_alerts_fire_when_they_should(self):
        code, said = promtool("test", "rules", SOURCE_DIR / "tests" / "deploy" / "alerts.yml")
        self.assertEqual(code, 0, said)

    def test_every_alert_has_a_test_and_a_runbook(self):
        alerts = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())
        self.assertGreater(len(alerts), 10)
        tested = (SOURCE_DIR / "tests" / "deploy" / "alerts.yml").read_text()
        runbook = (SOURCE_DIR / "docs" / "operations.md").read_text()
        headings = {heading.lower() for heading in re.findall(r"(?m)^### (\w+)$", runbook)}
        links = re.findall(r"runbook: docs/operations.md#(\w+)", (RULES / "alerts.yml").read_text())
        self.assertEqual(len(links), len(alerts))
        for alert in alerts:
            self.assertRegex(tested, rf"alertname: {alert}\n +eval_time: \w+\n +exp_alerts")
        self.assertLessEqual(set(links), headings)
        self.assertLessEqual(headings, set(links), "a runbook of an alert that is no more")

    def test_every_expression_of_a_dashboard_parses(self):
        """As recording rules, which promtool parses; $variables replaced as Grafana would."""
        rules = []
        for dashboard in dashboards().values():
            for panel in panels(dashboard):
                for target in panel["targets"]:
                    expression = (target["expr"].replace("$__rate_interval", "1m")
                                  .replace("$cluster", ".*").replace("$model", ".*"))
                    self.assertNotIn("$", expression)
                    rules.append({"record": f"panel:{len(rules)}", "expr": expression})
        self.assertGreater(len(rules), 50)
        with tempfile.TemporaryDirectory(prefix="conclave_test_") as folder:
            path = pathlib.Path(folder, "panels.yml")  # JSON is YAML
            path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
            code, said = promtool("check", "rules", path)
        self.assertEqual(code, 0, said)
        self.assertIn(f"{len(rules)} rules found", said)


if __name__ == "__main__":
    if shutil.which("promtool") is None:
        print("SKIPPED: prometheus_test.py: no promtool here (Debian's package prometheus has it)")
        sys.exit(77)
    unittest.main()
