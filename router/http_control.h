#pragma once

#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/request_engine.h"

namespace conclave {

// The engine's id of choice i of an answer: the answer's own id where it has one choice, else
// "ID-i", since each is a request in flight.
std::string ChoiceId(absl::string_view answer_id, int choice, int num_choices);

// {"action": "finish_thinking" | "cancel" | "set_thinking_budget", "thinking_budget": N}; "budget"
// is another name for the last. InvalidArgument naming the field.
absl::StatusOr<v1::ControlRequest> ParseHttpControl(absl::string_view answer_id,
                                                    absl::string_view body);

// Control of an answer, of one choice ("ID-1") or of all ("ID"): OK if it took effect on any.
// `done` is called once, maybe before this returns. Errors as of RequestEngine::Control.
void ControlChoices(RequestEngine& engine, const v1::ControlRequest& request,
                    absl::AnyInvocable<void(absl::Status)> done);

}  // namespace conclave
