#include "client/chat_command.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "client/chat_printer.h"
#include "client/chat_result.h"
#include "client/generate_command.h"
#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(BuildChatRequestTest, TakesEveryFlag) {
  const TempDir dir;
  ChatCommandOptions options;
  options.prompt = "Why?";
  options.system = "Be brief.";
  options.messages_file = dir.Write("messages", R"([{"role": "user", "content": "Hi"}])");
  options.tools_file = dir.Write("tools", R"([{"function": {"name": "f"}}])");
  options.enable_thinking = true;
  options.thinking_budget = -1;
  options.model = "m";
  options.sampling = {.temperature = 0.5f,
                      .top_p = 0.9f,
                      .top_k = 3,
                      .seed = 5,
                      .max_tokens = 6,
                      .stop = {"a", "b"}};
  ASSERT_OK_AND_ASSIGN(const v1::ChatRequest request, BuildChatRequest(options));
  ASSERT_EQ(request.messages_size(), 3);
  EXPECT_EQ(request.messages(0).role(), "system");
  EXPECT_EQ(request.messages(1).content(), "Hi");
  EXPECT_EQ(request.messages(2).content(), "Why?");
  EXPECT_EQ(request.tools(0), R"({"function": {"name": "f"}})");
  EXPECT_TRUE(request.thinking().enable_thinking());
  EXPECT_EQ(request.thinking().budget(), -1);
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.sampling().temperature(), 0.5f);
  EXPECT_EQ(request.sampling().top_p(), 0.9f);
  EXPECT_EQ(request.sampling().top_k(), 3u);
  EXPECT_EQ(request.sampling().seed(), 5u);
  EXPECT_EQ(request.max_tokens(), 6u);
  EXPECT_THAT(request.stop(), ElementsAre("a", "b"));
}

TEST(BuildChatRequestTest, LeavesToTheRouterWhatIsNotGiven) {
  ASSERT_OK_AND_ASSIGN(const v1::ChatRequest request, BuildChatRequest({}));
  EXPECT_EQ(request.messages_size(), 0);
  EXPECT_FALSE(request.has_max_tokens());
  EXPECT_FALSE(request.thinking().has_enable_thinking());
  EXPECT_FALSE(request.thinking().has_budget());
  EXPECT_EQ(request.sampling().ByteSizeLong(), 0u);
}

