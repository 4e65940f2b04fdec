#include "client/score_command.h"

#include <gtest/gtest.h>

#include <sstream>

#include "client/private_worker.h"
#include "rpc/channel.h"
#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Scores id i as -i; refuses prompts that hold 99 and forgets one logprob of those that hold 98.
class FakeWorker : public v1::Worker::Service {
  grpc::Status Generate(grpc::ServerContext*, const v1::TokenRequest* request,
                        grpc::ServerWriter<v1::TokenEvent>* writer) override {
    EXPECT_TRUE(request->prompt_logprobs());
    EXPECT_EQ(request->max_tokens(), 0u);
    v1::TokenEvent event;
    for (int i = 1; i < request->prompt_ids_size(); ++i) {
      const uint32_t id = request->prompt_ids(i);
      if (id == 99) return {grpc::StatusCode::INVALID_ARGUMENT, "no such id"};
      if (id != 98) event.add_prompt_logprobs(-static_cast<float>(id));
    }
    event.set_finish_reason(v1::FINISH_REASON_LENGTH);
    writer->Write(event);
    return grpc::Status::OK;
  }
};

class ScoreLinesTest : public testing::Test {
 protected:
  absl::Status Score(const std::string& lines) {
    std::istringstream in(lines);
    const auto stub = v1::Worker::NewStub(MakeChannel(server_.target()));
    return ScoreLines(*stub, {}, in, out_);
  }

  FakeWorker worker_;
  LoopbackServer server_{&worker_};
  std::ostringstream out_;
};

TEST_F(ScoreLinesTest, AnswersInOrder) {
  std::string lines, wanted;
  for (int i = 2; i < 60; ++i) {  // more than are in flight at a time
    lines += absl::StrCat("{\"ids\": [1, ", i, "], \"other\": true}\n\n");
    wanted += absl::StrCat("{\"logprobs\":[-", i, ".0]}\n");
  }
  lines += "{\"ids\": [3]}";
  wanted += "{\"logprobs\":[]}\n";
  ASSERT_OK(Score(lines));
  EXPECT_EQ(out_.str(), wanted);
}

TEST_F(ScoreLinesTest, ABadLineIsNamedAndTheOthersAreAnswered) {
  EXPECT_THAT(Score("{\"ids\": [1, 2]}\nnonsense\n{\"ids\": [1, 99]}\n{\"ids\": [1, 98]}\n"
                    "{\"ids\": [1, 3]}\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("3 of 5 lines")));
  EXPECT_EQ(out_.str(),
            "{\"logprobs\":[-2.0]}\n"
            "{\"error\":\"line 2: not JSON\"}\n"
            "{\"error\":\"line 3: no such id\"}\n"
            "{\"error\":\"line 4: the worker sent 0 logprobs, want 1\"}\n"
            "{\"logprobs\":[-3.0]}\n");
}

TEST(ParseScoreLineTest, NamesWhatIsWrong) {
  EXPECT_THAT(*ParseScoreLine("{\"ids\": [0, 4294967295]}"), ElementsAre(0u, 4294967295u));
  for (const auto& [line, message] : std::vector<std::pair<std::string, std::string>>{
           {"{", "not JSON"},
           {"[]", "\"ids\" is missing"},
           {"{\"ids\": 3}", "\"ids\" is missing"},
           {"{\"ids\": []}", "\"ids\" is empty"},
           {"{\"ids\": [1, -2]}", "ids[1] is -2"},
           {"{\"ids\": [4294967296]}", "ids[0] is 4294967296"},
           {"{\"ids\": [1.5]}", "ids[0] is 1.5"},
           {"{\"ids\": [\"a\"]}", "ids[0] is \"a\""}}) {
    EXPECT_THAT(ParseScoreLine(line),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

TEST(PrivateWorkerTest, ReturnsOnceTheWorkerIsReady) {
  ASSERT_OK_AND_ASSIGN(
      const auto worker,
      PrivateWorker::Start(
          {"/bin/sh", "-c",
           "echo '{\"event\":\"listening\",\"grpc\":\"127.0.0.1:77\",\"metrics\":\"h:1\"}';"
           "echo '{\"event\":\"ready\"}'; exec sleep 600"},
          absl::Minutes(1)));
  EXPECT_EQ(worker->target(), "127.0.0.1:77");
}

TEST(PrivateWorkerTest, SaysWhyTheWorkerEnded) {
  EXPECT_THAT(
      PrivateWorker::Start({"/bin/sh", "-c", "echo first >&2; echo broken model >&2; exit 1"},
                           absl::Minutes(1)),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("broken model")));
  EXPECT_THAT(PrivateWorker::Start({"/nowhere/conclave-worker"}, absl::Minutes(1)),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(PrivateWorker::Start({"/bin/sleep", "600"}, absl::Minutes(1)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("ended before")))
      << "sleep does not know --listen";
  EXPECT_THAT(PrivateWorker::Start({"/bin/sh", "-c", "exec sleep 600"}, absl::Milliseconds(100)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

}  // namespace
}  // namespace conclave
