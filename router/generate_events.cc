#include "router/generate_events.h"

#include <utility>

namespace conclave {

GenerateEvents::State::State(const ServedModel& model, const PreparedRequest& prepared)
    : decoder(&model.vocabulary(), /*skip_special=*/true), stops(prepared.stop), usage(prepared) {}

GenerateEvents::GenerateEvents(const ServedModel& model,
                               RequestObserver<v1::GenerateEvent>* observer)
    : EventOutbox(observer), model_(model) {}

void GenerateEvents::Start(const PreparedRequest& prepared, const v1::Started& started) {
  state_ = std::make_unique<State>(model_, prepared);
  *events().emplace_back().mutable_started() = started;
}

bool GenerateEvents::Push(const v1::TokenEvent& event) {
  state_->usage.BeginEvent(event);
  if (event.prompt_logprobs_size() > 0) {
    *events().emplace_back().mutable_prompt_logprobs()->mutable_logprobs() =
        event.prompt_logprobs();
  }
  if (event.ids_size() == 0) return false;
  StopStrings& stops = state_->stops;
  v1::TextDelta* delta = events().emplace_back().mutable_delta();
  for (int i = 0; i < event.ids_size() && !stops.stopped(); ++i) {
    const uint32_t id = event.ids(i);
    state_->usage.AddId(id);
    delta->add_ids(id);
    if (i < event.logprobs_size()) *delta->add_logprobs() = event.logprobs(i);
    if (!IsStopId(event, i)) delta->mutable_text()->append(stops.Push(state_->decoder.Push(id)));
  }
  return stops.stopped();
}

v1::Finished GenerateEvents::Finish(v1::ChatFinishReason reason, uint32_t failovers) {
  StopStrings& stops = state_->stops;
  if (!stops.stopped()) {
    std::string tail = stops.Push(state_->decoder.Flush());
    if (!stops.stopped()) tail += stops.Flush();
    if (!tail.empty()) events().emplace_back().mutable_delta()->set_text(tail);
  }
  if (stops.stopped() && reason != v1::CHAT_FINISH_REASON_CANCELLED) {
    reason = v1::CHAT_FINISH_REASON_STOP;
  }
  v1::Finished finished;
  finished.set_reason(reason);
  *finished.mutable_usage() = state_->usage.usage();
  *finished.mutable_thinking() = state_->usage.report();
  finished.set_stop_string(stops.matched());
  finished.set_failovers(failovers);
  *events().emplace_back().mutable_finished() = finished;
  return finished;
}

}  // namespace conclave
