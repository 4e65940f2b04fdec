#include "worker/sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status CheckIds(absl::string_view what, const google::protobuf::RepeatedField<uint32_t>& ids,
                      int64_t end) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids.Get(i) >= end) {
      return errors::OutOfRange(absl::StrCat(what, "[", i, "]"), ids.Get(i),
                                absl::StrCat("0..", end - 1));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SamplingParams> ToSamplingParams(const v1::SamplingParams& proto) {
  SamplingParams params;
  // Checked here as well: a cast of a huge count to int would be negative.
  if (proto.top_k() > std::numeric_limits<int>::max()) {
    return errors::OutOfRange("top_k", proto.top_k(), "0..2147483647");
  }
  if (proto.top_logprobs() > limits::kMaxTopLogprobs) {
    return errors::OutOfRange("top_logprobs", proto.top_logprobs(),
                              absl::StrCat("0..", limits::kMaxTopLogprobs));
  }
  params.temperature = proto.temperature();
  params.top_k = static_cast<int>(proto.top_k());
  params.top_p = proto.top_p() == 0 ? 1 : proto.top_p();
  params.min_p = proto.min_p();
  params.presence_penalty = proto.presence_penalty();
  params.frequency_penalty = proto.frequency_penalty();
  params.repetition_penalty = proto.repetition_penalty() == 0 ? 1 : proto.repetition_penalty();
  params.seed = proto.seed();
  params.logprob = proto.logprobs();
  params.num_top_logprobs = proto.logprobs() ? static_cast<int>(proto.top_logprobs()) : 0;
  RETURN_IF_ERROR(params.Validate());
  return params;
}

absl::StatusOr<ThinkingAutomatonOptions> ToThinkingOptions(const v1::TokenRequest& request,
                                                           const SequenceLimits& limits) {
  const v1::ThinkingParams& proto = request.thinking();
  ThinkingAutomatonOptions options;
  options.enabled = proto.enabled();
  if (!options.enabled) return options;
  const google::protobuf::RepeatedField<uint32_t>& forced = proto.forced_ids();
  if (forced.size() > limits::kMaxForcedIds) {
    return errors::OutOfRange("forced_ids' length", forced.size(),
                              absl::StrCat("1..", limits::kMaxForcedIds));
  }
  RETURN_IF_ERROR(CheckIds("forced_ids", forced, limits.vocab_size));
  if (std::find(forced.begin(), forced.end(), proto.end_id()) == forced.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("forced_ids do not hold end_id ", proto.end_id()));
  }
  if (proto.budget() < -1) {
    return errors::OutOfRange("thinking budget", proto.budget(), "-1 (no limit), 0, or more");
  }
  for (const auto* ids : {&proto.answer_prefix_ids(), &proto.answer_separator_ids()}) {
    if (ids->size() > limits::kMaxForcedIds) {
      return errors::OutOfRange("length of the answer's prefix or separator", ids->size(),
                                absl::StrCat("0..", limits::kMaxForcedIds));
    }
    RETURN_IF_ERROR(CheckIds("answer_prefix_ids or answer_separator_ids", *ids, limits.vocab_size));
  }
  const int64_t num_forced = int64_t{forced.size()} + proto.answer_prefix_ids_size();
  const int64_t least = num_forced + proto.answer_reserve();
  if (proto.answer_reserve() > 0 && least > request.max_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens is ", request.max_tokens(), ", want at least ", least, " (answer_reserve of ",
        proto.answer_reserve(), " and ", num_forced, " forced ids)"));
  }
  options.start_id = proto.start_id();
  options.end_id = proto.end_id();
  options.budget = proto.budget();
  options.forced_ids.assign(forced.begin(), forced.end());
  options.answer_reserve = proto.answer_reserve();
  options.max_tokens = request.max_tokens();
  options.starts_inside = proto.starts_inside();
  options.tool_call_start_id = proto.tool_call_start_id();
  options.tool_call_end_id = proto.tool_call_end_id();
  options.answer_prefix_ids.assign(proto.answer_prefix_ids().begin(),
                                   proto.answer_prefix_ids().end());
  options.answer_separator_ids.assign(proto.answer_separator_ids().begin(),
                                      proto.answer_separator_ids().end());
  return options;
}

