"""Peers behind names: what comes back under another address, or joins a name, is found by those who
run.

The names are those of a small DNS server of this test, as gRPC targets dns://SERVER/NAME:PORT."""
import json
import signal
import socket
import struct
import threading
import unittest

from harness import BIN_DIR, IntegrationTest, Program, conclave, wait_until

PROMPT = ["72,101,108,108,111", "--ids", "--temperature", 0, "--max_tokens", 12, "--ignore_eos"]
TYPE_A, CLASS_IN = 1, 1


class DnsServer:
    """Answers A questions from `names`: name -> list of addresses; everything else is empty."""

    def __init__(self):
        self.names = {}
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "%s:%d" % self.socket.getsockname()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                question, sender = self.socket.recvfrom(4096)
            except OSError:
                return
            self.asked += 1
            self.socket.sendto(self.answer(question), sender)

    def answer(self, message):
        end, labels = 12, []
        while message[end]:
            labels.append(message[end + 1:end + 1 + message[end]].decode())
            end += 1 + message[end]
        kind, = struct.unpack(">H", message[end + 1:end + 3])
        addresses = self.names.get(".".join(labels).lower(), []) if kind == TYPE_A else []
        # A response, recursion available; one question, and no name longer valid than it is read.
        header = message[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", TYPE_A, CLASS_IN, 0, 4)
                           + socket.inet_aton(address) for address in addresses)
        return header + message[12:end + 5] + records

    def close(self):
        self.socket.close()


def free_port_on_all(addresses):
    """A port that is free on each of the addresses: a name has one port, whatever it points to."""
    while True:
        with socket.create_server((addresses[0], 0)) as first:
            port = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    socket.create_server((address, port)).close()
            except OSError:
                continue
        return port


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

    def start_shard(self, address):
        shard = self.start("conclave-expert-shard", "--listen", f"{address}:{self.ports['shard']}",
                           "--threads", 1, "--shard_index", 0, "--num_shards", 1)
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

    def is_serving(self):
        code, out, _ = conclave("status", "--endpoint", self.endpoint, "--json")
        return code == 0 and json.loads(out)["serving"]

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
