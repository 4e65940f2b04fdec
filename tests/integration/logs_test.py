"""Logs: one line an event, the request's names in all three services, and nothing of a prompt."""
import json
import signal
import socket
import unittest
import urllib.error
import urllib.request

from harness import BIN_DIR, SOURCE_DIR, IntegrationTest, Program, wait_until

SECRET = "xylophone-4711"  # of a prompt; no word of ours
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PROCESSES = ["router", "worker-0", "shard-0", "shard-1"]


class LogsTest(IntegrationTest):
    def up(self, *arguments):
        return self.start_cluster(
            SOURCE_DIR / "models" / "demo", "--model_name", "demo", "--shards", 2, "--threads", 2,
            "--kv_cache_tokens", 8192, *arguments).wait_ready()

    def chat(self, cluster, **fields):
        body = {"model": "demo", "max_tokens": 40, "enable_thinking": False,
                "messages": [{"role": "user", "content": f"Say {SECRET}!"}], **fields}
        request = urllib.request.Request(
            f"{cluster.http}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json", "traceparent": TRACEPARENT,
             "X-Request-Id": "customer-7"})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def logs(self, name):
        return (self.dir / "logs" / f"{name}.log").read_text()

    def test_json_names_the_request_in_every_service(self):
        cluster = self.up("--log_dir", self.dir / "logs", "--log_format", "json")
        self.assertEqual(self.chat(cluster)[0], 200)
        for name in PROCESSES:
            wait_until(lambda n=name: "customer-7" in self.logs(n), f"{name} names the request")
        self.assertEqual(self.chat(cluster, temperature=SECRET)[0], 400)
        self.assertEqual(cluster.stop(), 0)
        for name in PROCESSES:
            with self.subTest(name):
                lines = [json.loads(line) for line in self.logs(name).splitlines()]
                for line in lines:
                    self.assertLessEqual({"time", "level", "process", "message"}, set(line))
                (mine,) = [line for line in lines
                           if line.get("request_id", "").startswith("customer-7")]
                self.assertEqual(mine["trace_id"], TRACE)
                self.assertNotIn(SECRET, self.logs(name))
        (ended,) = [json.loads(line) for line in self.logs("router").splitlines()
                    if "customer-7" in line]
        self.assertEqual((ended["message"], ended["outcome"], ended["method"]),
                         ("request finished", "ok", "Chat"))
        self.assertGreater(float(ended["seconds"]), 0)

    def test_text_is_one_line_an_event(self):
        cluster = self.up("--log_dir", self.dir / "logs")
        self.assertEqual(self.chat(cluster)[0], 200)
        for name in PROCESSES:
            wait_until(lambda n=name: "customer-7" in self.logs(n), f"{name} names the request")
            self.assertRegex(self.logs(name),
                             rf"request \w+ request_id=customer-7\S* trace_id={TRACE}")
        self.assertEqual(cluster.stop(), 0)
        for name in PROCESSES:
            self.assertNotIn(SECRET, self.logs(name))

    def test_nothing_of_what_was_asked_or_answered_is_logged(self):
        """At level info, whatever became of it: thinking, content, raw text, tools, errors."""
        cluster = self.up("--log_dir", self.dir / "logs")

        def post(path, **body):
            request = urllib.request.Request(
                f"{cluster.http}{path}", json.dumps(body).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"})
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        words = {SECRET}
        sums = {"messages": [{"role": "user", "content": "What is 48 + 37 - 19 + 43?"}],
                "temperature": 0}
        for stream in (False, True):
            status, text = post("/v1/chat/completions", stream=stream, **sums)
            self.assertEqual(status, 200, text)
        _, text = post("/v1/chat/completions", **sums)
        message = json.loads(text)["choices"][0]["message"]
        words.update(line for line in message["reasoning_content"].splitlines() if len(line) > 4)
        words.update({message["content"], "48 + 37"})
        _, text = post("/v1/completions", prompt=f"{SECRET} 48+37:\n48+30=", max_tokens=8)
        words.add(json.loads(text)["choices"][0]["text"])
        tool = {"type": "function", "function": {"name": "f", "description": SECRET}}
        post("/tokenize", prompt=SECRET)
        said = {"role": "user", "content": SECRET}
        for refused in ({"messages": [{"role": SECRET, "content": "x"}]},
                        {"messages": [said], "temperature": SECRET},
                        {"messages": [said], "model": SECRET},
                        {"messages": [said], "tools": [tool], "tool_choice": SECRET},
                        {"messages": [{"role": "user", "content": f"{SECRET} " * 4000}]},
                        {"messages": [said], "early_stop_text": SECRET}):
            status, text = post("/v1/chat/completions", **refused)
            self.assertIn(status, (400, 404), text)
        self.assertEqual(post(f"/{SECRET}")[0], 404)
        self.assertEqual(post(f"/v1/requests/{SECRET}/control", action="cancel")[0], 404)
        status, text = post("/v1/chat/completions", messages=[said], tools=[tool], stop=[SECRET],
                            early_stop_text=f"{SECRET}</think>", thinking_budget=1)
        self.assertEqual(status, 200, text)
        self.assertEqual(cluster.stop(), 0)
        self.assertGreater(len(words), 5)
        for name in PROCESSES:
            log = self.logs(name)
            self.assertIn(" request ", log, name)
            for word in words:
                self.assertNotIn(word, log, name)

    def test_a_failure_of_ours_says_why(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            nobody = f"127.0.0.1:{server.getsockname()[1]}"
        router = Program([BIN_DIR / "conclave-router", "--model", SOURCE_DIR / "models" / "demo",
                          "--workers", nobody, "--failover_wait_seconds", 0, "--listen",
                          "127.0.0.1:0", "--log_format", "json"])
        self.addCleanup(router.close)
        listening = json.loads(router.wait_for("listening").string)
        body = {"messages": [{"role": "user", "content": f"Say {SECRET}!"}]}
        request = urllib.request.Request(f"http://{listening['http']}/v1/chat/completions",
                                         json.dumps(body).encode())
        with self.assertRaises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        refused.exception.close()
        self.assertEqual(refused.exception.code, 503)
        router.signal(signal.SIGTERM)
        self.assertEqual(router.wait(), 0)
        (ended,) = [json.loads(line) for line in router.errors if "request finished" in line]
        self.assertEqual(ended["outcome"], "unavailable")
        self.assertIn("worker", ended["reason"])
        self.assertNotIn(SECRET, "".join(router.errors))

    def test_up_names_the_process_in_each_object(self):
        cluster = self.up("--log_format", "json")
        self.assertEqual(self.chat(cluster)[0], 200)
        self.assertEqual(cluster.stop(), 0)
        lines = [json.loads(line) for line in cluster.program.errors]
        self.assertEqual({line["name"] for line in lines}, set(PROCESSES))


if __name__ == "__main__":
    unittest.main()
