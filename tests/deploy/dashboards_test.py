"""The dashboards are what tools/make_dashboards.py writes, and what Grafana expects. Whether each
panel has data is live_watch_test.py's, whether its expressions parse prometheus_test.py's."""
import json
import os
import pathlib
import subprocess
import sys
import unittest

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
DASHBOARDS = SOURCE_DIR / "deploy" / "grafana" / "dashboards"
COLUMNS = 24


class DashboardsTest(unittest.TestCase):
    dashboards = {path.name: json.loads(path.read_text())
                  for path in sorted(DASHBOARDS.glob("*.json"))}

    def for_each(self, check):
        for name, dashboard in self.dashboards.items():
            with self.subTest(name):
                check(dashboard)

    def test_files_are_written_by_the_tool(self):
        done = subprocess.run([sys.executable, SOURCE_DIR / "tools" / "make_dashboards.py",
                               "--check"], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(sorted(self.dashboards), ["serving.json", "thinking-and-experts.json"])

    def test_ids_are_unique(self):
        self.assertEqual(len({d["uid"] for d in self.dashboards.values()}), len(self.dashboards))
        self.for_each(lambda d: self.assertEqual(len({p["id"] for p in d["panels"]}),
                                                 len(d["panels"])))

    def test_panels_say_what_they_show(self):
        def check(dashboard):
            for panel in dashboard["panels"]:
                if panel["type"] == "row":
                    continue
                self.assertTrue(panel["title"] and panel["description"], panel["id"])
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
                self.assertTrue(panel["targets"], panel["title"])
                for target in panel["targets"]:
                    for variable in ("$cluster", "$model"):
                        self.assertIn(variable, target["expr"])
        self.for_each(check)

    def test_panels_do_not_overlap(self):
        def check(dashboard):
            taken = set()
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], COLUMNS, panel["title"])
                cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                         for y in range(place["y"], place["y"] + place["h"])}
                self.assertFalse(cells & taken, panel["title"])
                taken |= cells
        self.for_each(check)

    def test_variables_are_cluster_and_model(self):
        self.for_each(lambda d: self.assertEqual(
            [variable["name"] for variable in d["templating"]["list"]],
            ["datasource", "cluster", "model"]))


if __name__ == "__main__":
    unittest.main()
