// Conversations with a router whose answers the test writes.
#include "client/chat_session.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <sstream>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ChatSessionTest : public testing::Test {
 protected:
  std::unique_ptr<ChatSession> Open(ChatSessionOptions options = {}, v1::ChatRequest request = {}) {
    options.router.endpoint = server_.target();
    options.router.timeout_seconds = 60;
    auto session = ChatSession::Open(options, std::move(request), out_, err_);
    EXPECT_OK(session);
    return *std::move(session);
  }

  // Converses with `typed` as the whole input.
  absl::Status Converse(const std::string& typed, ChatSessionOptions options = {},
                        v1::ChatRequest request = {}) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    EXPECT_EQ(write(ends[1], typed.data(), typed.size()), static_cast<ssize_t>(typed.size()));
    close(ends[1]);
    const absl::Status status = Open(options, std::move(request))->Converse(ends[0]);
    close(ends[0]);
    return status;
  }

  static std::vector<std::string> Texts(const v1::ChatRequest& request) {
    std::vector<std::string> texts;
    for (const v1::ChatMessage& message : request.messages()) {
      texts.push_back(absl::StrCat(message.role(), ":", message.content()));
    }
    return texts;
  }

  FakeRouter router_;
  LoopbackServer server_{&router_};
  std::ostringstream out_, err_;
};

TEST_F(ChatSessionTest, AnswersWithTheThinkingApart) {
  router_.on_chat = [](auto&, auto&, auto& writer) { return SendAnswer(writer, "hm", "4"); };
  v1::ChatRequest request;
  request.add_messages()->set_role("user");
  ASSERT_OK_AND_ASSIGN(const ChatResult result, Open({}, request)->Ask());
  EXPECT_EQ(out_.str(), "<think>\nhm\n</think>\n\n4\n");
  EXPECT_EQ(result.AsMessage().reasoning_content(), "hm");
  EXPECT_EQ(result.started().seed(), 7u);
  EXPECT_EQ(err_.str(), "");
}

TEST_F(ChatSessionTest, DimsThinkingOnATerminalAndGivesNumbers) {
  router_.on_chat = [](auto&, auto&, auto& writer) {
    return SendAnswer(writer, "h\x1b[31mm", "4");
  };
  ChatSessionOptions options;
  options.out_is_terminal = true;
  options.stats = true;
  ASSERT_OK(Open(options)->Ask());
  EXPECT_EQ(out_.str(), "\x1b[2mh\xEF\xBF\xBD[31mm\n\x1b[0m\n4\n");
  EXPECT_THAT(err_.str(), HasSubstr("first token after"));
}

TEST_F(ChatSessionTest, ShowsNoThinkingWithoutText) {
  router_.on_chat = [](auto&, auto&, grpc::ServerWriter<v1::ChatEvent>& writer) {
    v1::ChatEvent event;
    event.mutable_thinking_delta()->add_ids(5);  // "<think>" of an empty block
    writer.Write(event);
    return SendAnswer(writer, "", "4");
  };
  ASSERT_OK(Open()->Ask());
  EXPECT_EQ(out_.str(), "4\n");
}

TEST_F(ChatSessionTest, ReturnsTheRoutersErrors) {
  router_.on_chat = [](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  };
  EXPECT_THAT(Open()->Ask(), StatusIs(absl::StatusCode::kResourceExhausted, "full"));
  router_.on_chat = [](auto&, auto&, auto&) { return grpc::Status::OK; };
  EXPECT_THAT(Open()->Ask(), StatusIs(absl::StatusCode::kInternal, HasSubstr("finished")));
  router_.on_chat = [](auto&, auto&, grpc::ServerWriter<v1::ChatEvent>& writer) {
    v1::ChatEvent event;
    event.mutable_tool_call_delta()->set_index(3);
    writer.Write(event);
    return grpc::Status::OK;
  };
  EXPECT_THAT(Open()->Ask(), StatusIs(absl::StatusCode::kInternal, HasSubstr("tool call 3")));
}

TEST_F(ChatSessionTest, AConversationSendsWhatWasSaid) {
  router_.on_chat = [](auto&, auto&, auto& writer) { return SendAnswer(writer, "hm", "yes"); };
  v1::ChatRequest first;
  first.add_messages()->set_role("system");
  ASSERT_OK(Converse("one\n\n  two  \n:reset\nthree\n:quit\nnever", {}, first));
  const std::vector<v1::ChatRequest> chats = router_.chats();
  ASSERT_EQ(chats.size(), 3u);
  EXPECT_THAT(Texts(chats[0]), ElementsAre("system:", "user:one"));
  EXPECT_THAT(Texts(chats[1]), ElementsAre("system:", "user:one", "assistant:yes", "user:two"));
  EXPECT_EQ(chats[1].messages(2).reasoning_content(), "hm");
  EXPECT_THAT(Texts(chats[2]), ElementsAre("system:", "user:three"));
}

TEST_F(ChatSessionTest, TheLastLineNeedsNoNewline) {
  router_.on_chat = [](auto&, auto&, auto& writer) { return SendAnswer(writer, "", "yes"); };
  ASSERT_OK(Converse("one"));
  EXPECT_EQ(router_.chats().size(), 1u);
  EXPECT_EQ(out_.str(), "yes\n");
}

