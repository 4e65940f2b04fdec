#include "worker/sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/limits.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr SequenceLimits kLimits{.max_context = 100, .num_ids = 300, .vocab_size = 320};

absl::string_view NoBytes(uint32_t) { return {}; }

v1::TokenRequest Valid() {
  v1::TokenRequest request;
  request.set_request_id("r1");
  request.add_prompt_ids(5);
  request.add_prompt_ids(6);
  request.set_max_tokens(40);
  request.mutable_sampling()->set_temperature(0.6f);
  v1::ThinkingParams* thinking = request.mutable_thinking();
  thinking->set_enabled(true);
  thinking->set_start_id(290);
  thinking->set_end_id(291);
  thinking->set_budget(10);
  thinking->add_forced_ids(1);
  thinking->add_forced_ids(291);
  return request;
}

TEST(MakeSequenceTest, TakesAValidRequest) {
  ASSERT_OK_AND_ASSIGN(const auto sequence, MakeSequence(Valid(), kLimits, NoBytes));
  EXPECT_THAT(sequence->tokens, ElementsAre(5, 6));
  EXPECT_EQ(sequence->num_pending(), 2);
  EXPECT_EQ(sequence->sampling.top_p, 1) << "0 on the wire means all";
  EXPECT_EQ(sequence->sampling.repetition_penalty, 1);
}

TEST(MakeSequenceTest, ResumesWithGeneratedIdsAndState) {
  v1::TokenRequest request = Valid();
  request.add_generated_ids(290);
  request.add_generated_ids(7);
  request.mutable_thinking_state()->set_phase(v1::ThinkingState::THINKING);
  request.mutable_thinking_state()->set_used(1);
  request.mutable_thinking_state()->set_budget(10);
  ASSERT_OK_AND_ASSIGN(const auto sequence, MakeSequence(request, kLimits, NoBytes));
  EXPECT_EQ(sequence->num_prompt, 2);
  EXPECT_EQ(sequence->num_generated(), 2);
  EXPECT_EQ(sequence->num_emitted, 4);
  EXPECT_EQ(sequence->thinking.state().used, 1);
}

struct BadRequest {
  const char* name;
  std::function<void(v1::TokenRequest&)> spoil;
  const char* message;
};

class MakeSequenceErrorTest : public testing::TestWithParam<BadRequest> {};

TEST_P(MakeSequenceErrorTest, IsInvalidArgumentNamingTheField) {
  v1::TokenRequest request = Valid();
  GetParam().spoil(request);
  EXPECT_THAT(MakeSequence(request, kLimits, NoBytes),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Requests, MakeSequenceErrorTest,
    testing::Values(
        BadRequest{"NoId", [](v1::TokenRequest& r) { r.clear_request_id(); }, "request_id"},
        BadRequest{"LongId", [](v1::TokenRequest& r) { r.set_request_id(std::string(1000, 'x')); },
                   "request_id"},
        BadRequest{"NoPrompt", [](v1::TokenRequest& r) { r.clear_prompt_ids(); }, "prompt_ids"},
        BadRequest{"PromptIdTooLarge", [](v1::TokenRequest& r) { r.set_prompt_ids(1, 320); },
                   "prompt_ids[1] is 320"},
        BadRequest{"PastContext", [](v1::TokenRequest& r) { r.set_max_tokens(99); },
                   "maximum context length"},
        BadRequest{"NothingToDo", [](v1::TokenRequest& r) { r.set_max_tokens(0); }, "max_tokens"},
        BadRequest{"NegativeTemperature",
                   [](v1::TokenRequest& r) { r.mutable_sampling()->set_temperature(-1); },
                   "temperature"},
        BadRequest{"NanTemperature",
                   [](v1::TokenRequest& r) { r.mutable_sampling()->set_temperature(NAN); },
                   "temperature"},
        BadRequest{"HugeTopK",
                   [](v1::TokenRequest& r) { r.mutable_sampling()->set_top_k(4000000000u); },
                   "top_k"},
        BadRequest{"TooManyLogprobs",
                   [](v1::TokenRequest& r) { r.mutable_sampling()->set_top_logprobs(21); },
                   "top_logprobs is 21"},
        BadRequest{
            "BiasOfUnknownId",
            [](v1::TokenRequest& r) { (*r.mutable_sampling()->mutable_logit_bias())[999] = 1; },
            "logit_bias"},
        BadRequest{"ForcedIdsWithoutEnd",
                   [](v1::TokenRequest& r) {
                     r.mutable_thinking()->clear_forced_ids();
                     r.mutable_thinking()->add_forced_ids(1);
                   },
                   "end_id 291"},
        BadRequest{"BudgetBelowMinusOne",
                   [](v1::TokenRequest& r) { r.mutable_thinking()->set_budget(-2); },
                   "budget is -2"},
        BadRequest{"ReserveThatCannotBe",
                   [](v1::TokenRequest& r) { r.mutable_thinking()->set_answer_reserve(39); },
                   "answer_reserve of 39"},
        BadRequest{"ResumedPastTheEnd",
                   [](v1::TokenRequest& r) {
                     for (int i = 0; i < 40; ++i) r.add_generated_ids(1);
                   },
                   "generated_ids"},
        BadRequest{"TooManyStopIds",
                   [](v1::TokenRequest& r) {
                     for (int i = 0; i <= limits::kMaxStopIds; ++i) r.add_stop_ids(1);
                   },
                   "stop_ids"}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace conclave
