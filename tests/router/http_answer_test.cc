// An answer of two choices, with the engine and the connection in the test's hands.

#include "router/http_answer.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class FakeExchange final : public HttpExchange {
 public:
  void Send(HttpResponse response) override { sent = std::move(response); }
  void StartStream(HttpResponse response) override { head = std::move(response); }
  void Write(std::string chunk, absl::AnyInvocable<void(bool)> write_done) override {
    CHECK(done == nullptr) << "one Write at a time";
    written += chunk;
    done = std::move(write_done);
  }
  void EndStream() override { ended = true; }
  void OnGone(absl::AnyInvocable<void()> callback) override { gone = std::move(callback); }
  void FinishWrite(bool ok) { std::exchange(done, nullptr)(ok); }

  std::optional<HttpResponse> sent, head;
  std::string written;
  absl::AnyInvocable<void(bool)> done;
  absl::AnyInvocable<void()> gone;
  bool ended = false;
};

struct FakeHandle final : public RequestHandle {
  void Next() override { ++nexts; }
  void Cancel() override { ++cancels; }
  int nexts = 0;
  int cancels = 0;
};

// Writes every delta as it is.
class PlainEncoder final : public OpenAiEncoder<v1::ChatEvent> {
 public:
  std::string Add(int choice, const v1::ChatEvent& event) override {
    return absl::StrCat(choice, event.content_delta().text(), " ");
  }
  std::string Finish() override { return "end"; }
};

std::vector<v1::ChatEvent> Says(const std::string& text) {
  std::vector<v1::ChatEvent> events(1);
  events[0].mutable_content_delta()->set_text(text);
  return events;
}

class AnswerTest : public testing::Test {
 protected:
  void Begin(bool stream) {
    HttpAnswerOptions options;
    options.num_choices = 2;
    options.stream = stream;
    AnswerWithChoices<v1::ChatEvent>(exchange_, std::make_unique<PlainEncoder>(), options,
                                     [&](int choice, RequestObserver<v1::ChatEvent>* observer) {
                                       observers_[choice] = observer;
                                       return handles_[choice];
                                     });
  }
  std::vector<int> Nexts() const { return {handles_[0]->nexts, handles_[1]->nexts}; }
  std::vector<int> Cancels() const { return {handles_[0]->cancels, handles_[1]->cancels}; }

  const std::shared_ptr<FakeExchange> exchange_ = std::make_shared<FakeExchange>();
  const std::shared_ptr<FakeHandle> handles_[2] = {std::make_shared<FakeHandle>(),
                                                   std::make_shared<FakeHandle>()};
  RequestObserver<v1::ChatEvent>* observers_[2] = {};
};

TEST_F(AnswerTest, AChoiceWaitsForWhatItSaid) {
  Begin(/*stream=*/true);
  EXPECT_THAT(Nexts(), ElementsAre(1, 1));
  observers_[0]->OnEvents(Says("a"));
  EXPECT_FALSE(exchange_->head.has_value()) << "the other may still be refused";
  observers_[1]->OnEvents(Says("b"));
  EXPECT_EQ(exchange_->head->content_type, "text/event-stream");
  EXPECT_EQ(exchange_->written, "0a 1b ");
  EXPECT_THAT(Nexts(), ElementsAre(1, 1));
  exchange_->FinishWrite(true);
  EXPECT_THAT(Nexts(), ElementsAre(2, 2));
  observers_[1]->OnEvents(Says("c"));
  observers_[0]->OnEvents(Says("d"));  // waits: the other's is being written
  EXPECT_EQ(exchange_->written, "0a 1b 1c ");
  exchange_->FinishWrite(true);
  EXPECT_EQ(exchange_->written, "0a 1b 1c 0d ");
  EXPECT_THAT(Nexts(), ElementsAre(2, 3));
  observers_[1]->OnEnd(absl::OkStatus());
  exchange_->FinishWrite(true);
  EXPECT_THAT(Nexts(), ElementsAre(3, 3));
  EXPECT_FALSE(exchange_->ended);
  observers_[0]->OnEnd(absl::OkStatus());
  EXPECT_EQ(exchange_->written, "0a 1b 1c 0d end");
  EXPECT_TRUE(exchange_->ended);
  exchange_->FinishWrite(true);
  EXPECT_THAT(Cancels(), ElementsAre(0, 0));
  EXPECT_EQ(handles_[0].use_count(), 1) << "nothing is kept";
}

TEST_F(AnswerTest, AWholeAnswerIsCollected) {
  Begin(/*stream=*/false);
  for (int i = 0; i < 2; ++i) observers_[i]->OnEvents(Says("x"));
  EXPECT_THAT(Nexts(), ElementsAre(2, 2));
  observers_[0]->OnEnd(absl::OkStatus());
  EXPECT_FALSE(exchange_->sent.has_value());
  observers_[1]->OnEnd(absl::OkStatus());
  EXPECT_EQ(exchange_->sent->status, 200);
  EXPECT_EQ(exchange_->sent->body, "0x 1x end");
  EXPECT_EQ(handles_[0].use_count(), 1);
}

TEST_F(AnswerTest, AFailureWaitsForTheWriteAndEndsTheRest) {
  Begin(/*stream=*/true);
  for (int i = 0; i < 2; ++i) observers_[i]->OnEvents(Says("x"));
  exchange_->FinishWrite(true);
  observers_[0]->OnEvents(Says("y"));  // is being written
  observers_[1]->OnEnd(absl::UnavailableError("lost"));
  EXPECT_THAT(Cancels(), ElementsAre(1, 0));
  EXPECT_THAT(Nexts(), ElementsAre(3, 2)) << "the end of the other is asked for";
  EXPECT_FALSE(exchange_->ended);
  exchange_->FinishWrite(true);
  EXPECT_THAT(exchange_->written, HasSubstr("0y data: {\"error\""));
  EXPECT_TRUE(exchange_->ended);
  observers_[0]->OnEvents(Says("too late"));
  EXPECT_THAT(Nexts(), ElementsAre(4, 2));
  observers_[0]->OnEnd(absl::CancelledError("told"));
  exchange_->FinishWrite(true);
  EXPECT_THAT(exchange_->written, Not(HasSubstr("too late")));
  EXPECT_EQ(handles_[0].use_count(), 1);
}

TEST_F(AnswerTest, AClientThatIsGoneEndsAll) {
  Begin(/*stream=*/true);
  for (int i = 0; i < 2; ++i) observers_[i]->OnEvents(Says("x"));
  exchange_->FinishWrite(false);
  exchange_->gone();
  EXPECT_THAT(Nexts(), ElementsAre(2, 2)) << "once each";
  for (auto& handle : handles_) EXPECT_GE(handle->cancels, 1);
  for (auto* observer : observers_) observer->OnEnd(absl::CancelledError("told"));
  EXPECT_FALSE(exchange_->ended);
  EXPECT_EQ(handles_[0].use_count(), 1);
}

}  // namespace
}  // namespace conclave
