"""The commands that measure, watch and plan, on a real cluster and a real terminal."""
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading
import unittest

from harness import (BIN_DIR, DEADLINE_SECONDS, SOURCE_DIR, IntegrationTest, conclave, is_gone,
                     wait_until)


class Terminal:
    """A command whose standard output and error are one terminal."""

    def __init__(self, *arguments):
        master, terminal = pty.openpty()
        self.process = subprocess.Popen([str(BIN_DIR / "conclave"), *map(str, arguments)],
                                        stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal)
        os.close(terminal)
        self.master = master
        self.text = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                part = os.read(self.master, 4096)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            self.text += part.decode(errors="replace")

    def wait_for(self, words):
        wait_until(lambda: words in self.text, f"{words!r} on the terminal")

    def end(self, number):
        """Sends a signal; the exit code and all that was printed."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_SECONDS)
        self.reader.join(DEADLINE_SECONDS)
        return code, self.text

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


class ToolsTest(IntegrationTest):
    @classmethod
    def setUpClass(cls):
        cls.shared = IntegrationTest()
        cls.shared.setUp()
        cls.model = cls.shared.dir / "tiny-moe"
        code, _, err = conclave("synth", "--config", "tiny-moe", "--out", cls.model)
        assert code == 0, err

    @classmethod
    def tearDownClass(cls):
        cls.shared.doCleanups()

    def up(self):
        return self.start_cluster(self.model, "--shards", 2, "--threads", 2, "--kv_cache_tokens",
                                  8192).wait_ready()

    def terminal(self, *arguments):
        terminal = Terminal(*arguments)
        self.addCleanup(terminal.close)
        return terminal

    def test_bench_counts_every_token(self):
        cluster = self.up()
        load = ["--num_requests", 20, "--concurrency", 4, "--input_len", 32, "--output_len", 16]
        closed = cluster.ask("bench", *load)
        self.assertEqual(closed["completed"], 20)
        self.assertEqual(closed["failed"], 0)
        self.assertEqual(closed["output_tokens"], 20 * 16)
        self.assertEqual(closed["prompt_tokens"], 20 * 32)
        self.assertEqual(closed["peak_in_flight"], 4)
        self.assertLessEqual(closed["ttft_ms"]["p99"], closed["e2e_ms"]["max"])
        opened = cluster.ask("bench", *load, "--rate", 200, "--think_share", 0.5)
        self.assertEqual(opened["output_tokens"], 20 * 16)
        # The last of 20 arrivals at 200 a second is due after a twentieth of a second at least, or
        # nothing waited for its arrival: the seed's arrivals take 19 / 200 s give or take a half.
        self.assertGreater(opened["duration_seconds"], 0.04)

    def test_bench_is_interrupted(self):
        cluster = self.up()
        bench = self.terminal("bench", "--endpoint", cluster.endpoint, "--num_requests", 5000,
                              "--output_len", 200, "--input_len", 16, "--plot", "none")
        wait_until(lambda: cluster.ask("status")["router"]["inflight"] > 0, "a request in flight")
        bench.wait_for("in flight  0 failed")
        code, text = bench.end(signal.SIGINT)
        self.assertEqual(code, 1)
        self.assertRegex(text, r"interrupted: \d+ finished, 0 failed, \d+ cut short")
        self.assertIn("output tokens/s", text)
        wait_until(lambda: cluster.ask("status")["router"]["inflight"] == 0, "no request left")

    def test_status_is_watched(self):
        cluster = self.up()
        watch = self.terminal("status", "--endpoint", cluster.endpoint, "--watch")
        watch.wait_for("1 of 1 workers ready, 2 of 2 shards up")
        watch.wait_for("KV cache")
        code, text = watch.end(signal.SIGINT)
        self.assertEqual(code, 0)
        self.assertTrue(text.endswith("\x1b[?1049l"), "the first screen is back")
        code, out, _ = conclave("status", "--endpoint", cluster.endpoint, "--watch")
        self.assertEqual(code, 0)
        self.assertNotIn("\x1b", out, "no terminal: once, in plain text")

    def cluster_bench(self, *arguments):
        return subprocess.Popen(
            [sys.executable, SOURCE_DIR / "tools" / "cluster_bench.py", "--bin", BIN_DIR, "--model",
             self.model, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_cluster_bench_compares_topologies(self):
        out, err = self.cluster_bench("--quick").communicate(timeout=DEADLINE_SECONDS)
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
        self.assertEqual(list(rows), ["1+0", "1+2", "2+2"], err)
        self.assertEqual(rows["1+0"][:3], ["1.00"] * 3)
        for row in rows.values():
            self.assertTrue(all(float(rate) > 0 for rate in row[3:6]), out)

    def test_cluster_bench_leaves_nothing_behind(self):
        bench = self.cluster_bench("--repeat", "1000")
        self.addCleanup(bench.communicate)
        self.addCleanup(bench.kill)

        def children(pid):
            return [int(child) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]

        # The cluster, and then a `conclave bench`, are the script's children.
        wait_until(lambda: len(children(bench.pid)) == 2, "a cluster under load")
        started = children(bench.pid)
        started += [process for child in started for process in children(child)]
        bench.send_signal(signal.SIGINT)
        self.assertEqual(bench.wait(DEADLINE_SECONDS), 1)
        for pid in started:
            wait_until(lambda pid=pid: is_gone(pid), f"the end of process {pid}")

    def test_plans_name_flags_that_exist(self):
        helps = {}
        for devices in (["--cpu", "--host_memory_gib", 512, "--host_bandwidth_gbs", 200],
                        ["--cpu", "--host_memory_gib", 64, "--host_bandwidth_gbs", 200,
                         "--hosts", 2],
                        ["--gpu", "h20-96gb", "--gpus", 4]):
            code, out, err = conclave("plan", "--config", "qwen3-30b-a3b", *devices, "--json")
            self.assertEqual(code, 0, err)
            commands = json.loads(out)["commands"]
            for argv in [commands["up"], *(process["argv"] for process in commands["processes"])]:
                program = argv[:2] if argv[:1] == ["conclave"] else argv[:1]
                for flag in (word for word in argv if word.startswith("--")):
                    if tuple(program) not in helps:
                        helps[tuple(program)] = subprocess.run(
                            [BIN_DIR / program[0], *program[1:], "--help"], check=True,
                            capture_output=True, text=True).stdout
                    self.assertRegex(helps[tuple(program)], flag + r"\b")
        self.assertEqual(len(helps), 4, "up and the three services")

    def test_a_plan_can_be_started(self):
        # A GiB of workspace, and 16 MiB for this model's weights and KV.
        code, out, err = conclave("plan", "--config", self.model, "--cpu", "--host_memory_gib",
                                  1 + 1 / 64, "--host_memory_utilization", 1,
                                  "--host_bandwidth_gbs", 10, "--context", 64, "--json")
        self.assertEqual(code, 0, err)
        plan = json.loads(out)
        argv = plan["commands"]["up"]
        self.assertEqual(argv[:3], ["conclave", "up", "--model"])
        cluster = self.start_cluster(*argv[3:], "--threads", 2).wait_ready()
        worker = cluster.ask("status")["workers"][0]
        self.assertEqual(worker["kv_blocks_total"] * 16, plan["kv_tokens"])


if __name__ == "__main__":
    unittest.main()
