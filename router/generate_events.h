#pragma once

#include <memory>

#include "absl/strings/string_view.h"
#include "router/prompt_builder.h"
#include "router/request_events.h"
#include "router/served_model.h"
#include "router/usage_counter.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"

namespace conclave {

// Tokens -> characters -> stop strings: everything is text, thinking too, but it is counted. Each
// generated id is in exactly one delta; control tokens and the stop id have no text.
class GenerateEvents final : public EventOutbox<v1::GenerateEvent> {
 public:
  GenerateEvents(const ServedModel& model, RequestObserver<v1::GenerateEvent>* observer);

  void Start(const PreparedRequest& prepared, const v1::Started& started) override;
  bool Push(const v1::TokenEvent& event) override;
  v1::Finished Finish(v1::ChatFinishReason reason, uint32_t failovers) override;
  bool any_answer() const override { return state_->usage.any_answer(); }
  std::string TakeAnswer() override { return ""; }

 private:
  struct State {
    State(const ServedModel& model, const PreparedRequest& prepared);
    StreamDecoder decoder;
    StopStrings stops;
    UsageCounter usage;
  };

  const ServedModel& model_;
  std::unique_ptr<State> state_;
};

}  // namespace conclave
