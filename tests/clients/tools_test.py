"""The tools that measure a cluster through HTTP, small: that they run and say what they should."""
import csv
import io
import json
import subprocess
import sys
import unittest

from client_test import SOURCE_DIR, ClientTest
from harness import BIN_DIR

TOOLS_DIR = SOURCE_DIR / "tools"


def run(tool, *arguments):
    done = subprocess.run([sys.executable, str(TOOLS_DIR / tool), *map(str, arguments)],
                          capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{tool} exited with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


class ToolsTest(ClientTest):
    def test_thinking_curve(self):
        out = run("thinking_curve", "--url", self.url, "--limit", 10,
                  "--budgets", "off", 0, 16, "unlimited")
        off, none, cut, unlimited = csv.DictReader(io.StringIO(out))
        self.assertEqual(unlimited["budget"], "unlimited")
        self.assertEqual((off["mean_thinking_used"], none["mean_thinking_used"]), ("0.0", "0.0"))
        self.assertLessEqual(float(cut["mean_thinking_used"]), 16)
        self.assertGreater(float(cut["mean_forced"]), 0)
        self.assertEqual(unlimited["mean_forced"], "0.0")
        self.assertGreater(float(unlimited["all"]), float(off["all"]))

    def test_http_load(self):
        result = json.loads(run("http_load.py", "--bin", BIN_DIR, "--streams", 40, "--max_tokens",
                                48, "--latency_requests", 5, "--json"))
        self.assertEqual((result["failures"], result["first_failure"]), (0, None))
        self.assertGreater(result["tokens"], 40)
        self.assertLessEqual(result["tokens"], 40 * 48)
        self.assertGreater(result["ttft_p99_ms"], 0)
        self.assertGreater(result["worker_grpc_ttft_p50_ms"], 0)


if __name__ == "__main__":
    unittest.main()
