"""Peers behind names: what comes back under another address, or joins a name, is found by those who
run.

The names are those of a small DNS server of the test."""
import json
import signal
import threading
import unittest

from dns_server import DnsServer, free_port_on_all
from harness import BIN_DIR, IntegrationTest, Program, conclave, wait_until

PROMPT = ["72,101,108,108,111", "--ids", "--temperature", 0, "--max_tokens", 12, "--ignore_eos"]


class DnsTest(IntegrationTest):
    def setUp(self):
        super().setUp()
        self.model = self.dir / "tiny-moe"
        code, _, err = conclave("synth", "--config", "tiny-moe", "--out", self.model)
        self.assertEqual(code, 0, err)
        self.dns = DnsServer()
        self.addCleanup(self.dns.close)
        addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        self.ports = {"shard": free_port_on_all(addresses), "worker": free_port_on_all(addresses)}

    def target(self, name):
        return f"dns://{self.dns.address}/{name}.conclave.test:{self.ports[name]}"

    def point(self, name, *addresses):
        self.dns.names[f"{name}.conclave.test"] = list(addresses)

    def start(self, program, *arguments):
        running = Program([BIN_DIR / program, "--model", self.model, *arguments])
        self.addCleanup(running.close)
        return running

    def start_shard(self, address, index=0, num_shards=1):
        shard = self.start("conclave-expert-shard", "--listen", f"{address}:{self.ports['shard']}",
                           "--threads", 1, "--shard_index", index, "--num_shards",
                           num_shards)
        shard.wait_for('"event":"ready"')
        return shard

    def start_worker(self, address):
        worker = self.start("conclave-worker", "--listen", f"{address}:{self.ports['worker']}",
                            "--threads", 1, "--kv_cache_tokens", 4096, "--shards",
                            self.target("shard"))
        worker.wait_for('"event":"ready"')
        return worker

    def start_router(self):
        router = self.start("conclave-router", "--listen", "127.0.0.1:0", "--workers",
                            self.target("worker"))
        self.endpoint = router.wait_for('"grpc":"([^"]+)"')[1]
        router.wait_for('"event":"ready"')
        return router

    def generate(self):
        code, out, err = conclave("generate", "--endpoint", self.endpoint, *PROMPT, "--json")
        self.assertEqual(code, 0, err)
        return json.loads(out)["ids"]

    def status(self):
        code, out, _ = conclave("status", "--endpoint", self.endpoint, "--json")
        return json.loads(out) if code == 0 else {"serving": False, "workers": []}

    def is_serving(self):
        return self.status()["serving"]

    def test_a_shard_and_a_worker_come_back_under_other_addresses(self):
        self.point("shard", "127.0.0.1")
        self.point("worker", "127.0.0.1")
        shard = self.start_shard("127.0.0.1")
        worker = self.start_worker("127.0.0.1")
        router = self.start_router()
        wanted = self.generate()

        shard.signal(signal.SIGKILL)
        shard.wait()
        self.point("shard", "127.0.0.2")
        self.start_shard("127.0.0.2")
        self.assertEqual(self.generate(), wanted)  # it waits for the shard

        worker.signal(signal.SIGKILL)
        worker.wait()
        self.point("worker", "127.0.0.3")
        self.start_worker("127.0.0.3")
        wait_until(self.is_serving, "the router has found the worker")
        self.assertEqual(self.generate(), wanted)
        self.assertIsNone(router.process.poll())

    def test_a_replica_that_joins_a_name_takes_over(self):
        self.point("shard", "127.0.0.1")
        self.point("worker", "127.0.0.1")
        first = self.start_shard("127.0.0.1")
        worker = self.start_worker("127.0.0.1")
        self.start_router()
        wanted = self.generate()
        # It joins while the first serves; nobody is told but the name.
        self.start_shard("127.0.0.2")
        self.point("shard", "127.0.0.1", "127.0.0.2")
        first.signal(signal.SIGKILL)
        first.wait()
        self.assertEqual(self.generate(), wanted)
        self.assertIsNone(worker.process.poll())

    def test_workers_join_and_leave_a_name_under_load(self):
        self.point("shard", "127.0.0.1")
        self.point("worker", "127.0.0.1")
        self.start_shard("127.0.0.1")
        first = self.start_worker("127.0.0.1")
        self.start_router()
        wanted = self.generate()
        enough, answers, failures = threading.Event(), [], []

        def ask():
            while not enough.is_set():
                code, out, err = conclave("generate", "--endpoint", self.endpoint, *PROMPT, "--json")
                if code != 0:
                    failures.append(err)
                    return
                answers.append(json.loads(out)["ids"])

        def used():
            """Workers the router has, and of those the ones that have computed a token."""
            workers = self.status()["workers"]
            for worker in workers:
                rows = sum(shard["rows_sent"] for shard in worker["shards"])
                if rows > 0:
                    has_computed.add(worker["target"])
            return {worker["target"] for worker in workers}

        has_computed = set()
        one, two = (f"127.0.0.{i}:{self.ports['worker']}" for i in (1, 2))
        load = [threading.Thread(target=ask) for _ in range(3)]
        for thread in load:
            thread.start()
        try:
            self.start_worker("127.0.0.2")
            self.point("worker", "127.0.0.1", "127.0.0.2")
            wait_until(lambda: used() == {one, two} == has_computed, "both compute")
            self.point("worker", "127.0.0.2")
            wait_until(lambda: used() == {two}, "the first has left")
            first.signal(signal.SIGTERM)
            self.assertEqual(first.wait(), 0)
            seen = len(answers)
            wait_until(lambda: len(answers) > seen + 3 or failures, "the second goes on alone")
        finally:
            enough.set()
            for thread in load:
                thread.join()
        self.assertEqual(failures, [])
        self.assertTrue(all(ids == wanted for ids in answers))

    def test_shards_behind_one_name_are_all_used(self):
        self.point("shard", "127.0.0.1", "127.0.0.2")
        self.point("worker", "127.0.0.1")
        for index, address in enumerate(("127.0.0.1", "127.0.0.2")):
            self.start_shard(address, index, 2)
        self.start_worker("127.0.0.1")  # ready: each holds half of the experts
        self.start_router()
        self.generate()

        def both_are_used():  # status is what the worker said when it was asked last
            shards = self.status()["workers"][0]["shards"]
            return [shard["up"] and shard["rows_sent"] > 0 for shard in shards] == [True, True]
        wait_until(both_are_used, "both shards compute")

    def test_a_name_that_is_not_there_yet_is_asked_for_again(self):
        self.point("worker", "127.0.0.1")
        self.start_shard("127.0.0.1")
        worker = self.start("conclave-worker", "--listen", f"127.0.0.1:{self.ports['worker']}",
                            "--threads", 1, "--kv_cache_tokens", 4096, "--shards",
                            self.target("shard"))
        wait_until(lambda: self.dns.asked >= 3, "the name is asked for again")
        self.point("shard", "127.0.0.1")
        worker.wait_for('"event":"ready"')


if __name__ == "__main__":
    unittest.main()
