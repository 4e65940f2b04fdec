#include "client/bench_command.h"

#include <gtest/gtest.h>

#include <atomic>
#include <sstream>
#include <thread>

#include "client/bench_prompts.h"
#include "nlohmann/json.hpp"
#include "rpc/channel.h"
#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::Not;

void Finish(uint32_t prompt_tokens, v1::Finished* finished) {
  finished->set_reason(v1::CHAT_FINISH_REASON_LENGTH);
  finished->mutable_usage()->set_prompt_tokens(prompt_tokens);
}

// One id an event, as many as asked for.
grpc::Status SendIds(const v1::GenerateRequest& request,
                     grpc::ServerWriter<v1::GenerateEvent>& writer) {
  v1::GenerateEvent event;
  event.mutable_started()->set_prompt_tokens(request.token_ids().ids_size());
  writer.Write(event);
  event.mutable_delta()->add_ids(7);
  for (uint32_t i = 0; i < request.max_tokens(); ++i) writer.Write(event);
  Finish(request.token_ids().ids_size(), event.mutable_finished());
  writer.Write(event);
  return grpc::Status::OK;
}

// Half of the ids think where the request does.
grpc::Status SendChat(const v1::ChatRequest& request, grpc::ServerWriter<v1::ChatEvent>& writer) {
  v1::ChatEvent event;
  uint32_t sent = 0;
  if (request.thinking().enable_thinking()) {
    event.mutable_thinking_delta()->add_ids(1);
    for (; sent < request.max_tokens() / 2; ++sent) writer.Write(event);
  }
  event.mutable_content_delta()->add_ids(2);
  for (; sent < request.max_tokens(); ++sent) writer.Write(event);
  Finish(5, event.mutable_finished());
  if (request.thinking().enable_thinking()) {
    event.mutable_finished()->mutable_thinking()->set_ended_by(v1::THINKING_END_BUDGET);
    event.mutable_finished()->mutable_usage()->set_thinking_tokens(request.max_tokens() / 2);
  }
  writer.Write(event);
  return grpc::Status::OK;
}

class BenchCommandTest : public testing::Test {
 protected:
  BenchCommandTest() {
    router_.on_generate = [](const auto&, const auto& request, auto& writer) {
      return SendIds(request, writer);
    };
    router_.on_chat = [](const auto&, const auto& request, auto& writer) {
      return SendChat(request, writer);
    };
    options_.router.endpoint = server_.target();
    options_.num_requests = 12;
    options_.concurrency = 3;
    options_.input_len = 10;
    options_.output_len = 6;
    options_.json = true;
  }

  absl::Status Run() {
    out_.str("");
    const absl::Status status =
        RunBench(options_, out_, err_, /*err_is_terminal=*/false, [this] { return stop_.load(); });
    if (options_.json && !out_.str().empty()) json_ = nlohmann::json::parse(out_.str());
    return status;
  }

  FakeRouter router_;
  LoopbackServer server_{&router_};
  BenchOptions options_;
  std::ostringstream out_, err_;
  std::atomic<bool> stop_ = false;
  nlohmann::json json_;
};

TEST_F(BenchCommandTest, MeasuresEveryRequest) {
  std::atomic<int> in_flight = 0, most = 0;
  router_.on_generate = [&](const auto&, const auto& request, auto& writer) {
    const int now = ++in_flight;
    for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    const grpc::Status status = SendIds(request, writer);
    --in_flight;
    return status;
  };
  ASSERT_OK(Run());
  EXPECT_LE(most, 3);
  EXPECT_EQ(json_["completed"], 12);
  EXPECT_EQ(json_["failed"], 0);
  EXPECT_EQ(json_["output_tokens"], 12 * 6);
  EXPECT_EQ(json_["prompt_tokens"], 12 * 10);
  EXPECT_LE(json_["peak_in_flight"], 3);
  EXPECT_GT(json_["output_tokens_per_second"], 0);
  for (const char* latency : {"ttft_ms", "ttfat_ms", "itl_ms", "tpot_ms", "e2e_ms"}) {
    EXPECT_LE(json_[latency]["p50"], json_[latency]["p90"]) << latency;
    EXPECT_LE(json_[latency]["p90"], json_[latency]["p99"]) << latency;
    EXPECT_GE(json_[latency]["p50"], 0) << latency;
  }
  EXPECT_TRUE(json_["goodput"].is_null()) << "without an SLO";
  EXPECT_EQ(err_.str(), "") << "no progress where nobody looks";
  ASSERT_EQ(router_.generates().size(), 13u) << "and a warm-up";
  for (const v1::GenerateRequest& request : router_.generates()) {
    EXPECT_EQ(request.token_ids().ids_size(), 10);
    EXPECT_EQ(request.max_tokens(), 6u);
    EXPECT_TRUE(request.ignore_eos());
    for (const uint32_t id : request.token_ids().ids()) EXPECT_LT(id, 256u);
  }
}