absl::Status CheckLengths(const v1::TokenRequest& request, const SequenceLimits& limits) {
  if (request.request_id().empty() || request.request_id().size() > limits::kMaxRequestIdBytes) {
    return errors::OutOfRange("request_id's length", request.request_id().size(),
                              absl::StrCat("1..", limits::kMaxRequestIdBytes));
  }
  if (request.prompt_ids().empty()) {
    return errors::OutOfRange("prompt_ids' length", 0, "at least 1");
  }
  if (int64_t{request.prompt_ids_size()} + request.max_tokens() > limits.max_context) {
    return errors::PromptTooLong(request.prompt_ids_size(), request.max_tokens(),
                                 limits.max_context);
  }
  if (request.prefill_only()) {
    if (request.max_tokens() == 0 && !request.prompt_logprobs() &&
        request.generated_ids().empty()) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        "prefill_only is set with max_tokens, prompt_logprobs or generated_ids, want none of them");
  }
  if (request.max_tokens() == 0 && !request.prompt_logprobs()) {
    return errors::OutOfRange("max_tokens", 0,
                              "at least 1, unless prompt_logprobs or prefill_only is set");
  }
  if (request.generated_ids_size() > 0 &&
      request.generated_ids_size() >= static_cast<int64_t>(request.max_tokens())) {
    return errors::OutOfRange("generated_ids' length", request.generated_ids_size(),
                              "less than max_tokens");
  }
  if (request.stop_ids_size() > limits::kMaxStopIds) {
    return errors::OutOfRange("stop_ids' length", request.stop_ids_size(),
                              absl::StrCat("0..", limits::kMaxStopIds));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Sequence>> MakeSequence(const v1::TokenRequest& request,
                                                       const SequenceLimits& limits,
                                                       const TokenBytes& token_bytes) {
  RETURN_IF_ERROR(CheckLengths(request, limits));
  RETURN_IF_ERROR(CheckIds("prompt_ids", request.prompt_ids(), limits.vocab_size));
  RETURN_IF_ERROR(CheckIds("generated_ids", request.generated_ids(), limits.vocab_size));
  auto sequence = std::make_unique<Sequence>();
  ASSIGN_OR_RETURN(sequence->sampling, ToSamplingParams(request.sampling()));
  for (const auto& [id, bias] : request.sampling().logit_bias()) {
    if (id >= limits.vocab_size || std::isnan(bias)) {
      return errors::OutOfRange(
          "logit_bias of id", id,
          absl::StrCat("an id in 0..", limits.vocab_size - 1, " and a number"));
    }
    sequence->logit_bias.emplace_back(id, bias);
  }
  // A protobuf map has no order; sums of biases do not depend on it, but keep one anyway.
  std::sort(sequence->logit_bias.begin(), sequence->logit_bias.end());
  ASSIGN_OR_RETURN(ThinkingAutomatonOptions thinking, ToThinkingOptions(request, limits));
  sequence->thinking = ThinkingAutomaton(std::move(thinking), token_bytes);

  sequence->request_id = request.request_id();
  if (!request.ignore_eos()) {
    sequence->stop_ids.assign(request.stop_ids().begin(), request.stop_ids().end());
  }
  sequence->max_tokens = request.max_tokens();
  sequence->prompt_logprobs_wanted = request.prompt_logprobs();
  sequence->background = request.prefill_only();
  sequence->tokens.assign(request.prompt_ids().begin(), request.prompt_ids().end());
  sequence->num_prompt = request.prompt_ids_size();
  sequence->tokens.insert(sequence->tokens.end(), request.generated_ids().begin(),
                          request.generated_ids().end());
  sequence->num_emitted = static_cast<int64_t>(sequence->tokens.size());
  if (request.generated_ids_size() > 0 || request.has_thinking_state()) {
    sequence->thinking.Restore(FromProto(request.thinking_state()), request.generated_ids_size());
  }
  sequence->emitted_thinking = sequence->thinking.state();
  if (sequence->has_penalty()) {
    for (uint32_t id : request.prompt_ids()) ++sequence->counts.prompt[id];
    for (uint32_t id : request.generated_ids()) ++sequence->counts.output[id];
  }
  return sequence;
}

v1::ThinkingState ToProto(const ThinkingSnapshot& snapshot) {
  v1::ThinkingState state;
  state.set_phase(static_cast<v1::ThinkingState::Phase>(snapshot.phase));
  state.set_used(static_cast<uint32_t>(snapshot.used));
  state.set_forced(static_cast<uint32_t>(snapshot.forced));
  state.set_ended_by(static_cast<v1::ThinkingEnd>(snapshot.ended_by));
  state.set_in_tool_call(snapshot.in_tool_call);
  state.set_finish_requested(snapshot.finish_requested);
  state.set_partial_utf8(snapshot.partial_utf8);
  state.set_budget(snapshot.budget);
  state.set_prefix_forced(snapshot.prefix_forced);
  return state;
}

// The enums are written in the same order in the proto and here.
static_assert(static_cast<int>(ThinkingPhase::kAnswer) == v1::ThinkingState::ANSWER);
static_assert(static_cast<int>(ThinkingEndedBy::kClient) == v1::THINKING_END_CLIENT);

ThinkingSnapshot FromProto(const v1::ThinkingState& state) {
  ThinkingSnapshot snapshot;
  snapshot.phase = static_cast<ThinkingPhase>(std::clamp<int>(state.phase(), 0, 3));
  snapshot.used = state.used();
  snapshot.forced = state.forced();
  snapshot.ended_by = static_cast<ThinkingEndedBy>(std::clamp<int>(state.ended_by(), 0, 4));
  snapshot.budget = state.budget();
  snapshot.in_tool_call = state.in_tool_call();
  snapshot.finish_requested = state.finish_requested();
  snapshot.partial_utf8 = state.partial_utf8();
  snapshot.prefix_forced = state.prefix_forced();
  return snapshot;
}

}  // namespace conclave
