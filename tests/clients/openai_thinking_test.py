"""Thinking through openai-python: switched, budgeted under every name, and ended while it runs."""
import unittest

import openai

from client_test import MODEL, SUM, SUM_ANSWER, ClientTest, http, user
from streams import collect

BUDGET = 16
# Every name under which some client sends a budget, as the body it sends.
BUDGET_BODIES = {
    "thinking_budget": {"thinking_budget": BUDGET},
    "thinking_token_budget": {"thinking_token_budget": BUDGET},
    "thinking_budget_tokens": {"thinking_budget_tokens": BUDGET},
    "nvext.max_thinking_tokens": {"nvext": {"max_thinking_tokens": BUDGET}},
    "custom_params.thinking_budget": {"custom_params": {"thinking_budget": BUDGET}},
    "chat_template_kwargs.thinking_budget": {"chat_template_kwargs": {"thinking_budget": BUDGET}},
    "thinking.budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": BUDGET}},
    "reasoning.max_tokens": {"reasoning": {"max_tokens": BUDGET}},
}
OFF_BODIES = {
    "enable_thinking": {"enable_thinking": False},
    "chat_template_kwargs.enable_thinking": {"chat_template_kwargs": {"enable_thinking": False}},
    "reasoning.enabled": {"reasoning": {"enabled": False}},
    "thinking.type": {"thinking": {"type": "disabled"}},
}
# Longer than any thinking that ends by itself; see ClientTest.think_end.
ENDLESS_TOKENS = 3500


