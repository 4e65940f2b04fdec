"""Whole clusters on a checkpoint of random weights: answers do not depend on what computes them."""
import json
import os
import signal
import subprocess
import threading
import time
import unittest
import urllib.request

from harness import (BIN_DIR, DEADLINE_SECONDS, IntegrationTest, conclave, is_gone,
                     wait_until)

# Two threads are enough for a model of 64 columns, and every process starts as many.
COMMON = ["--threads", 2, "--kv_cache_tokens", 8192]
PROMPTS = ["Hello", "a much longer prompt, " * 20, "数字 42 and ünïcode"]


PROMPT_IDS = [72, 101, 108, 108, 111, 32, 119]
LONG = 600  # ids of a generation in whose middle something happens


def greedy_flags(tokens):
    return ["--temperature", 0, "--max_tokens", tokens, "--ignore_eos"]


class ClusterTest(IntegrationTest):
    model = None

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

    def up(self, workers, shards, *arguments):
        return self.start_cluster(self.model, "--workers", workers, "--shards", shards, *COMMON,
                                  *arguments).wait_ready()

    def wait_for_transport(self, cluster, transport):
        """Until every worker reaches every shard so; they agree on memory just after the start."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            status = cluster.ask("status", "--wait", DEADLINE_SECONDS)
            used = {shard["transport"] for worker in status["workers"] for shard in worker["shards"]}
            if used == {transport}:
                return
            self.assertLess(time.monotonic(), deadline, used)

    def answers(self, cluster, tokens=24):
        return [cluster.ask("generate", prompt, *greedy_flags(tokens))["ids"] for prompt in PROMPTS]

    def start_generation(self, cluster):
        """A greedy generation of LONG ids, some of which have come and most of which have not."""
        argv = [BIN_DIR / "conclave", "generate", "--endpoint", cluster.endpoint, "--ids",
                ",".join(map(str, PROMPT_IDS)), *greedy_flags(LONG)]
        process = subprocess.Popen([str(argument) for argument in argv], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        begun = b""
        while begun.count(b" ") < 5:
            part = os.read(process.stdout.fileno(), 16)
            self.assertTrue(part, "the generation ended at once")
            begun += part
        self.assertLess(begun.count(b" "), LONG - 1, "it is over already")
        return process, begun

    def finish_generation(self, generation):
        process, begun = generation
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        self.assertEqual(process.returncode, 0, err)
        return list(map(int, (begun + out).split()))

    def generate_whole(self, cluster):
        return cluster.ask("generate", "--ids", ",".join(map(str, PROMPT_IDS)),
                           *greedy_flags(LONG))["ids"]

    def experts_held(self, cluster):
        """Of each worker, the experts of its shards."""
        return [sorted(expert for shard in worker["shards"] for expert in shard["expert_ids"])
                for worker in cluster.ask("status")["workers"]]

    def test_every_topology_gives_the_same_tokens(self):
        seen = {}
        for workers, shards in ((1, 0), (1, 1), (2, 3)):
            cluster = self.up(workers, shards)
            # The router looks at its workers now and then: it may have seen one before its shards
            # had answered.
            wait_until(lambda: self.experts_held(cluster)
                       == [list(range(8)) if shards else []] * workers,
                       "the router knows what every worker's shards hold")
            self.assertTrue(cluster.ask("status")["serving"])
            if shards:
                self.wait_for_transport(cluster, "shared_memory")
            seen[workers, shards] = self.answers(cluster)
            self.assertEqual([len(ids) for ids in seen[workers, shards]], [24] * len(PROMPTS))
            self.assertEqual(cluster.stop(), 0, cluster.program.errors)
        self.assertEqual(seen[1, 0], seen[1, 1])
        self.assertEqual(seen[1, 0], seen[2, 3])
        by_grpc = self.up(1, 2, "--shared_memory", "off")
        self.wait_for_transport(by_grpc, "grpc")
        self.assertEqual(seen[1, 0], self.answers(by_grpc))

    def test_a_batch_gives_what_each_request_gives_alone(self):
        cluster = self.up(1, 2)
        alone = self.answers(cluster)
        together = [None] * 9

        def ask(i):
            together[i] = cluster.ask("generate", PROMPTS[i % 3],
                                      *greedy_flags(24))["ids"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(together))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(together, alone * 3)

    def test_a_seed_repeats_an_answer(self):
        cluster = self.up(1, 0)
        flags = [PROMPTS[0], "--temperature", 1, "--max_tokens", 16, "--ignore_eos"]
        first = cluster.ask("generate", *flags, "--seed", 5)
        self.assertEqual(first["ids"], cluster.ask("generate", *flags, "--seed", 5)["ids"])
        self.assertNotEqual(first["ids"], cluster.ask("generate", *flags, "--seed", 6)["ids"])
        unseeded = cluster.ask("generate", *flags)
        self.assertEqual(unseeded["ids"],
                         cluster.ask("generate", *flags, "--seed", unseeded["seed"])["ids"])

    def test_scores_are_those_of_the_cluster(self):
        ids = PROMPT_IDS
        lines = json.dumps({"ids": ids}) + "\nbroken\n" + json.dumps({"ids": [5]}) + "\n"
        code, out, err = conclave("score", "--model", self.model, "--threads", 2, stdin=lines)
        scores = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(code, 1)
        self.assertIn("1 of 3 lines", err)
        self.assertEqual(len(scores[0]["logprobs"]), len(ids) - 1)
        self.assertTrue(all(logprob < 0 for logprob in scores[0]["logprobs"]))
        self.assertIn("line 2", scores[1]["error"])
        self.assertEqual(scores[2], {"logprobs": []})
        cluster = self.up(1, 2)
        answer = cluster.ask("generate", ",".join(map(str, ids)), "--ids", "--prompt_logprobs",
                             "--max_tokens", 0)
        self.assertEqual(answer["ids"], [])
        # Printed as 32-bit and as 64-bit numbers of the same float.
        for mine, theirs in zip(answer["prompt_logprobs"], scores[0]["logprobs"], strict=True):
            self.assertAlmostEqual(mine, theirs, places=6)

    def test_chats_in_a_conversation(self):
        cluster = self.up(1, 1)
        result = cluster.ask("chat", "Hi", "--no_think", "--max_tokens", 8, "--seed", 1)
        self.assertEqual(result["thinking"], "")
        self.assertEqual(result["thinking_report"]["mode"], "off")
        self.assertEqual(result["thinking_report"]["source"], "request")
        self.assertLessEqual(result["usage"]["completion_tokens"], 8)
        code, out, err = conclave("chat", "--endpoint", cluster.endpoint, "--max_tokens", 8,
                                  "--stats", stdin="one\ntwo\n")
        self.assertEqual(code, 0, err)
        self.assertEqual(err.count("prompt tokens"), 2, err)

    def test_refusals_reach_the_client(self):
        cluster = self.up(1, 0)
        for arguments, message in ((["chat", "hi", "--model", "other"], "other"),
                                   (["generate", "a", "--ids"], "token id"),
                                   (["generate", "999999", "--ids"], "999999"),
                                   (["chat", "hi", "--top_p", "0"], "top_p")):
            with self.subTest(arguments):
                code, out, err = conclave(*arguments, "--endpoint", cluster.endpoint)
                self.assertEqual((code, out), (1, ""))
                self.assertIn(message, err)

    def test_a_killed_shard_is_waited_for(self):
        cluster = self.up(1, 2)
        self.wait_for_transport(cluster, "shared_memory")
        wanted = self.generate_whole(cluster)
        generation = self.start_generation(cluster)
        os.kill(cluster.processes["shard-1"]["pid"], signal.SIGKILL)
        cluster.program.wait_for("^shard-1 is ready again")
        self.assertEqual(self.finish_generation(generation), wanted)
        self.wait_for_transport(cluster, "shared_memory")

    def test_a_killed_workers_requests_go_on_at_another(self):
        cluster = self.up(2, 2)
        self.wait_for_transport(cluster, "shared_memory")
        wanted = self.generate_whole(cluster)
        generation = self.start_generation(cluster)
        busy = [worker["target"] for worker in cluster.ask("status")["workers"]
                if worker["inflight"] > 0]
        self.assertEqual(len(busy), 1)
        pid = [process["pid"] for process in cluster.processes.values()
               if process["grpc"] == busy[0]][0]
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.finish_generation(generation), wanted)
        metrics = urllib.request.urlopen(cluster.processes["router"]["metrics"]).read().decode()
        failovers = [line for line in metrics.splitlines()
                     if line.startswith("conclave_router_failovers_total")]
        self.assertEqual(sum(float(line.rsplit(" ", 1)[1]) for line in failovers), 1, failovers)

    def test_stopping_finishes_what_was_accepted(self):
        cluster = self.up(1, 2)
        wanted = self.generate_whole(cluster)
        generation = self.start_generation(cluster)
        self.assertEqual(cluster.stop(), 0, cluster.program.errors)
        self.assertEqual(self.finish_generation(generation), wanted)
        for process in cluster.processes.values():
            self.assertTrue(is_gone(process["pid"]))

    def test_every_process_serves_metrics(self):
        cluster = self.up(1, 1)
        cluster.ask("generate", PROMPTS[0], *greedy_flags(8))
        for name, service in (("router", "router"), ("worker-0", "worker"), ("shard-0", "shard")):
            text = urllib.request.urlopen(cluster.processes[name]["metrics"]).read().decode()
            self.assertIn(f"conclave_{service}_", text)

    def test_a_dense_model_needs_no_shard(self):
        dense = self.dir / "tiny-dense"
        self.assertEqual(conclave("synth", "--config", "tiny-dense", "--out", dense)[0], 0)
        cluster = self.start_cluster(dense, *COMMON).wait_ready()
        self.assertEqual(len(self.answers(cluster)[0]), 24)
        self.assertEqual(cluster.ask("status")["model"]["num_experts"], 0)

    def test_a_broken_checkpoint_is_named(self):
        for path in self.model.iterdir():
            (self.dir / path.name).write_bytes(path.read_bytes())
        weights = self.dir / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        cluster = self.start_cluster(self.dir, "--shards", 2, *COMMON)
        self.assertEqual(cluster.program.wait(), 1)
        self.assertIn("model.safetensors", cluster.program.errors[-1])
        code, _, err = conclave("score", "--model", self.dir, stdin='{"ids": [1]}\n')
        self.assertEqual(code, 1)
        self.assertIn("model.safetensors", err)


if __name__ == "__main__":
    unittest.main()
