#include "router/budget_policy.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

PreparedRequest Asks(int64_t budget, v1::ThinkingMode mode = v1::THINKING_MODE_THINKING) {
  PreparedRequest prepared;
  prepared.tokens.set_max_tokens(10'000);
  prepared.tokens.mutable_thinking()->set_enabled(true);
  prepared.tokens.mutable_thinking()->set_budget(budget);
  prepared.thinking.set_mode(mode);
  prepared.thinking.set_budget(budget);
  prepared.thinking.set_requested_budget(budget);
  return prepared;
}

class BudgetPolicyTest : public testing::Test {
 protected:
  BudgetPolicy Make(double adaptive_queue = 0) {
    BudgetPolicyOptions options;
    options.ceilings.other_keys = 2000;
    options.ceilings.keys = {{"gold", -1}, {"tin", 100}};
    options.adaptive_queue = adaptive_queue;
    options.adaptive_floor = 200;
    options.smoothing = absl::Seconds(5);
    return BudgetPolicy(options, &router_metrics_);
  }
  static v1::ThinkingReport Applied(const BudgetPolicy& policy, const char* key,
                                    PreparedRequest request) {
    policy.Apply(key, &request);
    EXPECT_EQ(request.tokens.thinking().budget(), request.thinking.budget());
    return request.thinking;
  }

  Metrics metrics_;
  RouterMetrics router_metrics_{&metrics_};
};

TEST_F(BudgetPolicyTest, TheCeilingOfTheKeyWins) {
  const BudgetPolicy policy = Make();
  struct Case {
    const char* key;
    int64_t asked, granted;
  };
  for (const Case& c : {Case{"gold", -1, -1}, Case{"gold", 50'000, 50'000}, Case{"tin", -1, 100},
                        Case{"tin", 101, 100}, Case{"tin", 100, 100}, Case{"tin", 0, 0},
                        Case{"", -1, 2000}, Case{"unknown", 1999, 1999}}) {
    const v1::ThinkingReport report = Applied(policy, c.key, Asks(c.asked));
    EXPECT_EQ(report.budget(), c.granted) << c.key << " " << c.asked;
    EXPECT_EQ(report.requested_budget(), c.asked);
    EXPECT_EQ(report.limited_by(),
              c.granted == c.asked ? v1::BUDGET_LIMIT_NONE : v1::BUDGET_LIMIT_CEILING);
  }
}

TEST_F(BudgetPolicyTest, QueuesShrinkBudgetsSmoothlyDownToTheFloor) {
  BudgetPolicy policy = Make(/*adaptive_queue=*/4);
  absl::Time now = absl::UnixEpoch();
  policy.ObserveQueue(0, now);
  EXPECT_EQ(Applied(policy, "gold", Asks(1200)).budget(), 1200);
  int64_t last = 1200;
  for (int second = 0; second < 60; ++second) {
    now += absl::Seconds(1);
    policy.ObserveQueue(16, now);
    const v1::ThinkingReport report = Applied(policy, "gold", Asks(1200));
    EXPECT_LE(report.budget(), last);
    EXPECT_GE(report.budget(), last - 250) << "a jump";
    last = report.budget();
  }
  // 16 wait where 4 may: what is above the floor comes down to a quarter.
  EXPECT_NEAR(last, 200 + 1000 / 4, 1);
  const v1::ThinkingReport report = Applied(policy, "gold", Asks(-1));
  EXPECT_NEAR(report.budget(), 200 + 9800 / 4, 10);  // unlimited is max_tokens
  EXPECT_EQ(report.limited_by(), v1::BUDGET_LIMIT_ADAPTIVE);
  EXPECT_EQ(Applied(policy, "gold", Asks(150)).budget(), 150);
  EXPECT_EQ(Applied(policy, "gold", Asks(0)).budget(), 0);
  EXPECT_EQ(Applied(policy, "gold", Asks(1200, v1::THINKING_MODE_OFF)).budget(), 1200);
  EXPECT_EQ(Applied(policy, "tin", Asks(1200)).budget(), 100);  // the ceiling is below the floor
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_router_adaptive_budget_scale 0.25"));
  policy.ObserveQueue(0, now + absl::Minutes(5));
  EXPECT_EQ(Applied(policy, "gold", Asks(-1)).budget(), -1);
}

TEST_F(BudgetPolicyTest, ReadsCeilings) {
  const TempDir dir;
  const std::string path = dir.Write("keys", R"({"default": 512, "keys": {"a": -1, "b": 7}})");
  ASSERT_OK_AND_ASSIGN(const BudgetCeilings ceilings, LoadBudgetCeilings(path));
  EXPECT_EQ(ceilings.other_keys, 512);
  EXPECT_EQ(ceilings.keys.at("a"), -1);
  EXPECT_EQ(ceilings.keys.at("b"), 7);
  for (const char* bad : {"[]", "{", R"({"default": 1.5})", R"({"keys": {"secret": -2}})",
                          R"({"keys": 3})", R"({"ceiling": 3})", R"({"default": "4"})"}) {
    EXPECT_THAT(LoadBudgetCeilings(dir.Write("keys", bad)).status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(path), Not(HasSubstr("secret")))))
        << bad;
  }
  EXPECT_THAT(LoadBudgetCeilings(dir.File("none")).status(), StatusIs(absl::StatusCode::kNotFound));
}

TEST(BudgetPolicyOfARouter, KeysCountInCallsAndControl) {
  FakeWorker worker;
  worker.SetNext(Ramble());
  TestRouterOptions options;
  options.engine.budgets.ceilings.keys = {{"tin", 5}};
  TestRouter router({&worker}, options);
  v1::ChatRequest request = UserSays("hi");
  request.set_max_tokens(200);
  request.mutable_thinking()->set_budget(50);
  auto call = std::make_unique<ChatCall>();
  call->context.AddMetadata("authorization", "Bearer tin");
  call->context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
  worker.PauseAfter(2);
  call->reader = router.stub().Chat(&call->context, request);
  v1::ChatEvent event;
  ASSERT_TRUE(call->Read(&event));
  EXPECT_EQ(event.started().thinking().budget(), 5);
  EXPECT_EQ(event.started().thinking().requested_budget(), 50);
  EXPECT_EQ(event.started().thinking().limited_by(), v1::BUDGET_LIMIT_CEILING);
  ASSERT_TRUE(worker.WaitForPaused());
  v1::ControlRequest control;
  control.set_request_id(event.started().request_id());
  control.set_set_thinking_budget(-1);
  EXPECT_OK(SendControl(router, control));
  worker.Continue();
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.finished.thinking().budget(), 5);
}

}  // namespace
}  // namespace conclave
