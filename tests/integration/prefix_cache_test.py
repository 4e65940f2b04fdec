"""A conversation over HTTP: what the prefix cache saves, what it counts, and that it changes nothing."""
import json
import re
import unittest
import urllib.request

import harness

MODEL = harness.SOURCE_DIR / "models" / "demo"
SYSTEM = "You are a careful calculator. Explain each step in a few words. " * 8


def chat(cluster, messages, **fields):
    body = {"messages": messages, "temperature": 0, "max_tokens": 300, **fields}
    request = urllib.request.Request(f"{cluster.http}/v1/chat/completions",
                                     json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=harness.DEADLINE_SECONDS) as response:
        answer = json.load(response)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    return message, usage, usage["prompt_tokens_details"]["cached_tokens"]


def metric(url, pattern):
    with urllib.request.urlopen(url, timeout=harness.DEADLINE_SECONDS) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(f"^{pattern} (\\S+)$", text, re.M))


class PrefixCacheTest(harness.IntegrationTest):
    def talk(self, cluster):
        """Three turns; the answers, and the tokens cached for each prompt and in it."""
        messages = [{"role": "system", "content": SYSTEM}]
        answers, cached = [], []
        for question in ("What is 17 + 25?", "What is 8 * 7 - 12?", "And 31 - 64 + 9 * 3?"):
            messages.append({"role": "user", "content": question})
            message, usage, hit = chat(cluster, messages)
            answers.append((message["content"], message.get("reasoning_content")))
            cached.append((hit, usage["prompt_tokens"]))
            messages.append({"role": "assistant", "content": message["content"]})
        return answers, cached

    def test_the_second_turn_skips_the_first_and_nothing_changes(self):
        cold = self.start_cluster(MODEL, "--prefix_cache", "false").wait_ready()
        expected, cached = self.talk(cold)
        self.assertEqual([hit for hit, _ in cached], [0, 0, 0])
        warm = self.start_cluster(MODEL, "--workers", "2", "--prefill_ahead", "false").wait_ready()
        answers, cached = self.talk(warm)
        self.assertEqual(answers, expected)
        self.assertEqual(cached[0][0], 0)
        for (before, now) in zip(cached, cached[1:]):
            # All up to the last assistant header, short of a block.
            self.assertGreaterEqual(now[0], before[1] - 32)
            self.assertLess(now[0], now[1])
        hits = sum(metric(process["metrics"], "conclave_worker_prefix_cache_hit_blocks_total")
                   for name, process in warm.processes.items() if name.startswith("worker"))
        self.assertEqual(hits * 16, sum(hit for hit, _ in cached))
        self.assertEqual(metric(f"{warm.http}/metrics",
                                r'conclave_router_prefix_routes_total{route="cached"}'), 2)

    def test_an_idle_worker_computes_the_next_prompt_ahead(self):
        first = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Count."}]
        warm = self.start_cluster(MODEL).wait_ready()
        # A long answer: for a short one it would not be worth it.
        message, usage, _ = chat(warm, first, ignore_eos=True, thinking_budget=32, max_tokens=200)
        harness.wait_until(
            lambda: metric(f"{warm.http}/metrics",
                           'conclave_router_prefill_ahead_total{outcome="done"}') == 1,
            "the prefill ahead")
        second = first + [{"role": "assistant", "content": message["content"]},
                          {"role": "user", "content": "And?"}]
        ahead = chat(warm, second)
        self.assertGreater(ahead[2], usage["prompt_tokens"])
        # What is left: a block that is not full, the question and the assistant's header.
        self.assertGreaterEqual(ahead[2], ahead[1]["prompt_tokens"] - 48)
        cold = self.start_cluster(MODEL, "--prefix_cache", "false").wait_ready()
        self.assertEqual(chat(cold, second)[0], ahead[0])


if __name__ == "__main__":
    unittest.main()
