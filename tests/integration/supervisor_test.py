"""`conclave up` with stand-ins for its servers: order, restarts, failures, and that nothing is left."""
import json
import os
import pathlib
import shutil
import signal
import socket
import unittest

from harness import BIN_DIR, IntegrationTest, Program, conclave, is_gone, wait_until

PROGRAMS = ["conclave-expert-shard", "conclave-worker", "conclave-router"]


class SupervisorTest(IntegrationTest):
    @classmethod
    def setUpClass(cls):
        cls.fake = pathlib.Path(__file__).parent / "fake_server.py"

    def setUp(self):
        super().setUp()
        for program in PROGRAMS:
            target = self.dir / program
            shutil.copy(self.fake, target)
            target.chmod(0o755)
        self.model = self.synth("tiny-moe")

    def synth(self, config):
        model = self.dir / config
        code, _, err = conclave("synth", "--config", config, "--out", model)
        self.assertEqual(code, 0, err)
        return model

    def up(self, *arguments, model=None, **env):
        return self.start_cluster(
            model or self.model, "--bin_dir", self.dir, *arguments,
            env={"FAKE_DIR": str(self.dir), **{f"FAKE_{k.upper()}": v for k, v in env.items()}})

    def events(self, wanted=None):
        path = self.dir / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if wanted in (None, event[0])]

    def assert_nothing_left(self):
        for _, program, pid, _ in self.events("start"):
            wait_until(lambda pid=pid: is_gone(pid), f"{program} {pid} has ended")

    def test_starts_bottom_up_and_prints_every_endpoint(self):
        cluster = self.up("--workers", 2, "--shards", 3, "--threads", 6).wait_ready()
        self.assertEqual(sorted(cluster.processes),
                         ["router", "shard-0", "shard-1", "shard-2", "worker-0", "worker-1"])
        started = self.events("start")
        self.assertEqual([event[1] for event in started],
                         ["conclave-expert-shard"] * 3 + ["conclave-worker"] * 2 +
                         ["conclave-router"])
        for name, process in cluster.processes.items():
            address = process["grpc"].split(":")
            socket.create_connection((address[0], int(address[1])), timeout=10).close()
            self.assertFalse(is_gone(process["pid"]), name)
        arguments = {event[2]: event[3] for event in started}

        def flag(name, which):
            given = arguments[cluster.processes[name]["pid"]]
            return given[given.index(which) + 1]

        grpc = {name: process["grpc"] for name, process in cluster.processes.items()}
        shards = ",".join(grpc[f"shard-{i}"] for i in range(3))
        self.assertEqual(flag("worker-0", "--shards"), shards)
        self.assertEqual(flag("worker-1", "--shards"), shards)
        self.assertEqual(flag("router", "--workers"), f"{grpc['worker-0']},{grpc['worker-1']}")
        self.assertEqual(
            [(flag(f"shard-{i}", "--shard_index"), flag(f"shard-{i}", "--num_shards"))
             for i in range(3)], [("0", "3"), ("1", "3"), ("2", "3")])
        self.assertEqual(flag("shard-0", "--threads"), "6")
        self.assertEqual(flag("worker-0", "--threads"), "3")
        self.assertIn(grpc["router"], cluster.program.lines[-1])

    def test_signal_drains_from_the_router_down(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number):
                (self.dir / "events").unlink(missing_ok=True)
                cluster = self.up("--workers", 2, "--shards", 2).wait_ready()
                cluster.program.signal(number)
                self.assertEqual(cluster.program.wait(), 0, cluster.program.errors)
                self.assertEqual([event[1] for event in self.events("term")],
                                 ["conclave-router"] + ["conclave-worker"] * 2 +
                                 ["conclave-expert-shard"] * 2)
                self.assert_nothing_left()

    def test_no_shards_flag_without_shards(self):
        self.up("--workers", 1, "--shards", 0).wait_ready()
        started = self.events("start")
        self.assertEqual([event[1] for event in started], ["conclave-worker", "conclave-router"])
        self.assertNotIn("--shards", started[0][3])

    def test_restarts_what_dies_on_the_same_ports(self):
        cluster = self.up("--workers", 1, "--shards", 2).wait_ready()
        for name in ("shard-1", "worker-0", "router"):
            process = cluster.processes[name]
            os.kill(process["pid"], signal.SIGKILL)
            cluster.program.wait_for(f"^{name} was killed by signal 9")
            pid = int(cluster.program.wait_for(f"^{name} starts again, pid (\\d+)")[1])
            cluster.program.wait_for(f"^{name} is ready again")
            given = [event[3] for event in self.events("start") if event[2] == pid][0]
            self.assertEqual(given[given.index("--listen") + 1], process["grpc"])
            http_flag = "--http_listen" if name == "router" else "--metrics_listen"
            self.assertIn(given[given.index(http_flag) + 1], process["metrics"])
            self.assertEqual(self.port_of_process(pid), int(process["grpc"].split(":")[1]))
        self.assertEqual(cluster.stop(), 0)
        self.assert_nothing_left()

    @staticmethod
    def port_of_process(pid):
        """The lowest-numbered listening socket: the fakes bind gRPC's first."""
        listening = {}
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = int(fields[1].split(":")[1], 16)
        for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target in listening:
                return listening[target]
        return None

    def test_a_port_in_use_is_named_before_anything_starts(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for flag in ("--grpc_port", "--http_port"):
                cluster = self.up("--shards", 2, flag, port)
                self.assertEqual(cluster.program.wait(), 1)
                self.assertEqual(len(cluster.program.errors), 1, cluster.program.errors)
                self.assertIn(f"127.0.0.1:{port}", cluster.program.errors[0])
        self.assertEqual(self.events(), [])

    def test_given_ports_are_used(self):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        grpc, http = (server.getsockname()[1] for server in sockets)
        for server in sockets:
            server.close()
        cluster = self.up("--grpc_port", grpc, "--http_port", http).wait_ready()
        self.assertEqual(cluster.endpoint, f"127.0.0.1:{grpc}")
        self.assertEqual(cluster.http, f"http://127.0.0.1:{http}")
        self.assertEqual(cluster.processes["router"]["metrics"], f"http://127.0.0.1:{http}/metrics")
        self.assertIsNone(cluster.processes["worker-0"]["http"])

    def test_gives_up_on_a_process_that_fails_at_start(self):
        for program, name in zip(PROGRAMS, ("shard-0", "worker-0", "router")):
            with self.subTest(program):
                (self.dir / "events").unlink(missing_ok=True)
                cluster = self.up("--shards", 1, fail=program)
                self.assertEqual(cluster.program.wait(), 1)
                last = cluster.program.errors[-1]
                self.assertIn(f"{name} exited with code 1: {program}: the weights are broken", last)
                self.assertIn("gave up after 5 attempts", last)
                self.assertEqual(
                    sum(event[1] == program for event in self.events("start")), 5)
                self.assert_nothing_left()

    def test_gives_up_at_once_on_wrong_flags(self):
        cluster = self.up("--shards", 1, fail="conclave-worker", fail_code="2")
        self.assertEqual(cluster.program.wait(), 1)
        self.assertRegex(cluster.program.errors[-1], "worker-0 exited with code 2: .* broken$")
        self.assertEqual(sum(e[1] == "conclave-worker" for e in self.events("start")), 1)

    def test_a_cluster_that_is_never_ready_is_stopped(self):
        cluster = self.up("--shards", 1, "--ready_seconds", 1, silent="conclave-worker")
        self.assertEqual(cluster.program.wait(), 1)
        self.assertIn("not ready within 1.0 s", cluster.program.errors[-1])
        self.assert_nothing_left()

    def test_a_second_signal_kills(self):
        cluster = self.up("--shards", 1, "--drain_seconds", 600,
                          stubborn="conclave-worker").wait_ready()
        cluster.program.signal(signal.SIGINT)
        wait_until(lambda: any(event[1] == "conclave-worker" for event in self.events("term")),
                   "the worker was told to stop")
        cluster.program.signal(signal.SIGINT)
        self.assertEqual(cluster.program.wait(), 0)
        self.assert_nothing_left()

    def test_what_does_not_drain_in_time_is_killed(self):
        cluster = self.up("--shards", 1, "--drain_seconds", 0,
                          stubborn="conclave-router").wait_ready()
        self.assertEqual(cluster.stop(), 0)
        self.assertIn("router did not stop within 5.0 s and is killed", cluster.program.lines)
        self.assertEqual([event[1] for event in self.events("term")], PROGRAMS[::-1])
        self.assert_nothing_left()

    def test_nothing_survives_the_supervisor(self):
        cluster = self.up("--workers", 2, "--shards", 2).wait_ready()
        cluster.program.signal(signal.SIGKILL)
        cluster.program.wait()
        self.assert_nothing_left()

    def test_logs_go_to_files(self):
        logs = self.dir / "logs" / "today"
        cluster = self.up("--shards", 1, "--log_dir", logs).wait_ready()
        self.assertEqual(cluster.stop(), 0)
        self.assertEqual(sorted(path.name for path in logs.iterdir()),
                         ["router.log", "shard-0.log", "worker-0.log"])
        self.assertEqual((logs / "router.log").read_text(), "conclave-router is loading\n")
        self.assertEqual(cluster.program.errors, [])

    def test_log_lines_name_their_process(self):
        cluster = self.up("--shards", 1).wait_ready()
        self.assertEqual(cluster.stop(), 0)
        self.assertIn("[shard-0] conclave-expert-shard is loading", cluster.program.errors)

    def test_refuses_what_cannot_work(self):
        dense = self.synth("tiny-dense")
        for arguments, message in (
            (["--model", dense, "--shards", 2, "--bin_dir", self.dir], "dense model"),
            (["--model", self.model, "--shards", 9, "--bin_dir", self.dir], "want 0..8"),
            (["--model", self.dir / "nothing", "--bin_dir", self.dir], "config.json"),
            (["--model", self.model, "--bin_dir", self.dir / "nothing"], "conclave-expert-shard"),
        ):
            with self.subTest(message):
                code, out, err = conclave("up", *arguments)
                self.assertEqual((code, out), (1, ""))
                self.assertIn(message, err)
                self.assertEqual(err.count("\n"), 1, err)

    def test_flags_come_from_the_environment_and_a_file(self):
        config = self.dir / "up.toml"
        config.write_text("# a small cluster\nshards = 2\nworkers = 3\nlog_format = \"json\"\n")
        program = Program([BIN_DIR / "conclave", "up", "--bin_dir", self.dir, "--config", config],
                          {"FAKE_DIR": str(self.dir), "CONCLAVE_UP_MODEL": str(self.model),
                           "CONCLAVE_UP_WORKERS": "1"})
        self.addCleanup(program.close)
        program.wait_for("^Conclave is ready after")
        started = self.events("start")
        self.assertEqual([event[1] for event in started],
                         ["conclave-expert-shard"] * 2 + ["conclave-worker", "conclave-router"])
        for event in started:
            self.assertEqual(event[3][event[3].index("--log_format") + 1], "json")
        program.signal(signal.SIGTERM)
        self.assertEqual(program.wait(), 0, program.errors)

    def test_one_error_lists_all_that_is_wrong(self):
        config = self.dir / "up.toml"
        config.write_text("sharts = 2\n")
        code, out, err = conclave("up", "--workers", 0, "--grpc_port", 99999, "--config", config)
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        for wrong in ("--model is required", "--workers: Value 0", "--grpc_port: Value 99999",
                      "sets sharts"):
            self.assertIn(wrong, err)

    def test_usage_errors(self):
        for arguments in ([], ["fly"], ["up"], ["up", "--model", "x", "--workers", "0"],
                          ["chat", "--think", "--no_think", "hello"], ["chat", "a", "b"],
                          ["chat", "--temperature", "3", "a"], ["status", "--wait", "-1"]):
            with self.subTest(arguments):
                code, out, err = conclave(*arguments)
                self.assertEqual((code, out), (2, ""), err)
                self.assertTrue(err.startswith("conclave: "), err)

    def test_every_command_has_help(self):
        code, out, _ = conclave("--help")
        self.assertEqual(code, 0)
        for command in ("up", "chat", "generate", "status", "score", "synth", "tokenize", "render"):
            self.assertIn(command, out)
            code, text, err = conclave(command, "--help")
            self.assertEqual((code, err), (0, ""))
            self.assertNotIn("--bin_dir", text)

    def test_clients_say_when_there_is_no_router(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            free = server.getsockname()[1]
        for command in (["chat", "hello"], ["generate", "hello"], ["status"]):
            code, _, err = conclave(*command, "--endpoint", f"127.0.0.1:{free}")
            self.assertEqual(code, 1)
            self.assertTrue(err.startswith(f"conclave {command[0]}: "), err)
            self.assertEqual(err.count("\n"), 1, err)


if __name__ == "__main__":
    unittest.main()
