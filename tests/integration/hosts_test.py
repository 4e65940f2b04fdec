"""A cluster of four hosts with latency between them gives the tokens of one process."""
import json
import sys
import time
import unittest

import hosts
from harness import BIN_DIR, DEADLINE_SECONDS, SOURCE_DIR, IntegrationTest

MODEL = SOURCE_DIR / "models" / "demo"
LAYERS = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]
TOKENS = 64
PROMPT = ["What is 48 + 37 - 19 + 43?", "--temperature", 0, "--max_tokens", TOKENS, "--ignore_eos"]
# Connects to the first address and prints the shortest time of a handshake, in ms.
ROUND_TRIP = """
import socket, sys, time
best = 1e9
for _ in range(10):
    begin = time.monotonic()
    socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
    best = min(best, time.monotonic() - begin)
print(best * 1000)
"""


class HostsTest(IntegrationTest):
    def start_on(self, network, host, program, *arguments):
        running = network.start(host, [BIN_DIR / program, "--model", MODEL, *arguments])
        self.addCleanup(running.close)
        return running

    def start_cluster_on(self, network):
        # They are on one kernel and see one another's memory, which hosts do not.
        wire = ["--expert_transport", "grpc"]
        shards = [self.start_on(network, f"shard{i}", "conclave-expert-shard", "--listen",
                                f"{network.address(f'shard{i}')}:50052", "--threads", 1,
                                "--shard_index", i, "--num_shards", 2, *wire) for i in range(2)]
        worker = self.start_on(
            network, "worker", "conclave-worker", "--listen", f"{network.address('worker')}:50051",
            "--threads", 1, "--kv_cache_tokens", 8192, "--shards",
            ",".join(f"dns:///shard{i}.conclave.test:50052" for i in range(2)), *wire)
        router = self.start_on(network, "router", "conclave-router", "--listen",
                               f"{network.address('router')}:50050", "--workers",
                               "dns:///worker.conclave.test:50051")
        for program in (*shards, worker, router):
            program.wait_for('"event":"ready"')
        return [*shards, worker, router]

    def generate(self, network):
        done = network.run("router", [BIN_DIR / "conclave", "generate", "--endpoint",
                                      "dns:///router.conclave.test:50050", *PROMPT, "--json"],
                           DEADLINE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)["ids"]

    def run_at(self, latency_ms):
        # Each packet is half of it on its way, so that a round trip has it once.
        try:
            network = hosts.Hosts(self.dir, ["router", "worker", "shard0", "shard1"],
                                  latency_ms / 2000)
        except hosts.Missing as missing:
            print(f"\nSKIPPED: {latency_ms} ms added: {missing}", flush=True)
            self.skipTest(str(missing))
        self.addCleanup(network.close)
        programs = self.start_cluster_on(network)
        done = network.run("worker", [sys.executable, "-c", ROUND_TRIP,
                                      network.address("shard0"), 50052], DEADLINE_SECONDS)
        round_trip_ms = float(done.stdout)
        self.assertGreaterEqual(round_trip_ms, latency_ms)
        self.generate(network)  # connections and caches are warm from now on
        begin = time.monotonic()
        ids = self.generate(network)
        seconds = time.monotonic() - begin
        # Nothing went around the wire: a step waits for the shards in every layer.
        self.assertGreater(seconds, (TOKENS - 1) * LAYERS * latency_ms / 1000)
        print(f"\n{latency_ms} ms added: round trip worker to shard {round_trip_ms:.2f} ms, "
              f"{len(ids) / seconds:.0f} tokens/s ({network.wire})", flush=True)
        for program in programs:
            program.close()
        network.close()
        return ids

    def test_latency_changes_no_token(self):
        alone = self.start_cluster(MODEL, "--threads", 2, "--kv_cache_tokens", 8192).wait_ready()
        wanted = alone.ask("generate", *PROMPT)["ids"]
        self.assertEqual(alone.stop(), 0)
        self.assertEqual(len(wanted), TOKENS)
        for latency_ms in (0, 1, 5):
            with self.subTest(f"{latency_ms} ms"):
                self.assertEqual(self.run_at(latency_ms), wanted)


if __name__ == "__main__":
    reason = hosts.why_not()
    if reason is not None:
        print(f"SKIPPED: hosts_test.py: {reason}")
        sys.exit(77)
    unittest.main()