TEST_F(BenchCommandTest, TheShareThatThinksIsExact) {
  options_.think_share = 0.25;
  options_.slo = {.ttft_ms = 1e6, .ttfat_ms = 1e6, .itl_ms = 1e6};
  ASSERT_OK(Run());
  EXPECT_EQ(json_["completed"], 12);
  EXPECT_EQ(json_["thinking_tokens"], 3 * 3);
  EXPECT_EQ(json_["thinking_ended_by"], nlohmann::json({{"budget", 3}}));
  EXPECT_EQ(json_["goodput"]["requests"], 12);
  EXPECT_EQ(json_["goodput"]["share"], 1.0);
  int thinkers = 0;
  for (const v1::ChatRequest& request : router_.chats()) {
    ASSERT_TRUE(request.thinking().has_enable_thinking());
    EXPECT_EQ(request.messages(0).content().size(), 10u) << "a byte is a token here";
    EXPECT_EQ(request.thinking().has_budget(), request.thinking().enable_thinking());
    if (!request.thinking().enable_thinking()) continue;
    EXPECT_EQ(request.thinking().budget(), 3);
    ++thinkers;
  }
  EXPECT_EQ(thinkers, 4) << "three, and the warm-up";
}

TEST_F(BenchCommandTest, AnswersThatNeverComeAreNoGoodput) {
  options_.think_share = 1;
  options_.slo.ttfat_ms = 1e6;
  router_.on_chat = [](const auto&, const auto&, auto& writer) {
    v1::ChatEvent event;
    event.mutable_thinking_delta()->add_ids(1);
    writer.Write(event);
    Finish(5, event.mutable_finished());
    writer.Write(event);
    return grpc::Status::OK;
  };
  ASSERT_OK(Run());
  EXPECT_EQ(json_["goodput"]["requests"], 0);
  EXPECT_TRUE(json_["ttfat_ms"]["p50"].is_null());
  EXPECT_FALSE(json_["ttft_ms"]["p50"].is_null());
}

TEST_F(BenchCommandTest, CountsErrorsByCode) {
  std::atomic<int> calls = 0;
  router_.on_generate = [&](const auto&, const auto& request, auto& writer) {
    switch (calls++) {
      case 3:
      case 4:
        return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full");
      case 5:
        return grpc::Status::OK;  // without "finished"
      default:
        return SendIds(request, writer);
    }
  };
  EXPECT_THAT(Run(),
              StatusIs(StatusCode::kInternal, HasSubstr("3 of 12 requests failed: INTERNAL x 1, "
                                                        "RESOURCE_EXHAUSTED x 2")));
  EXPECT_EQ(json_["completed"], 9);
  EXPECT_EQ(json_["failed"], 3);
  EXPECT_EQ(json_["errors"], nlohmann::json({{"RESOURCE_EXHAUSTED", 2}, {"INTERNAL", 1}}));
  EXPECT_EQ(json_["first_error"]["RESOURCE_EXHAUSTED"], "queue full");
}

