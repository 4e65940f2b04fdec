"""A Python gRPC client: with stubs generated from proto/ at once, and with reflection alone."""
import importlib
import json
import re
import subprocess
import sys
import unittest

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

from client_test import DEADLINE_SECONDS, MODEL, SOURCE_DIR, SUM, SUM_ANSWER, ClientTest
from harness import wait_until
from demo_tools import WEATHER_TOOL

INFERENCE = "conclave.v1.Inference"


class StubTest(ClientTest):
    shards = 1

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        generated = cls._owner.dir / "generated"
        generated.mkdir()
        protos = sorted(str(path.relative_to(SOURCE_DIR))
                        for path in SOURCE_DIR.glob("proto/conclave/v1/*.proto"))
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCE_DIR}",
                        f"--python_out={generated}", f"--grpc_python_out={generated}", *protos],
                       check=True)
        sys.path.insert(0, str(generated))
        cls.pb = importlib.import_module("proto.conclave.v1.inference_pb2")
        cls.worker_pb = importlib.import_module("proto.conclave.v1.worker_pb2")
        stubs = importlib.import_module("proto.conclave.v1.inference_pb2_grpc")
        channel = grpc.insecure_channel(cls.cluster.endpoint)
        cls.addClassCleanup(channel.close)
        cls.stub = stubs.InferenceStub(channel)

    def request(self, text=SUM, **fields):
        request = self.pb.ChatRequest(model=MODEL, **fields)
        request.messages.add(role="user", content=text)
        request.sampling.temperature = 0
        return request

    def chat(self, request):
        """(thinking, content, arguments of calls, finished) of a chat."""
        thinking = content = arguments = ""
        for event in self.stub.Chat(request, timeout=DEADLINE_SECONDS):
            thinking += event.thinking_delta.text
            content += event.content_delta.text
            arguments += event.tool_call_delta.arguments
            if event.WhichOneof("event") == "finished":
                return thinking, content, arguments, event.finished
        raise AssertionError("the stream ended without `finished`")

    def test_chat(self):
        thinking, content, _, finished = self.chat(self.request())
        self.assertTrue(thinking)
        self.assertIn(SUM_ANSWER, content)
        self.assertEqual(finished.reason, self.pb.CHAT_FINISH_REASON_STOP)
        self.assertEqual(finished.thinking.ended_by, self.worker_pb.THINKING_END_NATURAL)
        self.assertEqual(finished.usage.thinking_tokens,
                         finished.thinking.used + finished.thinking.forced)

    def test_a_trace_is_named_in_the_logs_of_all_services(self):
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        events = list(self.stub.Chat(
            self.request("hi", request_id="traced-by-grpc"), timeout=DEADLINE_SECONDS,
            metadata=[("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]))
        self.assertEqual(events[-1].WhichOneof("event"), "finished")
        logs = self._owner.dir / "logs"
        for name in ("router", "worker-0", "shard-0"):
            wait_until(lambda n=name: re.search(
                rf"request_id=traced-by-grpc\S* trace_id={trace}", (logs / f"{n}.log").read_text()),
                       f"{name} names the trace")

    def test_chat_by_http_says_the_same(self):
        thinking, content, _, finished = self.chat(self.request())
        answer = self.chat_http()
        message = answer["choices"][0]["message"]
        self.assertEqual((message["reasoning_content"], message["content"]), (thinking, content))
        self.assertEqual(answer["usage"]["completion_tokens"], finished.usage.completion_tokens)
        self.assertEqual(answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
                         finished.usage.thinking_tokens)

    def test_a_tool_call(self):
        _, content, arguments, finished = self.chat(
            self.request("What is the weather in Paris?", tools=[json.dumps(WEATHER_TOOL)]))
        self.assertEqual(content, "")
        self.assertEqual(json.loads(arguments), {"city": "Paris"})
        self.assertEqual(finished.reason, self.pb.CHAT_FINISH_REASON_TOOL_CALLS)

    def test_generate_text_and_ids_give_one_continuation(self):
        ids = self.stub.Tokenize(self.pb.TokenizeRequest(text="17+25=")).ids
        generated = []
        for prompt in ({"text": "17+25="}, {"token_ids": self.pb.TokenIds(ids=ids)}):
            request = self.pb.GenerateRequest(max_tokens=12, **prompt)
            request.sampling.temperature = 0
            generated.append([i for event in self.stub.Generate(request, timeout=DEADLINE_SECONDS)
                              for i in event.delta.ids])
        self.assertTrue(generated[0])
        self.assertEqual(generated[0], generated[1])

    def test_tokenize_there_and_back(self):
        text = "<think>\n48+37 数字 ünïcode</think>"
        ids = self.stub.Tokenize(self.pb.TokenizeRequest(text=text)).ids
        back = self.stub.Detokenize(self.pb.DetokenizeRequest(ids=ids))
        self.assertEqual(back.text, text)

    def endless(self, request_id):
        """A chat that thinks until something ends it, from its first thought on."""
        (think_end,) = self.stub.Tokenize(self.pb.TokenizeRequest(text="</think>")).ids
        request = self.request(request_id=request_id, max_tokens=3500)
        request.sampling.logit_bias[think_end] = -100
        call = self.stub.Chat(request, timeout=DEADLINE_SECONDS)
        for event in call:
            if event.WhichOneof("event") == "thinking_delta":
                return call
        raise AssertionError("it did not think")

    def finished(self, call):
        return [event.finished for event in call if event.WhichOneof("event") == "finished"][0]

    def test_control(self):
        call = self.endless("answer-now")
        self.stub.Control(self.pb.ControlRequest(request_id="answer-now", finish_thinking=True))
        finished = self.finished(call)
        self.assertEqual(finished.thinking.ended_by, self.worker_pb.THINKING_END_CLIENT)
        self.assertGreater(finished.usage.answer_tokens, 0)
        call = self.endless("less")
        self.stub.Control(self.pb.ControlRequest(request_id="less", set_thinking_budget=1))
        self.assertEqual(self.finished(call).thinking.ended_by, self.worker_pb.THINKING_END_BUDGET)
        call = self.endless("no-more")
        self.stub.Control(self.pb.ControlRequest(request_id="no-more", cancel=True))
        self.assertEqual(self.finished(call).reason, self.pb.CHAT_FINISH_REASON_CANCELLED)
        with self.assertRaises(grpc.RpcError) as over:
            self.stub.Control(self.pb.ControlRequest(request_id="no-more", cancel=True))
        self.assertEqual(over.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_cancelled_call_frees_the_worker(self):
        self.endless("dropped").cancel()
        self.wait_idle()

    def test_errors(self):
        too_hot = self.request()
        too_hot.sampling.temperature = 3
        too_long = self.request("a word and another " * 4000)
        for request, words in ((too_hot, "temperature"), (too_long, "maximum context length")):
            with self.assertRaises(grpc.RpcError) as refused:
                self.chat(request)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn(words, refused.exception.details())


class ReflectionTest(ClientTest):
    """What grpcurl does: no .proto file at hand, the server describes itself."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.channel = grpc.insecure_channel(cls.cluster.endpoint)
        cls.addClassCleanup(cls.channel.close)
        cls.database = ProtoReflectionDescriptorDatabase(cls.channel)
        cls.pool = descriptor_pool.DescriptorPool(cls.database)

    def invoke(self, method, request):
        """Calls by name, JSON in, list of JSON out."""
        descriptor = self.pool.FindServiceByName(INFERENCE).FindMethodByName(method)
        request_class, response_class = map(
            message_factory.GetMessageClass, (descriptor.input_type, descriptor.output_type))
        kind = (self.channel.unary_stream if descriptor.server_streaming else
                self.channel.unary_unary)
        call = kind(f"/{INFERENCE}/{method}",
                    request_serializer=request_class.SerializeToString,
                    response_deserializer=response_class.FromString)
        answer = call(json_format.ParseDict(request, request_class()), timeout=DEADLINE_SECONDS)
        answers = answer if descriptor.server_streaming else [answer]
        return [json_format.MessageToDict(one, preserving_proto_field_name=True)
                for one in answers]

    def test_the_services_are_listed(self):
        services = self.database.get_services()
        self.assertIn(INFERENCE, services)
        self.assertIn("grpc.health.v1.Health", services)

    def test_the_api_describes_itself(self):
        service = self.pool.FindServiceByName(INFERENCE)
        self.assertLessEqual({"Chat", "Generate", "Control", "Tokenize", "Detokenize", "GetModel"},
                             {method.name for method in service.methods})
        request = self.pool.FindMessageTypeByName("conclave.v1.ChatRequest")
        self.assertLessEqual({"messages", "tools", "sampling", "thinking", "max_tokens"},
                             set(request.fields_by_name))

    def test_calls_without_stubs(self):
        (model,) = self.invoke("GetModel", {})
        self.assertEqual(model["model"]["name"], MODEL)
        (tokens,) = self.invoke("Tokenize", {"text": "Hello"})
        self.assertTrue(tokens["ids"])
        events = self.invoke("Chat", {"messages": [{"role": "user", "content": SUM}],
                                      "sampling": {"temperature": 0}})
        self.assertIn("request_id", events[0]["started"])
        content = "".join(event["content_delta"].get("text", "") for event in events
                          if "content_delta" in event)
        self.assertIn(SUM_ANSWER, content)
        self.assertEqual(events[-1]["finished"]["reason"], "CHAT_FINISH_REASON_STOP")


if __name__ == "__main__":
    unittest.main()
