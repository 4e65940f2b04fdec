"""Each process is a worker with part of the experts, and the shard of the others: the layout of one
process a card that `conclave plan` prints, here on the CPU."""
import json
import signal
import socket
import unittest

import harness

MODEL = harness.SOURCE_DIR / "models" / "demo"
EXPERTS = ["0-5", "6-11", "12-15"]
QUESTIONS = ["What is 17 + 25?", "Compute 31 - 64 + 9 * 3.", "Hello!"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def arguments(question):
    return ["chat", question, "--temperature", 0, "--max_tokens", 120]


class BothRolesTest(harness.IntegrationTest):
    def start(self, program, *flags):
        started = harness.Program(
            [harness.BIN_DIR / program, "--model", MODEL, "--log_level", "warning", *flags])
        self.addCleanup(started.close)
        return started

    def start_worker(self, index):
        others = [f"127.0.0.1:{port}" for i, port in enumerate(self.ports) if i != index]
        return self.start("conclave-worker", "--listen", f"127.0.0.1:{self.ports[index]}",
                          "--threads", 1, "--kv_cache_tokens", 4096,
                          "--local_experts", EXPERTS[index], "--shards", ",".join(others))

    def ask(self, endpoint, question):
        command, *rest = arguments(question)
        code, out, errors = harness.conclave(command, "--endpoint", endpoint, *rest, "--json")
        self.assertEqual(code, 0, errors)
        return json.loads(out)["content"]

    def test_three_workers_serve_each_other(self):
        alone = self.start_cluster(MODEL, "--shards", 0, "--log_level", "warning").wait_ready()
        wanted = [alone.ask(*arguments(question))["content"] for question in QUESTIONS]
        alone.stop()

        self.ports = [free_port() for _ in EXPERTS]
        workers = [self.start_worker(i) for i in range(len(EXPERTS))]
        for worker in workers:
            worker.wait_for('"ready"')
        # One router for each worker: all answer the same.
        endpoints = []
        for port in self.ports:
            router = self.start("conclave-router", "--listen", "127.0.0.1:0", "--workers",
                                f"127.0.0.1:{port}")
            line = router.wait_for('"listening".*')
            endpoints.append(json.loads(line.string)["grpc"])
            router.wait_for('"ready"')
        for endpoint in endpoints:
            self.assertEqual([self.ask(endpoint, question) for question in QUESTIONS], wanted)

        # One is killed and comes back; the others wait for its experts, and go on.
        workers[2].signal(signal.SIGKILL)
        workers[2].wait()
        self.start_worker(2)
        self.assertEqual(self.ask(endpoints[0], QUESTIONS[0]), wanted[0])

        # A drain ends the process though others hold streams to it open.
        workers[1].signal(signal.SIGTERM)
        self.assertEqual(workers[1].wait(), 0)


if __name__ == "__main__":
    unittest.main()
