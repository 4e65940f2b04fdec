"""openai-python, sync and async: plain chats, completions, errors, and a client that goes away."""
import asyncio
import unittest

import openai

from client_test import MODEL, SUM, SUM_ANSWER, ClientTest, user
from streams import collect, same_usage

GREEDY = {"model": MODEL, "temperature": 0}
NO_THINKING = {"enable_thinking": False}


class OpenAiTest(ClientTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def create(self, text=SUM, **fields):
        return self.client.chat.completions.create(messages=user(text), **{**GREEDY, **fields})

    def stream(self, text=SUM, **fields):
        """The collected answer of a streamed chat."""
        return collect(self.create(text, stream=True, stream_options={"include_usage": True},
                                   **fields))

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], [MODEL])
        self.assertEqual(models[0].object, "model")

    def test_a_stream_and_a_whole_answer_are_the_same(self):
        whole = self.create()
        streamed = self.stream()
        message = whole.choices[0].message
        self.assertEqual(message.role, "assistant")
        self.assertIn(SUM_ANSWER, message.content)
        self.assertTrue(message.reasoning_content)
        self.assertEqual(message.reasoning, message.reasoning_content)
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        self.assertEqual(streamed.content, message.content)
        self.assertEqual(streamed.reasoning, message.reasoning_content)
        self.assertEqual(streamed.finish_reason, "stop")
        self.assertEqual(same_usage(streamed.usage), same_usage(whole.usage))

    def test_the_chunks_have_the_shape_that_clients_expect(self):
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}))
        self.assertEqual({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        self.assertEqual({chunk.model for chunk in chunks}, {MODEL})
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        *_, last_choice, usage = chunks
        self.assertEqual(last_choice.choices[0].finish_reason, "stop")
        self.assertEqual(usage.choices, [])
        self.assertGreater(usage.usage.completion_tokens, 0)
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))
        unasked = list(self.create(stream=True))
        self.assertTrue(all(chunk.usage is None and chunk.choices for chunk in unasked))

    def test_usage_counts_thinking_apart(self):
        usage = self.create().usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        reasoning = usage.completion_tokens_details.reasoning_tokens
        self.assertGreater(reasoning, 0)
        self.assertLess(reasoning, usage.completion_tokens)
        self.assertLessEqual(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens)
        off = self.create(extra_body=NO_THINKING).usage
        self.assertEqual(off.completion_tokens_details.reasoning_tokens, 0)

    def test_a_seed_repeats_an_answer(self):
        def draw(seed, **fields):
            # Without thinking the model guesses, so that another seed gives another number.
            answer = self.create(temperature=1.5, top_p=1, seed=seed, max_completion_tokens=24,
                                 extra_body=NO_THINKING, **fields)
            return [choice.message.content for choice in answer.choices]
        self.assertEqual(draw(7), draw(7))
        self.assertGreater(len({draw(seed)[0] for seed in range(8)}), 1)
        # Choice i of n is the request with seed + i.
        self.assertEqual(draw(7, n=2), draw(7) + draw(8))

    def test_n_choices_in_a_stream(self):
        chunks = list(self.create(n=2, stream=True))
        finished = {choice.index: choice.finish_reason
                    for chunk in chunks for choice in chunk.choices if choice.finish_reason}
        self.assertEqual(finished, {0: "stop", 1: "stop"})
        texts = ["".join(choice.delta.content or "" for chunk in chunks
                         for choice in chunk.choices if choice.index == index)
                 for index in (0, 1)]
        self.assertEqual(texts[0], texts[1])
        self.assertIn(SUM_ANSWER, texts[0])

    def test_stop_ends_the_answer_and_not_the_thinking(self):
        whole = self.create().choices[0].message
        # The digits occur in the thinking too, which they must not end.
        self.assertIn(SUM_ANSWER, whole.reasoning_content)
        for stop in (SUM_ANSWER, ["nowhere in it", SUM_ANSWER]):
            choice = self.create(stop=stop).choices[0]
            self.assertEqual(choice.finish_reason, "stop")
            self.assertEqual(choice.message.reasoning_content, whole.reasoning_content)
            self.assertEqual(choice.message.content, whole.content.split(SUM_ANSWER)[0])
        self.assertEqual(self.stream(stop=SUM_ANSWER).content, whole.content.split(SUM_ANSWER)[0])

    def test_logprobs(self):
        fields = {"logprobs": True, "top_logprobs": 3, "extra_body": NO_THINKING}
        choice = self.create("Hello!", **fields).choices[0]
        tokens = choice.logprobs.content
        self.assertTrue("".join(token.token for token in tokens).startswith(choice.message.content))
        for token in tokens:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            # Greedy: what was taken is the likeliest.
            self.assertEqual(token.top_logprobs[0].token, token.token)
            self.assertEqual(bytes(token.bytes).decode("utf-8", "replace"), token.token)
        streamed = [token for chunk in self.create("Hello!", stream=True, **fields)
                    for choice in chunk.choices if choice.logprobs
                    for token in choice.logprobs.content or []]
        self.assertEqual(streamed, tokens)

    def test_the_length_limit_under_both_names(self):
        for name in ("max_tokens", "max_completion_tokens"):
            answer = self.create(extra_body=NO_THINKING, **{name: 3})
            self.assertEqual(answer.choices[0].finish_reason, "length")
            self.assertEqual(answer.usage.completion_tokens, 3)

    def test_completions(self):
        fields = {**GREEDY, "prompt": "17+25=", "max_tokens": 12}
        whole = self.client.completions.create(**fields)
        self.assertEqual(whole.object, "text_completion")
        self.assertTrue(whole.choices[0].text)
        self.assertLessEqual(whole.usage.completion_tokens, 12)
        chunks = list(self.client.completions.create(**fields, stream=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks if chunk.choices),
                         whole.choices[0].text)
        self.assertIn(chunks[-1].choices[0].finish_reason, ("stop", "length"))

    def test_errors_are_openais(self):
        with self.assertRaises(openai.NotFoundError) as unknown:
            self.create(model="gpt-4o")
        self.assertIn("gpt-4o", str(unknown.exception))
        with self.assertRaises(openai.BadRequestError) as too_long:
            self.create("a word and another " * 4000)
        # Agents stop trying again when they read these words.
        self.assertIn("maximum context length", str(too_long.exception))
        with self.assertRaises(openai.BadRequestError) as hot:
            self.create(temperature=3)
        self.assertIn("temperature", hot.exception.body["message"])
        self.assertEqual(hot.exception.body["type"], "invalid_request_error")
        with self.assertRaises(openai.BadRequestError) as json_mode:
            self.create(response_format={"type": "json_object"})
        self.assertIn("response_format", str(json_mode.exception))

    def test_a_client_that_goes_away_frees_the_worker(self):
        # Not one of these would end by itself soon: thinking may not close.
        endless = {str(self.think_end()): -100}
        for _ in range(3):
            stream = self.create(stream=True, logit_bias=endless, max_completion_tokens=3800)
            next(chunk for chunk in stream if chunk.choices)
            stream.close()
        self.wait_idle()
        self.assertIn(SUM_ANSWER, self.create().choices[0].message.content)

    def test_many_at_once_through_the_async_client(self):
        expected = self.create().choices[0].message

        async def ask(client, stream):
            answer = await client.chat.completions.create(messages=user(SUM), stream=stream,
                                                          **GREEDY)
            if not stream:
                return answer.choices[0].message.content
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer
                            if chunk.choices])

        async def ask_all():
            async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none",
                                          max_retries=0) as client:
                return await asyncio.gather(*(ask(client, i % 2 == 0) for i in range(24)))

        self.assertEqual(set(asyncio.run(ask_all())), {expected.content})


if __name__ == "__main__":
    unittest.main()
