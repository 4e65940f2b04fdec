"""Logs: one line an event, the request's names in all three services, and nothing of a prompt."""
import json
import unittest
import urllib.error
import urllib.request

from harness import SOURCE_DIR, IntegrationTest, wait_until

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

    def test_up_names_the_process_in_each_object(self):
        cluster = self.up("--log_format", "json")
        self.assertEqual(self.chat(cluster)[0], 200)
        self.assertEqual(cluster.stop(), 0)
        lines = [json.loads(line) for line in cluster.program.errors]
        self.assertEqual({line["name"] for line in lines}, set(PROCESSES))


if __name__ == "__main__":
    unittest.main()
