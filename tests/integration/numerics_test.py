"""The same request gives the same tokens: in any batch, on any number of shards and workers, out of
memory, and while shards and workers are killed."""
import concurrent.futures
import os
import signal
import time
import unittest

import harness

MODEL = harness.SOURCE_DIR / "models" / "demo"

QUESTIONS = ["What is 17 + 25?", "What is 8 * 7 - 12?", "Compute 31 - 64 + 9 * 3.", "12+30*3-7=?",
             "计算 45 - 18 + 6 * 2。", "Hello!", "What is 5 + 6 + 7 + 8 + 9?"]


def requests():
    """Twenty (command, arguments, stdin): thinking on, off, budgeted; sampled and greedy; raw."""
    made = []
    for i in range(16):
        arguments = [QUESTIONS[i % len(QUESTIONS)], "--seed", 1000 + i, "--max_tokens", 300]
        if i % 4 == 1:
            arguments.append("--no_think")
        if i % 4 == 2:
            arguments += ["--thinking_budget", 5 + i]
        if i % 4 == 3:
            arguments += ["--temperature", 0]
        made.append(("chat", arguments))
    for i in range(4):
        arguments = ["One two three " * (20 * i + 1), "--seed", i, "--max_tokens", 80,
                     "--temperature", 1.2, "--ignore_eos"]
        made.append(("generate", arguments))
    return made


LONG = ("generate", ["Count:", "--seed", 5, "--max_tokens", 1500, "--temperature", 0.9,
                     "--ignore_eos"])


def outcome(answer):
    """What must be equal; not timings, nor how often the request moved or what was cached."""
    result = {key: answer.get(key) for key in
              ("thinking", "content", "text", "ids", "tool_calls", "finish_reason",
               "thinking_report")}
    result["usage"] = {key: count for key, count in answer["usage"].items()
                       if key != "cached_prompt_tokens"}
    return result


class NumericsTest(harness.IntegrationTest):
    @classmethod
    def setUpClass(cls):
        cluster = harness.Cluster(MODEL, "--log_level", "warning")
        try:
            cluster.wait_ready()
            cls.expected = [outcome(cluster.ask(command, *arguments))
                            for command, arguments in requests()]
            cls.expected_long = outcome(cluster.ask(LONG[0], *LONG[1]))
            cluster.stop()
        finally:
            cluster.close()

    def ask_all(self, cluster):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(cluster.ask, command, *arguments)
                       for command, arguments in requests()]
            return [outcome(answer.result()) for answer in answers]

    def check(self, *arguments):
        cluster = self.start_cluster(MODEL, "--log_level", "warning", *arguments).wait_ready()
        for expected, actual in zip(self.expected, self.ask_all(cluster), strict=True):
            self.assertEqual(expected, actual)
        self.assertEqual(cluster.stop(), 0)

    def test_together_in_one_batch(self):
        self.check("--max_running", 16)

    def test_on_one_two_and_three_shards(self):
        for shards in (1, 2, 3):
            with self.subTest(shards=shards):
                self.check("--shards", shards)

    def test_quantized_weights_on_shards_and_in_process(self):
        for dtype in ("int8", "int4"):
            answers = []
            for shards in (0, 2):
                cluster = self.start_cluster(MODEL, "--log_level", "warning", "--shards", shards,
                                             "--weight_dtype", dtype).wait_ready()
                answers.append(self.ask_all(cluster))
                self.assertEqual(cluster.stop(), 0)
            with self.subTest(dtype=dtype):
                self.assertEqual(answers[0], answers[1])
                self.assertNotEqual(answers[0], self.expected)

    def test_on_two_workers_with_two_shards(self):
        self.check("--workers", 2, "--shards", 2)

    def test_with_too_few_kv_blocks_for_all(self):
        # The longest request alone takes 488 tokens; without preemption 640 would not do for 16.
        self.check("--kv_cache_tokens", 640, "--max_running", 16)

    def start_long(self, cluster):
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(pool.shutdown)
        return pool.submit(cluster.ask, LONG[0], *LONG[1])

    def busy_workers(self, cluster):
        return [worker["target"] for worker in cluster.ask("status")["workers"]
                if worker["inflight"] > 0]

    def kill_while_running(self, cluster, victim):
        answer = self.start_long(cluster)
        harness.wait_until(lambda: self.busy_workers(cluster) or answer.done(), "running")
        time.sleep(0.3)  # somewhere in the middle; any point must do
        self.assertFalse(answer.done(), "the request ended before anything could be killed")
        os.kill(cluster.processes[victim]["pid"], signal.SIGKILL)
        return answer.result(harness.DEADLINE_SECONDS)

    def test_a_shard_is_killed_and_returns(self):
        cluster = self.start_cluster(MODEL, "--shards", 2, "--log_level", "error").wait_ready()
        answer = self.kill_while_running(cluster, "shard-1")
        self.assertEqual(outcome(answer), self.expected_long)
        self.assertEqual(answer["failovers"], 0)
        cluster.stop()

    def test_a_worker_is_killed_and_the_other_goes_on(self):
        cluster = self.start_cluster(MODEL, "--workers", 2, "--log_level", "error").wait_ready()
        # Two workers, one request: kill the one that runs it.
        answer = self.start_long(cluster)
        busy = []
        harness.wait_until(lambda: busy.extend(self.busy_workers(cluster)) or busy or answer.done(),
                           "running")
        self.assertTrue(busy, "the request ended before anything could be killed")
        victim = next(process for process in cluster.processes.values()
                      if process["grpc"] == busy[0])
        os.kill(victim["pid"], signal.SIGKILL)
        result = answer.result(harness.DEADLINE_SECONDS)
        self.assertEqual(outcome(result), self.expected_long)
        self.assertGreaterEqual(result["failovers"], 1)
        cluster.stop()


if __name__ == "__main__":
    unittest.main()
