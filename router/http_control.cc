#include "router/http_control.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "router/openai_fields.h"
#include "text/json_text.h"

namespace conclave {
namespace {

// Collects what became of the choices that may exist.
class Outcome {
 public:
  Outcome(int num_calls, absl::Status none, absl::AnyInvocable<void(absl::Status)> done)
      : waiting_(num_calls), best_(std::move(none)), done_(std::move(done)) {}

  void Add(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (status.ok() || (absl::IsNotFound(best_) && !absl::IsNotFound(status))) best_ = status;
      if (--waiting_ > 0) return;
    }
    done_(best_);
  }

 private:
  absl::Mutex mutex_;
  int waiting_ ABSL_GUARDED_BY(mutex_);
  absl::Status best_;  // written under the lock, read by who added the last
  absl::AnyInvocable<void(absl::Status)> done_;
};

void ControlEveryChoice(RequestEngine& engine, v1::ControlRequest request, absl::Status not_found,
                        absl::AnyInvocable<void(absl::Status)> done) {
  const auto outcome =
      std::make_shared<Outcome>(limits::kMaxHttpChoices, std::move(not_found), std::move(done));
  const std::string id = request.request_id();
  for (int choice = 0; choice < limits::kMaxHttpChoices; ++choice) {
    request.set_request_id(ChoiceId(id, choice, limits::kMaxHttpChoices));
    engine.Control(request, [outcome](absl::Status status) { outcome->Add(status); });
  }
}

}  // namespace

std::string ChoiceId(absl::string_view answer_id, int choice, int num_choices) {
  return num_choices == 1 ? std::string(answer_id) : absl::StrCat(answer_id, "-", choice);
}

absl::StatusOr<v1::ControlRequest> ParseHttpControl(absl::string_view answer_id,
                                                    absl::string_view body) {
  constexpr absl::string_view kActions = "finish_thinking, set_thinking_budget or cancel";
  ASSIGN_OR_RETURN(const JsonValue json, ParseJson(body));
  if (!json.is_object()) return WrongField("the body", json, "an object");
  const OpenAiFields fields(json, "");
  ASSIGN_OR_RETURN(const std::optional<std::string> action, fields.String("action"));
  if (!action.has_value()) return MissingField("action", kActions);
  v1::ControlRequest request;
  request.set_request_id(std::string(answer_id));
  if (*action == "finish_thinking") {
    request.set_finish_thinking(true);
  } else if (*action == "cancel") {
    request.set_cancel(true);
  } else if (*action == "set_thinking_budget") {
    ASSIGN_OR_RETURN(std::optional<int64_t> budget, fields.Integer("thinking_budget", -1));
    if (!budget.has_value()) {
      ASSIGN_OR_RETURN(budget, fields.Integer("budget", -1));
    }
    if (!budget.has_value()) return MissingField("thinking_budget", "an integer of -1 or more");
    request.set_set_thinking_budget(*budget);
  } else {
    return WrongField("action", *fields.Given("action"), kActions);
  }
  return request;
}

void ControlChoices(RequestEngine& engine, const v1::ControlRequest& request,
                    absl::AnyInvocable<void(absl::Status)> done) {
  engine.Control(request, [&engine, request, done = std::move(done)](absl::Status status) mutable {
    if (!absl::IsNotFound(status)) return done(status);
    ControlEveryChoice(engine, std::move(request), std::move(status), std::move(done));
  });
}

}  // namespace conclave
