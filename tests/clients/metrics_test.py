"""The token counters of the router are the sums of the usages it returned."""
import collections
import concurrent.futures
import json
import unittest

import demo_tools
from client_test import MODEL, SUM, ClientTest, http, read_metrics, user

PREFIX = "conclave_router_"
# Chats of every kind: thinking to its end, cut, off, off by the soft switch, with a call, two of
# one request, stopped by a stop string, stopped by the length.
CHATS = [
    {"messages": user(SUM)},
    {"messages": user(SUM), "thinking_budget": 16},
    {"messages": user(SUM), "thinking_budget": 1},
    {"messages": user(SUM), "enable_thinking": False},
    {"messages": user("Hello! /no_think")},
    {"messages": user("What is the weather in Paris?"), "tools": demo_tools.TOOLS},
    {"messages": user("What is the weather in Rome and Madrid?"), "tools": demo_tools.TOOLS,
     "enable_thinking": False},
    {"messages": user("17加25等于多少?"), "n": 2},
    {"messages": user(SUM), "stop": "109"},
    {"messages": user(SUM), "max_tokens": 64},
]
COMPLETIONS = [{"prompt": "17+25=", "max_tokens": 12},
               {"prompt": "<think>\n48+37", "max_tokens": 40}]


class MetricsTest(ClientTest):
    def counters(self):
        """Counts since the cluster began, of which a change is what requests made."""
        return read_metrics(self.metrics_url)

    def stream_usage(self, path, body):
        """The usage of a streamed answer: in the last frame before [DONE]."""
        status, text = http(f"{self.url}{path}",
                            {**body, "stream": True, "stream_options": {"include_usage": True}})
        self.assertEqual(status, 200, text)
        frames = [line[len("data: "):] for line in text.splitlines() if line.startswith("data: ")]
        self.assertEqual(frames[-1], "[DONE]")
        return json.loads(frames[-2])["usage"]

    def usage(self, path, body):
        status, text = http(f"{self.url}{path}", body)
        self.assertEqual(status, 200, text)
        return json.loads(text)["usage"]

    def test_counters_are_the_sums_of_the_usages(self):
        before = self.counters()
        requests = [("/v1/chat/completions", chat) for chat in CHATS]
        requests += [("/v1/completions", completion) for completion in COMPLETIONS]
        jobs = [(ask, path, {"model": MODEL, "temperature": 0, **body})
                for path, body in requests for ask in (self.usage, self.stream_usage)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            usages = list(pool.map(lambda job: job[0](*job[1:]), jobs))
        self.wait_idle()
        after = self.counters()
        totals = collections.Counter()
        for usage, (_, _, body) in zip(usages, jobs):
            # A prompt of several choices counts once in the usage and is computed for each.
            choices = body.get("n", 1)
            totals["prompt"] += usage["prompt_tokens"] * choices
            totals["completion"] += usage["completion_tokens"]
            totals["thinking"] += usage["completion_tokens_details"]["reasoning_tokens"]
            if choices == 1:
                totals["cached_prompt"] += usage["prompt_tokens_details"]["cached_tokens"]

        def counted(kind):
            name = f"{PREFIX}{kind}_tokens_total"
            return after[name] - before[name]

        self.assertEqual(counted("prompt"), totals["prompt"])
        self.assertEqual(counted("thinking"), totals["thinking"])
        self.assertGreater(counted("thinking"), counted("forced"))
        self.assertGreater(counted("forced"), 0)
        self.assertGreaterEqual(counted("cached_prompt"), totals["cached_prompt"])
        self.assertGreater(counted("tool_call"), 0)
        self.assertGreater(counted("answer"), counted("tool_call"))
        # <think> and </think> are generated and belong to neither side: at most two per request,
        # and the newlines behind a thought.
        self.assertLessEqual(counted("thinking") + counted("answer"), totals["completion"])

    def test_every_end_of_thinking_is_counted(self):
        before = http(self.metrics_url)[1]
        self.chat_http(thinking_budget=16)
        self.chat_http()
        after = http(self.metrics_url)[1]
        for end in ("natural", "budget"):
            series = f'{PREFIX}thinking_ended_total{{ended_by="{end}"}}'

            def value(text, series=series):
                return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                           if line.startswith(series))
            self.assertEqual(value(after), value(before) + 1, series)

    def test_the_names_that_dashboards_rely_on(self):
        self.chat_http(thinking_budget=16)
        text = http(self.metrics_url)[1]
        declared = dict(line.split()[2:4] for line in text.splitlines()
                        if line.startswith("# TYPE "))
        for name in ("prompt", "cached_prompt", "thinking", "forced", "answer", "tool_call"):
            self.assertEqual(declared.get(f"{PREFIX}{name}_tokens_total"), "counter")
            self.assertIn(f'{PREFIX}{name}_tokens_total{{mode="thinking"}}', text)
        self.assertEqual(declared.get(f"{PREFIX}thinking_ended_total"), "counter")
        for name in ("thinking_tokens", "thinking_budget_used_ratio", "time_to_first_token_seconds",
                     "time_to_first_answer_token_seconds"):
            self.assertEqual(declared.get(PREFIX + name), "histogram")
        self.assertEqual(declared.get(f"{PREFIX}adaptive_budget_scale"), "gauge")


if __name__ == "__main__":
    unittest.main()
