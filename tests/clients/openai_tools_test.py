"""Tool calls through openai-python: loops to the end, streamed and not, and tool_choice."""
import json
import unittest

import openai

import demo_tools
from client_test import MODEL, ClientTest, user
from streams import collect

WEATHER = "What is the weather in Paris?"
TWO_CITIES = "What is the weather in Rome and Madrid?"
CALCULATE = "Use the calculator: 12*7+3"


class ToolsTest(ClientTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def create(self, messages, **fields):
        return self.client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0,
            **{"tools": demo_tools.TOOLS, **fields})

    def loop(self, question):
        """Runs the calls of an answer until one has none: (names called, the last answer)."""
        messages, called = user(question), []
        for _ in range(4):
            choice = self.create(messages).choices[0]
            if not choice.message.tool_calls:
                self.assertEqual(choice.finish_reason, "stop")
                return called, choice.message.content
            self.assertEqual(choice.finish_reason, "tool_calls")
            # The client's own object goes back, with every field that it kept.
            messages.append(choice.message)
            for call in choice.message.tool_calls:
                called.append(call.function.name)
                messages.append({"role": "tool", "tool_call_id": call.id,
                                 "content": demo_tools.call(call.function.name,
                                                            call.function.arguments)})
        raise AssertionError(f"no end after {called}")

    def test_a_loop_ends_with_an_answer_from_the_tool(self):
        called, content = self.loop(WEATHER)
        self.assertEqual(called, ["get_weather"])
        self.assertIn("21", content)
        self.assertIn("sunny", content)
        called, content = self.loop(CALCULATE)
        self.assertEqual(called, ["calculate"])
        self.assertIn("87", content)

    def test_two_calls_of_one_answer_have_two_ids(self):
        message = self.create(user(TWO_CITIES)).choices[0].message
        self.assertEqual([json.loads(call.function.arguments) for call in message.tool_calls],
                         [{"city": "Rome"}, {"city": "Madrid"}])
        self.assertEqual(len({call.id for call in message.tool_calls}), 2)
        single = self.create(user(TWO_CITIES), parallel_tool_calls=False).choices[0].message
        self.assertEqual(len(single.tool_calls), 1)

    def test_a_stream_gives_the_same_calls(self):
        for question in (WEATHER, TWO_CITIES, CALCULATE):
            whole = self.create(user(question)).choices[0]
            chunks = list(self.create(user(question), stream=True))
            streamed = collect(chunks)
            self.assertEqual([call[1:] for call in streamed.tool_calls],
                             [(call.function.name, call.function.arguments)
                              for call in whole.message.tool_calls])
            self.assertEqual(streamed.content, whole.message.content or "")
            self.assertEqual(streamed.finish_reason, "tool_calls")
            # The first part of a call has all that a client may require of it.
            seen = set()
            for chunk in chunks:
                for part in chunk.choices[0].delta.tool_calls or []:
                    if part.index not in seen:
                        self.assertTrue(part.id)
                        self.assertTrue(part.function.name)
                        self.assertIsInstance(part.function.arguments, str)
                    seen.add(part.index)

    def test_tool_choice(self):
        none = self.create(user(WEATHER), tool_choice="none").choices[0]
        self.assertIsNone(none.message.tool_calls)
        self.assertEqual(none.finish_reason, "stop")
        # Left alone, the model answers a greeting with one, and asks no tool.
        self.assertIsNone(self.create(user("Hello!")).choices[0].message.tool_calls)
        for thinking in (True, False):
            body = {"enable_thinking": thinking}
            required = self.create(user(WEATHER), tool_choice="required", extra_body=body)
            (call,) = required.choices[0].message.tool_calls
            self.assertEqual(call.function.name, "get_weather")
            self.assertEqual(required.choices[0].finish_reason, "tool_calls")
            # Not the tool that the model would choose.
            named = self.create(user(CALCULATE), extra_body=body, tool_choice={
                "type": "function", "function": {"name": "get_weather"}}).choices[0]
            (call,) = named.message.tool_calls
            self.assertEqual(call.function.name, "get_weather")
            self.assertEqual(list(json.loads(call.function.arguments)), ["city"])

    def test_a_choice_of_no_tool_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as unknown:
            self.create(user(WEATHER), tool_choice={"type": "function",
                                                    "function": {"name": "get_time"}})
        self.assertIn("get_time", str(unknown.exception))

    def test_without_tools_the_tags_are_content(self):
        """Agents that write the prompt themselves read the tags themselves."""
        described = "\n".join(json.dumps(tool) for tool in demo_tools.TOOLS)
        system = ("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                  "You are provided with function signatures within <tools></tools> XML tags:\n"
                  f"<tools>\n{described}\n</tools>\n\nFor each function call, return a json object "
                  "with function name and arguments within <tool_call></tool_call> XML tags:\n"
                  '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
                  "</tool_call>")
        choice = self.create([{"role": "system", "content": system}, *user(WEATHER)],
                             tools=openai.NOT_GIVEN).choices[0]
        self.assertIsNone(choice.message.tool_calls)
        self.assertEqual(choice.finish_reason, "stop")
        self.assertTrue(choice.message.content.startswith("<tool_call>"))
        self.assertTrue(choice.message.content.rstrip().endswith("</tool_call>"))
        self.assertNotIn("<tool_call>", choice.message.reasoning_content)

    def test_messages_as_clients_write_them(self):
        """Parts, null or missing content, arguments as an object, a result by `id`: one meaning."""
        result = demo_tools.get_weather("Paris")
        arguments = {"city": "Paris"}
        answers = set()
        for assistant, tool in (
                ({"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {
                    "name": "get_weather", "arguments": json.dumps(arguments)}}]},
                 {"tool_call_id": "c1", "content": result}),
                ({"tool_calls": [{"id": "c1", "type": "function", "function": {
                    "name": "get_weather", "arguments": arguments}}]},
                 {"id": "c1", "name": "get_weather", "extra": {"function_id": "c1"},
                  "content": [{"type": "text", "text": result}]})):
            choice = self.create([
                {"role": "user", "content": [{"type": "text", "text": WEATHER}]},
                {"role": "assistant", **assistant}, {"role": "tool", **tool}]).choices[0]
            answers.add(choice.message.content)
        self.assertEqual(len(answers), 1)
        self.assertIn("21", answers.pop())


if __name__ == "__main__":
    unittest.main()