TEST_F(ChatSessionTest, AfterToolCallsLinesAreTheirResults) {
  bool called = false;
  router_.on_chat = [&](auto&, auto&, grpc::ServerWriter<v1::ChatEvent>& writer) {
    if (std::exchange(called, true)) return SendAnswer(writer, "", "done");
    v1::ChatEvent event;
    for (int i = 0; i < 2; ++i) {
      v1::ToolCallDelta* delta = event.mutable_tool_call_delta();
      delta->set_index(i);
      delta->set_id(absl::StrCat("call_", i));
      delta->set_name("f");
      delta->set_arguments("{\"a\"");
      writer.Write(event);
      delta->Clear();
      delta->set_index(i);
      delta->set_arguments(":1}");
      writer.Write(event);
    }
    event.mutable_finished()->set_reason(v1::CHAT_FINISH_REASON_TOOL_CALLS);
    writer.Write(event);
    return grpc::Status::OK;
  };
  ASSERT_OK(Converse("ask\nfirst\nsecond\n"));
  EXPECT_THAT(out_.str(), HasSubstr("[tool call] f {\"a\":1}\n[tool call] f {\"a\":1}\n"));
  const std::vector<v1::ChatRequest> chats = router_.chats();
  ASSERT_EQ(chats.size(), 2u);
  EXPECT_THAT(Texts(chats[1]), ElementsAre("user:ask", "assistant:", "tool:first", "tool:second"));
  EXPECT_EQ(chats[1].messages(1).tool_calls(1).arguments(), "{\"a\":1}");
  EXPECT_EQ(chats[1].messages(3).tool_call_id(), "call_1");
}

TEST_F(ChatSessionTest, ErrorsEndAPipeButNotAPerson) {
  int calls = 0;
  router_.on_chat = [&](auto&, auto&, auto& writer) {
    if (calls++ == 0) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker");
    return SendAnswer(writer, "", "yes");
  };
  EXPECT_THAT(Converse("one\ntwo\n"), StatusIs(absl::StatusCode::kUnavailable, "no worker"));
  calls = 0;
  ChatSessionOptions person;
  person.in_is_terminal = true;
  ASSERT_OK(Converse("one\ntwo\n:nonsense\n:finish\n:help\n", person));
  // The failed question is not part of the conversation.
  EXPECT_THAT(Texts(router_.chats().back()), ElementsAre("user:two"));
  EXPECT_THAT(err_.str(), HasSubstr("no worker"));
  EXPECT_THAT(err_.str(), HasSubstr("no such command: :nonsense"));
  EXPECT_THAT(err_.str(), HasSubstr("no answer is running"));
  EXPECT_THAT(err_.str(), HasSubstr(":reset"));
}

TEST_F(ChatSessionTest, FinishEndsTheThinkingOfTheRunningAnswer) {
  absl::Notification thinking, finish;
  router_.on_chat = [&](auto&, auto&, grpc::ServerWriter<v1::ChatEvent>& writer) {
    v1::ChatEvent event;
    event.mutable_started()->set_request_id("r1");
    writer.Write(event);
    event.mutable_thinking_delta()->set_text("hm");
    writer.Write(event);
    thinking.Notify();
    EXPECT_TRUE(finish.WaitForNotificationWithTimeout(absl::Minutes(1)));
    return SendAnswer(writer, "", "4");
  };
  router_.on_control = [&](const v1::ControlRequest& request) {
    EXPECT_TRUE(request.finish_thinking());
    if (request.request_id() != "r1") return grpc::Status(grpc::StatusCode::NOT_FOUND, "gone");
    finish.Notify();
    return grpc::Status::OK;
  };
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const std::unique_ptr<ChatSession> session = Open();
  std::thread typist([&] {
    EXPECT_EQ(write(ends[1], "ask\n", 4), 4);
    EXPECT_TRUE(thinking.WaitForNotificationWithTimeout(absl::Minutes(1)));
    // The id may still be on its way to the client, which then says so and waits for more.
    while (!finish.WaitForNotificationWithTimeout(absl::Milliseconds(50))) {
      EXPECT_EQ(write(ends[1], ":finish\n", 8), 8);
    }
    close(ends[1]);
  });
  const absl::Status status = session->Converse(ends[0]);
  typist.join();
  close(ends[0]);
  EXPECT_OK(status);
  EXPECT_THAT(out_.str(), HasSubstr("hm\n</think>\n\n4\n"));
}

TEST_F(ChatSessionTest, CtrlCStopsTheAnswer) {
  absl::Notification streaming;
  absl::Notification cancelled;
  router_.on_chat = [&](grpc::ServerContext& context, auto&,
                        grpc::ServerWriter<v1::ChatEvent>& writer) {
    v1::ChatEvent event;
    event.mutable_content_delta()->set_text("endless");
    writer.Write(event);
    streaming.Notify();
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    while (!context.IsCancelled() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    if (context.IsCancelled()) cancelled.Notify();
    return grpc::Status::OK;
  };
  const std::unique_ptr<ChatSession> session = Open();
  // To this thread, not to the process: the fake router's threads do not block the signal.
  std::thread person([&streaming, self = pthread_self()] {
    EXPECT_TRUE(streaming.WaitForNotificationWithTimeout(absl::Minutes(1)));
    pthread_kill(self, SIGINT);
  });
  EXPECT_THAT(session->Ask(), StatusIs(absl::StatusCode::kCancelled, "the answer was stopped"));
  person.join();
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(absl::Minutes(1)));
}

}  // namespace
}  // namespace conclave
