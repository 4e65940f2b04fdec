"""Qwen-Agent: its default mode, which prompts for calls itself; use_raw_api; and an MCP server."""
import json
import os
import pathlib
import sys
import unittest

import demo_tools
from client_test import MODEL, SUM, SUM_ANSWER, ClientTest, user

from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool, register_tool

WEATHER = "What is the weather in Paris?"


def describe(cls):
    """The decorated class's name, description and parameters, as the demo model knows them."""
    function = {tool["function"]["name"]: tool["function"] for tool in demo_tools.TOOLS}
    described = function[cls.name]
    cls.description = described["description"]
    cls.parameters = described["parameters"]
    return register_tool(cls.name)(cls)


@describe
class GetWeather(BaseTool):
    name = "get_weather"

    def call(self, params, **kwargs):
        return demo_tools.call(self.name, params)


@describe
class Calculate(BaseTool):
    name = "calculate"

    def call(self, params, **kwargs):
        return demo_tools.call(self.name, params)


class QwenAgentTest(ClientTest):
    def assistant(self, functions, **generate_cfg):
        return Assistant(function_list=functions, llm={
            "model": MODEL, "model_server": f"{self.url}/v1", "api_key": "none",
            "generate_cfg": {"temperature": 0, "max_retries": 0, **generate_cfg}})

    def run_agent(self, assistant, text):
        """Every message of the answer, merged."""
        return assistant.run_nonstream(user(text))

    def assert_weather_loop(self, messages, name="get_weather"):
        calls = [message["function_call"] for message in messages if message.get("function_call")]
        self.assertEqual([call["name"] for call in calls], [name], messages)
        self.assertEqual(json.loads(calls[0]["arguments"]), {"city": "Paris"})
        results = [message for message in messages if message["role"] == "function"]
        self.assertEqual(len(results), 1)
        self.assertIn("sunny", results[0]["content"])
        self.assertIn("sunny", messages[-1]["content"])
        self.assertIn("21", messages[-1]["content"])

    def reasoning(self, messages):
        return "".join(message.get("reasoning_content") or "" for message in messages)

    def test_a_chat_with_thinking(self):
        for raw in (False, True):
            with self.subTest(use_raw_api=raw):
                messages = self.run_agent(self.assistant(None, use_raw_api=raw), SUM)
                self.assertTrue(self.reasoning(messages))
                self.assertIn(SUM_ANSWER, messages[-1]["content"])

    def test_a_chat_without_thinking(self):
        for raw in (False, True):
            with self.subTest(use_raw_api=raw):
                assistant = self.assistant(None, use_raw_api=raw, extra_body={
                    "chat_template_kwargs": {"enable_thinking": False}})
                messages = self.run_agent(assistant, SUM)
                self.assertEqual(self.reasoning(messages), "")
                self.assertTrue(messages[-1]["content"])

    def test_a_budget(self):
        whole = self.reasoning(self.run_agent(self.assistant(None), SUM))
        assistant = self.assistant(None, extra_body={"thinking_budget": 16})
        messages = self.run_agent(assistant, SUM)
        self.assertTrue(self.reasoning(messages).startswith(whole[:10]))
        self.assertLess(self.reasoning(messages).find("Considering the limited time"), len(whole))
        self.assertTrue(messages[-1]["content"])

    def test_a_tool_loop(self):
        for raw in (False, True):
            with self.subTest(use_raw_api=raw):
                assistant = self.assistant(["get_weather", "calculate"], use_raw_api=raw)
                messages = self.run_agent(assistant, WEATHER)
                self.assert_weather_loop(messages)
                self.assertIn("Paris", self.reasoning(messages))
                messages = self.run_agent(assistant, "Use the calculator: 12*7+3")
                self.assertEqual([message["content"] for message in messages
                                  if message["role"] == "function"], ["87"])
                self.assertIn("87", messages[-1]["content"])

    def test_a_tool_loop_without_thinking(self):
        for raw in (False, True):
            with self.subTest(use_raw_api=raw):
                assistant = self.assistant(["get_weather"], use_raw_api=raw, extra_body={
                    "chat_template_kwargs": {"enable_thinking": False}})
                messages = self.run_agent(assistant, WEATHER)
                self.assertEqual(self.reasoning(messages), "")
                self.assert_weather_loop(messages)

    def test_top_level_sampling_fields(self):
        # Qwen-Agent sends these beside the OpenAI fields, not in extra_body.
        assistant = self.assistant(None, top_k=1, repetition_penalty=1.0)
        self.assertIn(SUM_ANSWER, self.run_agent(assistant, SUM)[-1]["content"])

    def test_too_long_a_prompt_is_not_tried_again(self):
        with self.assertRaises(Exception) as refused:
            self.run_agent(self.assistant(None, max_retries=5), "a word and another " * 4000)
        self.assertIn("maximum context length", str(refused.exception))

    def test_an_mcp_server(self):
        log = self._owner.dir / "mcp_calls"
        config = {"mcpServers": {"weather": {
            "command": sys.executable,
            "args": [str(pathlib.Path(__file__).with_name("mcp_server.py")), str(log)],
            "env": {"PATH": os.environ["PATH"]}}}}
        for raw in (False, True):
            with self.subTest(use_raw_api=raw):
                log.write_text("", encoding="utf-8")
                assistant = self.assistant([config], use_raw_api=raw)
                self.assertEqual(list(assistant.function_map), ["weather-get_weather"])
                # Qwen-Agent puts the server's name before the tool's. The demo model knows one name
                # for the weather and writes it whatever the prompt offers, so the tool gets it.
                tool = assistant.function_map.pop("weather-get_weather")
                tool.name = "get_weather"
                assistant.function_map["get_weather"] = tool
                self.assert_weather_loop(self.run_agent(assistant, WEATHER))
                self.assertEqual(log.read_text(encoding="utf-8"), '{"city": "Paris"}\n')


if __name__ == "__main__":
    unittest.main()
