"""The names of metrics: the code's, those of docs/metrics.md, and those that rules and dashboards
ask for."""
import os
import pathlib
import re
import unittest

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
FOLDERS = ["common", "rpc", "router", "worker", "expert_shard"]
DEPLOY = SOURCE_DIR / "deploy"
NAME = r"conclave_(?:router|worker|shard)_[a-z0-9_]+"
# What Prometheus makes of one histogram.
SERIES = re.compile(r"_(bucket|sum|count)$")


def exported():
    """Whole names in string literals: code does not put them together, so that they can be found."""
    found = set()
    for folder in FOLDERS:
        for path in (SOURCE_DIR / folder).rglob("*.cc"):
            found.update(re.findall(rf'"({NAME})"', path.read_text()))
    return found


def documented():
    return set(re.findall(rf"(?m)^\| `({NAME})` \|", (SOURCE_DIR / "docs/metrics.md").read_text()))


def asked_for():
    """Name -> file, of rules and dashboards; recorded names begin with "cluster:"."""
    files = [*(DEPLOY / "prometheus" / "rules").glob("*.yml"),
             *(DEPLOY / "grafana" / "dashboards").glob("*.json")]
    return {name: path.name for path in files
            for name in re.findall(rf"(?<![:\w]){NAME}", path.read_text())}


def base(name, known):
    """A histogram's name for that of one of its series."""
    return name if name in known else SERIES.sub("", name)


class MetricsTest(unittest.TestCase):
    def test_names_are_found_in_the_code(self):
        self.assertGreater(len(exported()), 60)
        put_together = [str(path) for folder in FOLDERS
                        for path in (SOURCE_DIR / folder).rglob("*.cc")
                        if re.search(r'"conclave_(router|worker|shard)_"', path.read_text())]
        self.assertEqual(put_together, [])

    def test_every_metric_is_documented_and_nothing_else(self):
        self.assertEqual(documented(), exported())

    def test_rules_and_dashboards_ask_for_what_there_is(self):
        known = exported()
        used = asked_for()
        self.assertGreater(len(used), 40)
        self.assertEqual({name: where for name, where in used.items()
                          if base(name, known) not in known}, {})


if __name__ == "__main__":
    unittest.main()