TEST(BuildChatRequestTest, NamesTheFileThatIsWrong) {
  const TempDir dir;
  ChatCommandOptions options;
  options.messages_file = dir.Write("bad_messages", "[{}]");
  EXPECT_THAT(BuildChatRequest(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                                  HasSubstr("bad_messages: messages[0].role")));
  options.messages_file = "/nowhere";
  EXPECT_THAT(BuildChatRequest(options),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere")));
  options.messages_file.clear();
  options.tools_file = dir.Write("bad_tools", "{}");
  EXPECT_THAT(BuildChatRequest(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bad_tools: tools is")));
}

TEST(RunChatTest, RefusesFlagsThatDoNotGoTogether) {
  ChatCommandOptions options;
  options.json = true;
  EXPECT_THAT(RunChat(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--json")));
  options.json = false;
  options.tools_file = "-";
  EXPECT_THAT(RunChat(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--tools")));
  options.messages_file = "-";
  EXPECT_THAT(RunChat(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("both")));
}

TEST(ChatResultTest, BecomesOneObject) {
  ChatResult result;
  v1::ChatEvent event;
  event.mutable_started()->set_seed(18446744073709551615u);
  ASSERT_OK(result.Add(event));
  event.mutable_thinking_delta()->set_text("h");
  ASSERT_OK(result.Add(event));
  event.mutable_thinking_delta()->set_text("m");
  ASSERT_OK(result.Add(event));
  event.mutable_tool_call_delta()->set_name("f");
  event.mutable_tool_call_delta()->set_id("c");
  event.mutable_tool_call_delta()->set_arguments("{}");
  ASSERT_OK(result.Add(event));
  v1::Finished* finished = event.mutable_finished();
  finished->set_reason(v1::CHAT_FINISH_REASON_TOOL_CALLS);
  finished->mutable_usage()->set_prompt_tokens(3);
  finished->mutable_usage()->set_thinking_tokens(2);
  v1::ThinkingReport* report = finished->mutable_thinking();
  report->set_mode(v1::THINKING_MODE_THINKING);
  report->set_source(v1::THINKING_SOURCE_SOFT_SWITCH);
  report->set_budget(-1);
  report->set_used(2);
  report->set_ended_by(v1::THINKING_END_NATURAL);
  EXPECT_FALSE(result.is_finished());
  ASSERT_OK(result.Add(event));
  EXPECT_TRUE(result.is_finished());
  EXPECT_EQ(ToLine(result.ToJson()),
            R"({"thinking":"hm","content":"","tool_calls":[{"id":"c","type":"function",)"
            R"("function":{"name":"f","arguments":"{}"}}],"finish_reason":"tool_calls",)"
            R"("usage":{"prompt_tokens":3,"cached_prompt_tokens":0,"completion_tokens":0,)"
            R"("thinking_tokens":2,"answer_tokens":0},"thinking_report":{"mode":"thinking",)"
            R"("source":"soft_switch","budget":-1,"used":2,"forced":0,"ended_by":"natural"},)"
            R"("seed":18446744073709551615,"failovers":0})");
  EXPECT_THAT(result.Add(v1::ChatEvent()), StatusIs(absl::StatusCode::kInternal));
}

TEST(ChatResultTest, LeavesOutToolCallsWhenThereAreNone) {
  EXPECT_FALSE(ChatResult().ToJson().contains("tool_calls"));
}

TEST(SafeForTerminalTest, TakesControlCharactersOut) {
  EXPECT_EQ(SafeForTerminal("a\n\tb\x1b[2J\x7f\r"), "a\n\tb\uFFFD[2J\uFFFD\uFFFD");
  EXPECT_EQ(SafeForTerminal("é你\u009b1m\u00a0"), "é你\uFFFD1m\u00a0");
}

TEST(ChatTimesTest, CountsFromTheFirstToken) {
  const absl::Time sent = absl::UnixEpoch();
  ChatTimes times(sent);
  v1::ChatEvent event;
  event.mutable_started();
  times.Note(event, sent + absl::Milliseconds(1));
  event.mutable_thinking_delta();
  times.Note(event, sent + absl::Milliseconds(250));
  event.mutable_content_delta();
  times.Note(event, sent + absl::Milliseconds(1250));
  times.Note(event, sent + absl::Milliseconds(2250));
  v1::Finished finished;
  finished.set_reason(v1::CHAT_FINISH_REASON_STOP);
  finished.mutable_usage()->set_prompt_tokens(31);
  finished.mutable_usage()->set_cached_prompt_tokens(16);
  finished.mutable_usage()->set_completion_tokens(21);
  finished.mutable_usage()->set_thinking_tokens(8);
  finished.mutable_usage()->set_answer_tokens(11);
  finished.mutable_thinking()->set_mode(v1::THINKING_MODE_THINKING);
  finished.mutable_thinking()->set_budget(8);
  finished.mutable_thinking()->set_ended_by(v1::THINKING_END_BUDGET);
  EXPECT_EQ(times.Summary(finished),
            "31 prompt tokens (16 cached), 8 thinking (budget 8, ended by budget), 11 answer; "
            "finished by stop; first token after 0.250 s, answer after 1.250 s, 10.0 tokens/s");
}

TEST(RunGenerateTest, PrintsTextIdsOrAnObject) {
  FakeRouter router;
  router.on_generate = [](grpc::ServerContext&, const v1::GenerateRequest& request,
                          grpc::ServerWriter<v1::GenerateEvent>& writer) {
    v1::GenerateEvent event;
    event.mutable_started()->set_seed(9);
    writer.Write(event);
    if (request.prompt_logprobs()) {
      event.mutable_prompt_logprobs()->add_logprobs(-0.5f);
      writer.Write(event);
    }
    for (const uint32_t id : {4u, 5u}) {
      event.mutable_delta()->set_text(request.has_text() ? request.text() : "x");
      event.mutable_delta()->mutable_ids()->Clear();
      event.mutable_delta()->add_ids(id + request.token_ids().ids_size());
      writer.Write(event);
    }
    event.mutable_finished()->set_reason(v1::CHAT_FINISH_REASON_LENGTH);
    event.mutable_finished()->mutable_usage()->set_completion_tokens(request.max_tokens());
    writer.Write(event);
    return grpc::Status::OK;
  };
  const LoopbackServer server(&router);
  GenerateCommandOptions options;
  options.router.endpoint = server.target();
  options.prompt = "ab";
  options.sampling.max_tokens = 2;
  std::ostringstream text, ids, json;
  ASSERT_OK(RunGenerate(options, text));
  EXPECT_EQ(text.str(), "abab\n");
  options.prompt = "7 8 9";
  options.ids = true;
  ASSERT_OK(RunGenerate(options, ids));
  EXPECT_EQ(ids.str(), "7 8\n");
  options.json = true;
  options.prompt_logprobs = true;
  ASSERT_OK(RunGenerate(options, json));
  EXPECT_EQ(json.str(),
            R"({"text":"xx","ids":[7,8],"prompt_logprobs":[-0.5],"finish_reason":"length",)"
            R"("usage":{"prompt_tokens":0,"cached_prompt_tokens":0,"completion_tokens":2,)"
            R"("thinking_tokens":0,"answer_tokens":0},"failovers":0,"seed":9})"
            "\n");
  options.prompt = "7 b";
  EXPECT_THAT(RunGenerate(options, json), StatusIs(absl::StatusCode::kInvalidArgument));
  options.prompt = "7";
  router.on_generate = [](const auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
  };
  EXPECT_THAT(RunGenerate(options, json), StatusIs(absl::StatusCode::kNotFound, "no such model"));
  router.on_generate = [](const auto&, const auto&, auto&) { return grpc::Status::OK; };
  EXPECT_THAT(RunGenerate(options, json),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("finished")));
}

}  // namespace
}  // namespace conclave