class ThinkingTest(ClientTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def create(self, text=SUM, body=None, **fields):
        return self.client.chat.completions.create(
            model=MODEL, messages=user(text), **{"temperature": 0, **fields},
            extra_body={"thinking_report": True, **(body or {})})

    def assert_no_thinking(self, answer):
        message = answer.choices[0].message
        self.assertTrue(message.content)
        self.assertFalse(getattr(message, "reasoning_content", None))
        self.assertEqual(answer.usage.completion_tokens_details.reasoning_tokens, 0)
        self.assertEqual(answer.choices[0].thinking["mode"], "off")

    def test_thinking_is_switched_off_under_every_name(self):
        for name, body in OFF_BODIES.items():
            with self.subTest(name):
                answer = self.create(body=body)
                self.assert_no_thinking(answer)
                self.assertEqual(answer.choices[0].thinking["source"], "request")

    def test_thinking_is_switched_on_over_the_soft_switch(self):
        for body in ({"enable_thinking": True},
                     {"chat_template_kwargs": {"enable_thinking": True}}):
            self.assertEqual(self.create(body=body).choices[0].thinking["mode"], "thinking")
        # The soft switch asks the model, which writes an empty thought: the newlines of one.
        asked = self.create(f"{SUM} /no_think")
        self.assertEqual(asked.choices[0].thinking["mode"], "off")
        self.assertEqual(asked.choices[0].thinking["source"], "soft_switch")
        self.assertFalse((asked.choices[0].message.reasoning_content or "").strip())
        self.assertLessEqual(asked.usage.completion_tokens_details.reasoning_tokens, 2)

    def test_a_budget_is_kept_under_every_name(self):
        for name, body in BUDGET_BODIES.items():
            with self.subTest(name):
                answer = self.create(body=body)
                choice = answer.choices[0]
                report = choice.thinking
                self.assertEqual((report["budget"], report["used"], report["ended_by"]),
                                 (BUDGET, BUDGET, "budget"))
                self.assertEqual(answer.usage.completion_tokens_details.reasoning_tokens,
                                 report["used"] + report["forced"])
                self.assertTrue(choice.message.content)
                self.assertEqual(choice.finish_reason, "stop")

    def test_every_budget_gives_an_answer(self):
        natural = self.create().choices[0].thinking
        self.assertEqual((natural["budget"], natural["ended_by"]), (-1, "natural"))
        used = natural["used"]
        for budget in (0, 1, used - 1, used, used + 1, -1):
            with self.subTest(budget=budget):
                choice = self.create(body={"thinking_budget": budget}).choices[0]
                self.assertTrue(choice.message.content)
                self.assertLessEqual(choice.thinking["used"], used if budget < 0 else budget)
                if budget == 0:
                    self.assertFalse(getattr(choice.message, "reasoning_content", None))
                if budget < 0 or budget > used:
                    self.assertEqual(choice.thinking["ended_by"], "natural")
                if 0 < budget < used:
                    self.assertEqual((choice.thinking["used"], choice.thinking["ended_by"]),
                                     (budget, "budget"))

    def test_a_cut_stream_says_what_a_cut_answer_says(self):
        body = {"thinking_budget": BUDGET}
        whole = self.create(body=body).choices[0]
        streamed = collect(self.create(body=body, stream=True))
        self.assertEqual(streamed.content, whole.message.content)
        self.assertEqual(streamed.reasoning, whole.message.reasoning_content)
        self.assertEqual(streamed.thinking, whole.thinking)

    def test_reasoning_effort(self):
        self.assert_no_thinking(self.create(reasoning_effort="none"))
        low, high = (self.create(reasoning_effort=effort).choices[0].thinking["budget"]
                     for effort in ("low", "high"))
        self.assertLess(0, low)
        self.assertLess(low, high)

    def test_conflicting_values_are_refused_by_both_names(self):
        for body, names in (
                ({"thinking_budget": 16, "thinking_token_budget": 32},
                 ("thinking_budget", "thinking_token_budget", "16", "32")),
                ({"thinking_budget": 16, "nvext": {"max_thinking_tokens": 32}},
                 ("thinking_budget", "nvext.max_thinking_tokens")),
                ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
                 ("enable_thinking", "chat_template_kwargs.enable_thinking"))):
            with self.subTest(names), self.assertRaises(openai.BadRequestError) as refused:
                self.create(body=body)
            for name in names:
                self.assertIn(name, str(refused.exception))
        agreed = self.create(body={"thinking_budget": 16, "thinking_token_budget": 16})
        self.assertEqual(agreed.choices[0].thinking["budget"], 16)

    def test_a_switch_that_is_no_boolean_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.create(body={"enable_thinking": "false"})
        self.assertIn("enable_thinking", str(refused.exception))

    def test_the_length_limit_leaves_room_for_an_answer(self):
        answer = self.create(max_completion_tokens=64)
        self.assertEqual(answer.choices[0].thinking["ended_by"], "answer_reserve")
        self.assertTrue(answer.choices[0].message.content)
        self.assertLessEqual(answer.usage.completion_tokens, 64)

    def endless(self):
        """A stream that thinks until something ends it, from its first thought on."""
        stream = self.create(stream=True, logit_bias={str(self.think_end()): -100},
                             max_completion_tokens=ENDLESS_TOKENS)
        self.addCleanup(stream.close)
        for chunk in stream:
            if chunk.choices and getattr(chunk.choices[0].delta, "reasoning_content", None):
                return chunk.id, stream
        raise AssertionError("it did not think")

    def control(self, request_id, action):
        return http(f"{self.url}/v1/requests/{request_id}/control", action)

    def test_answer_now(self):
        request_id, stream = self.endless()
        status, text = self.control(request_id, {"action": "finish_thinking"})
        self.assertEqual(status, 200, text)
        answer = collect(stream)
        self.assertEqual(answer.thinking["ended_by"], "client")
        self.assertLess(answer.thinking["used"], ENDLESS_TOKENS // 2)
        self.assertTrue(answer.content)

    def test_the_budget_changes_in_flight(self):
        request_id, stream = self.endless()
        status, text = self.control(request_id, {"action": "set_thinking_budget",
                                                 "thinking_budget": 1})
        self.assertEqual(status, 200, text)
        answer = collect(stream)
        self.assertEqual(answer.thinking["ended_by"], "budget")
        self.assertTrue(answer.content)

    def test_cancel(self):
        request_id, stream = self.endless()
        status, text = self.control(request_id, {"action": "cancel"})
        self.assertEqual(status, 200, text)
        self.assertFalse(collect(stream).content)
        self.wait_idle()
        status, text = self.control(request_id, {"action": "cancel"})
        self.assertEqual(status, 404, text)

    def test_a_whole_answer_after_thinking_is_right(self):
        self.assertIn(SUM_ANSWER, self.create().choices[0].message.content)


if __name__ == "__main__":
    unittest.main()