TEST_F(BenchCommandTest, StoppedItPrintsWhatWasMeasured) {
  // After the warm-up and four more comes one that never ends by itself.
  std::atomic<int> calls = 0;
  router_.on_generate = [&](grpc::ServerContext& context, const auto& request, auto& writer) {
    if (++calls <= 5) return SendIds(request, writer);
    v1::GenerateEvent event;
    event.mutable_delta()->add_ids(7);
    writer.Write(event);
    stop_ = true;
    while (!context.IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  };
  options_.concurrency = 1;
  EXPECT_THAT(Run(), StatusIs(StatusCode::kCancelled, HasSubstr("interrupted after 4 of 12")));
  EXPECT_EQ(json_["interrupted"], true);
  EXPECT_EQ(json_["completed"], 4);
  EXPECT_EQ(json_["cut_short"], 1);
  EXPECT_EQ(json_["failed"], 0);
  EXPECT_GE(json_["output_tokens"], 4 * 6);
}

TEST_F(BenchCommandTest, StoppedBeforeItBeganItPrintsNothing) {
  stop_ = true;
  EXPECT_THAT(Run(), StatusIs(StatusCode::kCancelled, HasSubstr("before any request")));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(BenchCommandTest, PrintsATableAndPlots) {
  options_.json = false;
  options_.rate = 1000;
  options_.think_share = 0.5;
  options_.slo.ttft_ms = 1e6;
  ASSERT_OK(Run());
  for (const char* expected :
       {"model fake, 12 requests, 1000 arrivals/s (Poisson), at most 3 in flight, prompts of 10 "
        "tokens, outputs of 6, 0.5 of them think",
        "12 finished, 0 failed", "output tokens/s", "time to first token", "first answer token",
        "inter-token latency", "goodput: 12 of 12", "requests by time to first token, ms\n",
        "output tokens/s, from second\n", "thinking ended by budget 6"}) {
    EXPECT_THAT(out_.str(), HasSubstr(expected));
  }
  options_.plots = {"none"};
  ASSERT_OK(Run());
  EXPECT_THAT(out_.str(), Not(HasSubstr("#")));
}

TEST_F(BenchCommandTest, RefusesWhatCannotBeMeasured) {
  options_.input_len = 1020;
  EXPECT_THAT(Run(), StatusIs(StatusCode::kInvalidArgument,
                              HasSubstr("--input_len + --output_len is 1026, want at most 1024")));
  options_.input_len = 10;
  router_.on_generate = [](const auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker");
  };
  EXPECT_THAT(Run(), StatusIs(StatusCode::kUnavailable, "warm-up request: no worker"));
  options_.router.endpoint = "127.0.0.1:1";
  EXPECT_THAT(Run(), StatusIs(StatusCode::kUnavailable, HasSubstr("no model at 127.0.0.1:1")));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(BenchCommandTest, EqualSeedsGiveEqualRequests) {
  const auto stub = v1::Inference::NewStub(MakeChannel(server_.target()));
  options_.rate = 10;
  options_.shared_prefix_len = 4;
  options_.range_ratio = 0.5;
  ASSERT_OK_AND_ASSIGN(const std::vector<LoadRequest> requests,
                       MakeBenchRequests(options_, *stub, [] { return false; }));
  ASSERT_OK_AND_ASSIGN(const std::vector<LoadRequest> again,
                       MakeBenchRequests(options_, *stub, [] { return false; }));
  ASSERT_EQ(requests.size(), 13u);
  absl::Duration last = -absl::Seconds(1);
  const auto& first = std::get<v1::GenerateRequest>(requests[0].request).token_ids().ids();
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto& request = std::get<v1::GenerateRequest>(requests[i].request);
    EXPECT_EQ(request.SerializeAsString(),
              std::get<v1::GenerateRequest>(again[i].request).SerializeAsString());
    EXPECT_EQ(requests[i].arrival, again[i].arrival);
    EXPECT_TRUE(std::equal(first.begin(), first.begin() + 4, request.token_ids().ids().begin()));
    EXPECT_GE(request.token_ids().ids_size(), 5);
    EXPECT_LE(request.token_ids().ids_size(), 15);
    EXPECT_GE(request.max_tokens(), 3u);
    EXPECT_LE(request.max_tokens(), 9u);
    if (i == 0) continue;  // the warm-up
    EXPECT_GT(requests[i].arrival, last);
    last = requests[i].arrival;
  }
  options_.seed = 2;
  ASSERT_OK_AND_ASSIGN(const std::vector<LoadRequest> other,
                       MakeBenchRequests(options_, *stub, [] { return false; }));
  EXPECT_NE(std::get<v1::GenerateRequest>(other[1].request).token_ids().SerializeAsString(),
            std::get<v1::GenerateRequest>(requests[1].request).token_ids().SerializeAsString());
}

TEST_F(BenchCommandTest, TakesQuestionsFromAFile) {
  const TempDir dir;
  options_.prompts_file = dir.Write("questions", "What is 1+1?\n\n  Why?  \n");
  options_.respect_eos = true;
  ASSERT_OK(Run());
  const std::vector<v1::ChatRequest> chats = router_.chats();
  ASSERT_EQ(chats.size(), 13u);
  int whys = 0;
  for (const v1::ChatRequest& chat : chats) {
    EXPECT_FALSE(chat.thinking().has_enable_thinking()) << "the model's default";
    EXPECT_FALSE(chat.ignore_eos());
    whys += chat.messages(0).content() == "Why?";
  }
  EXPECT_EQ(whys, 6);
  options_.prompts_file = dir.Write("none", "\n\n");
  EXPECT_THAT(Run(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("want a file with a")));
}

TEST(BenchOptionsTest, NamesTheFlagThatIsWrong) {
  const auto refuses = [](auto set, const char* flag) {
    BenchOptions options;
    set(options);
    EXPECT_THAT(options.Validate(), StatusIs(StatusCode::kInvalidArgument, HasSubstr(flag)));
  };
  EXPECT_OK(BenchOptions().Validate());
  refuses([](BenchOptions& o) { o.num_requests = 0; }, "--num_requests is 0, want 1..");
  refuses([](BenchOptions& o) { o.concurrency = 0; }, "--concurrency is 0");
  refuses([](BenchOptions& o) { o.input_len = 0; }, "--input_len is 0");
  refuses([](BenchOptions& o) { o.output_len = -1; }, "--output_len is -1");
  refuses([](BenchOptions& o) { o.range_ratio = 1; }, "--range_ratio is 1");
  refuses([](BenchOptions& o) { o.num_requests = 1000000; }, "--num_requests x --output_len");
  refuses([](BenchOptions& o) { o.shared_prefix_len = 513; }, "--shared_prefix_len is 513");
  refuses([](BenchOptions& o) { o.think_share = 1.5; }, "--think_share is 1.5, want 0..1");
  refuses([](BenchOptions& o) { o.thinking_budget = 5; }, "--thinking_budget is given");
  refuses([](BenchOptions& o) { o.think_share = 1, o.thinking_budget = -2; },
          "--thinking_budget is -2");
  refuses([](BenchOptions& o) { o.prompts_file = "x", o.shared_prefix_len = 5; },
          "does not go with --prompts");
  refuses([](BenchOptions& o) { o.warmup = -1; }, "--warmup is -1");
  refuses([](BenchOptions& o) { o.rate = 0; }, "--rate is 0, want more than 0");
  refuses([](BenchOptions& o) { o.slo.itl_ms = -3; }, "--slo_itl_ms is -3");
  refuses([](BenchOptions& o) { o.plots = {"pie"}; }, "--plot is \"pie\", want one of ttft");
}

TEST(FormatBenchProgressTest, ShowsHowFarItIs) {
  EXPECT_EQ(FormatBenchProgress({.total = 100,
                                 .finished = 49,
                                 .failed = 1,
                                 .in_flight = 8,
                                 .tokens = 500,
                                 .elapsed = absl::Seconds(2)}),
            "[###############---------------] 50/100  2.0 s  250 tokens/s  8 in flight  1 failed");
}

}  // namespace
}  // namespace conclave
