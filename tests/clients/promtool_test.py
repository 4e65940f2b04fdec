"""Prometheus' own linter on the metrics of every process, once they have all seen requests."""
import shutil
import subprocess
import sys
import unittest

from client_test import ClientTest, http


class PromtoolTest(ClientTest):
    shards = 1

    def test_promtool_accepts_every_process(self):
        self.chat_http()
        self.chat_http(thinking_budget=16)
        self.assertEqual(len(self.cluster.processes), 3)
        for name, process in self.cluster.processes.items():
            with self.subTest(name):
                status, text = http(process["metrics"])
                self.assertEqual(status, 200)
                self.assertIn("conclave_", text)
                checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                         capture_output=True, check=False)
                self.assertEqual((checked.returncode, checked.stdout + checked.stderr), (0, ""))


if __name__ == "__main__":
    if shutil.which("promtool") is None:
        print("SKIPPED: promtool_test.py: no promtool here (Debian's package prometheus has it)")
        sys.exit(77)
    unittest.main()
