"""Each process is a worker with part of the experts, and the shard of the others: the layout of one
process a card that `conclave plan` prints, here on the CPU."""
import json
import signal
import socket
import threading
import unittest
import urllib.request

import harness
from dns_server import DnsServer, free_port_on_all

MODEL = harness.SOURCE_DIR / "models" / "demo"
EXPERTS = ["0-5", "6-11", "12-15"]
QUESTIONS = ["What is 17 + 25?", "Compute 31 - 64 + 9 * 3.", "Hello!"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def arguments(question):
    return ["chat", question, "--temperature", 0, "--max_tokens", 120]


class DemoModelTest(harness.IntegrationTest):
    def start(self, program, *flags):
        started = harness.Program(
            [harness.BIN_DIR / program, "--model", MODEL, "--log_level", "warning", *flags])
        self.addCleanup(started.close)
        return started

    def ask(self, endpoint, question):
        command, *rest = arguments(question)
        code, out, errors = harness.conclave(command, "--endpoint", endpoint, *rest, "--json")
        self.assertEqual(code, 0, errors)
        return json.loads(out)["content"]

    def answers_of_one_process(self):
        alone = self.start_cluster(MODEL, "--shards", 0, "--log_level", "warning").wait_ready()
        answers = [alone.ask(*arguments(question))["content"] for question in QUESTIONS]
        alone.stop()
        return answers


class BothRolesTest(DemoModelTest):
    def start_worker(self, index):
        others = [f"127.0.0.1:{port}" for i, port in enumerate(self.ports) if i != index]
        return self.start("conclave-worker", "--listen", f"127.0.0.1:{self.ports[index]}",
                          "--threads", 1, "--kv_cache_tokens", 4096,
                          "--local_experts", EXPERTS[index], "--shards", ",".join(others))

    def test_three_workers_serve_each_other(self):
        wanted = self.answers_of_one_process()
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


class RingTest(DemoModelTest):
    """As Kubernetes runs it: each pod knows its index, and all the same names, its own among them."""
    NUM_WORKERS = 4
    ADDRESSES = [f"127.0.0.{i + 1}" for i in range(NUM_WORKERS + 1)]  # one to move to

    def setUp(self):
        super().setUp()
        self.wanted = self.answers_of_one_process()
        self.port = free_port_on_all(self.ADDRESSES)
        self.dns = DnsServer()
        self.addCleanup(self.dns.close)
        for index in range(self.NUM_WORKERS):
            self.point(index, self.ADDRESSES[index])

    def point(self, index, address):
        """A name each, and one for all, which are there before a process is, and while it is not."""
        self.dns.names[f"worker-{index}.test"] = [address]
        self.dns.names["worker.test"] = [
            self.dns.names.get(f"worker-{i}.test", [None])[0] for i in range(self.NUM_WORKERS)]

    def target(self, name):
        return f"dns://{self.dns.address}/{name}.test:{self.port}"

    def start_ring_worker(self, index, shards):
        address = self.dns.names[f"worker-{index}.test"][0]
        worker = harness.Program(
            [harness.BIN_DIR / "conclave-worker", "--model", MODEL, "--threads", 1,
             "--kv_cache_tokens", 4096, "--log_level", "warning"],
            {"CONCLAVE_WORKER_LISTEN": f"{address}:{self.port}",
             "CONCLAVE_WORKER_SHARD_INDEX": str(index),
             "CONCLAVE_WORKER_NUM_SHARDS": str(self.NUM_WORKERS),
             "CONCLAVE_WORKER_SHARDS": ",".join(shards)})
        self.addCleanup(worker.close)
        worker.metrics = json.loads(worker.wait_for('"listening".*').string)["metrics"]
        return worker

    def start_router(self, *workers):
        router = self.start("conclave-router", "--listen", "127.0.0.1:0", "--workers",
                            ",".join(workers))
        endpoint = json.loads(router.wait_for('"listening".*').string)["grpc"]
        router.wait_for('"ready"')
        return endpoint

    @staticmethod
    def metrics_of(worker):
        with urllib.request.urlopen(f"http://{worker.metrics}/metrics", timeout=60) as answer:
            return answer.read().decode().splitlines()

    def metric(self, worker, name):
        (value,) = [line.split()[1] for line in self.metrics_of(worker)
                    if line.startswith(name + " ")]
        return float(value)

    def shards_of(self, worker):
        """shard -> whether it is up, as the worker's metrics say."""
        name = "conclave_worker_shard_up{"
        return {line.split('"')[1]: line.endswith(" 1") for line in self.metrics_of(worker)
                if line.startswith(name)}

    def check_ring(self, shards):
        # Three of four: they load, tell their experts, and wait for those of the last.
        workers = [self.start_ring_worker(i, shards) for i in range(self.NUM_WORKERS - 1)]
        others_up = [False, True, True]
        harness.wait_until(
            lambda: all(sorted(self.shards_of(worker).values()) == others_up for worker in workers),
            "each has found the others and not itself")
        for worker in workers:
            self.assertEqual(self.metric(worker, "conclave_worker_missing_experts"), 4)
        workers.append(self.start_ring_worker(self.NUM_WORKERS - 1, shards))
        for worker in workers:
            worker.wait_for('"ready"')
        self.endpoint = self.start_router(self.target("worker"))
        self.assertEqual([self.ask(self.endpoint, question) for question in QUESTIONS], self.wanted)
        harness.wait_until(
            lambda: all(list(self.shards_of(worker).values()) == 3 * [True] for worker in workers),
            "each has three others")
        return workers

    def names_one_by_one(self):
        return [self.target(f"worker-{i}") for i in range(self.NUM_WORKERS)]

    def test_one_name_for_all(self):
        workers = self.check_ring([self.target("worker")])
        # One is killed and comes back elsewhere; requests wait for it, and end as they would have.
        answers = {}

        def ask(question):
            answers[question] = self.ask(self.endpoint, question)
        asking = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS]
        for thread in asking:
            thread.start()
        workers[1].signal(signal.SIGKILL)
        workers[1].wait()
        self.point(1, self.ADDRESSES[-1])
        self.start_ring_worker(1, [self.target("worker")]).wait_for('"ready"')
        for thread in asking:
            thread.join()
        self.assertEqual([answers.get(question) for question in QUESTIONS], self.wanted)

    def test_a_name_each_and_a_rolling_restart(self):
        workers = self.check_ring(self.names_one_by_one())
        for index, worker in enumerate(workers):
            # A shard is called by its pod's number, and nobody calls itself.
            self.assertEqual(set(self.shards_of(worker)), set("0123") - {str(index)})
        # As a StatefulSet does it: the last first, the next one when it is ready.
        for index in reversed(range(self.NUM_WORKERS)):
            workers[index].signal(signal.SIGTERM)
            self.assertEqual(workers[index].wait(), 0)
            workers[index] = self.start_ring_worker(index, self.names_one_by_one())
            workers[index].wait_for('"ready"')
        self.assertEqual(self.ask(self.endpoint, QUESTIONS[0]), self.wanted[0])

    def test_a_drain_lends_its_experts_until_its_own_requests_are_done(self):
        workers = self.check_ring(self.names_one_by_one())
        first = self.start_router(self.target("worker-0"))
        long_one = harness.Program(
            [harness.BIN_DIR / "conclave", "generate", "Count: one, two,", "--endpoint", first,
             "--ignore_eos", "--max_tokens", 2000, "--temperature", 0, "--json"])
        self.addCleanup(long_one.close)
        running = "conclave_worker_running_sequences"
        harness.wait_until(lambda: self.metric(workers[0], running) == 1, "it runs at the first")
        workers[0].signal(signal.SIGTERM)
        others = self.start_router(*(self.target(f"worker-{i}") for i in (1, 2, 3)))
        self.assertEqual(self.ask(others, QUESTIONS[0]), self.wanted[0])
        self.assertIsNone(workers[0].process.poll(), "the long request is to outlast the other")
        self.assertEqual(long_one.wait(), 0)
        self.assertEqual(workers[0].wait(), 0)


if __name__ == "__main__":
    unittest.main()
