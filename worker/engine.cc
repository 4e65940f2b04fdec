#include "worker/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// Window of tokens_per_second, long enough to be steady and short enough to follow the load.
constexpr absl::Duration kRateWindow = absl::Seconds(5);
// With nothing to compute but paused or expiring requests, look again this often.
constexpr absl::Duration kIdlePoll = absl::Milliseconds(20);

}  // namespace

Engine::Engine(EngineOptions options, StepDecoder& decoder, const Device& device,
               WorkerMetrics& metrics)
    : options_(std::move(options)),
      splitting_ids_(IdsThatSplitCharacters(options_.token_bytes,
                                            static_cast<uint32_t>(options_.limits.num_ids))),
      decoder_(decoder),
      device_(device),
      metrics_(metrics),
      blocks_(options_.num_kv_blocks, options_.prefix_cache),
      planner_({options_.max_running, options_.max_step_tokens}, blocks_) {
  metrics_.kv_blocks_total.Set(static_cast<double>(options_.num_kv_blocks));
  thread_ = std::thread([this] { ThreadMain(); });
}

Engine::~Engine() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status Engine::Submit(const v1::TokenRequest& request, absl::Time deadline,
                            std::shared_ptr<TokenSink> sink) {
  ASSIGN_OR_RETURN(std::unique_ptr<Sequence> made,
                   MakeSequence(request, options_.limits, options_.token_bytes));
  if (made->background && !options_.prefix_cache) {
    return absl::FailedPreconditionError("prefill_only is set, but the prefix cache is off");
  }
  made->deadline = deadline;
  made->sink = std::move(sink);
  made->submitted = absl::Now();
  // std::function wants a copyable target.
  std::shared_ptr<Sequence> sequence = std::move(made);

  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(health_);
  if (draining_ || stopping_) return errors::Draining("worker");
  const bool background = sequence->background;
  const int64_t capacity = background ? limits::kMaxBackgroundRequests
                                      : int64_t{options_.max_waiting} + options_.max_running;
  const int64_t queued =
      background ? num_background_ : static_cast<int64_t>(in_flight_.size()) - num_background_;
  if (queued >= capacity) return errors::Overloaded("worker queue", capacity);
  if (!in_flight_.insert(request.request_id()).second) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id \"", request.request_id(), "\" is in flight already"));
  }
  if (background) ++num_background_;
  commands_.push_back([this, sequence] {
    auto owned = std::make_unique<Sequence>(std::move(*sequence));
    owned->arrival = next_arrival_++;
    Sequence* added = owned.get();
    sequences_.emplace(added->request_id, std::move(owned));
    planner_.Add(added);
    // A prompt may end inside thinking with no budget, a resumed request in front of forced ids.
    ForceIfDue(*added);
  });
  return absl::OkStatus();
}

absl::Status Engine::OnSequence(const std::string& request_id,
                                std::function<void(Sequence&)> action) {
  absl::MutexLock lock(&mutex_);
  if (!in_flight_.contains(request_id)) {
    return absl::NotFoundError(absl::StrCat("request \"", request_id, "\" is not in flight"));
  }
  commands_.push_back([this, request_id, action = std::move(action)] {
    auto found = sequences_.find(request_id);
    if (found != sequences_.end()) action(*found->second);
  });
  return absl::OkStatus();
}

absl::Status Engine::FinishThinking(const std::string& request_id) {
  return OnSequence(request_id, [this](Sequence& sequence) {
    sequence.thinking.RequestFinish();
    ForceIfDue(sequence);
  });
}

absl::Status Engine::SetThinkingBudget(const std::string& request_id, int64_t budget) {
  if (budget < -1) {
    return errors::OutOfRange("thinking budget", budget, "-1 (no limit), 0, or more");
  }
  return OnSequence(request_id, [this, budget](Sequence& sequence) {
    sequence.thinking.SetBudget(budget);
    ForceIfDue(sequence);
  });
}

void Engine::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool Engine::AwaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_.empty(); };
  return mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline);
}

absl::Status Engine::health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

EngineLoad Engine::Load() const {
  absl::MutexLock lock(&mutex_);
  return load_;
}

void Engine::ThreadMain() {
  bool idle = true;
  for (;;) {
    RunCommands(/*wait=*/idle);
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) break;
    }
    DropExpiredAndCancelled();
    DropBackground();
    const std::vector<PlannedSequence> plan = planner_.Plan();
    idle = plan.empty();
    if (!idle) {
      const absl::Status status = Step(plan);
      if (!status.ok()) OnStepFailed(status);
    }
    PublishLoad();
    emitter_.Flush();
  }
  FailAll(absl::UnavailableError("the worker stopped"));
  emitter_.Flush();
}

void Engine::OnStepFailed(const absl::Status& status) {
  LOG_ERROR("a step failed: {}", status.ToString());
  if (!errors::IsDeviceFailure(status)) return FailAll(status);
  const absl::Status lost = errors::LostDevice("worker", status);
  {
    // From here on Submit refuses, so that FailAll leaves nothing to compute.
    absl::MutexLock lock(&mutex_);
    health_ = lost;
  }
  FailAll(lost);
  if (options_.on_device_failure) options_.on_device_failure(status);
}

void Engine::RunCommands(bool wait) {
  std::vector<Command> commands;
  {
    absl::MutexLock lock(&mutex_);
    if (wait) {
      const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !commands_.empty();
      };
      const absl::Duration patience = sequences_.empty() ? absl::Seconds(1) : kIdlePoll;
      mutex_.AwaitWithTimeout(absl::Condition(&wanted), patience);
    }
    commands.swap(commands_);
  }
  for (const Command& command : commands) command();
}

void Engine::DropExpiredAndCancelled() {
  const absl::Time now = absl::Now();
  std::vector<std::pair<Sequence*, absl::Status>> dropped;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->sink->Cancelled()) {
      dropped.emplace_back(sequence.get(), absl::CancelledError("the client has gone"));
    } else if (sequence->deadline <= now) {
      dropped.emplace_back(sequence.get(), absl::DeadlineExceededError(absl::StrCat(
                                               "the request's deadline passed after ",
                                               sequence->num_generated(), " generated tokens")));
    }
  }
  for (const auto& [sequence, status] : dropped) Finish(sequence, status);
}

void Engine::DropBackground() {
  if (planner_.background().empty()) return;
  if (planner_.running().empty() && planner_.waiting().empty()) {
    absl::MutexLock lock(&mutex_);
    if (!draining_) return;
  }
  while (!planner_.background().empty()) {
    Finish(planner_.background().front(), absl::AbortedError("other work came first"));
  }
}

void Engine::Announce(const std::vector<PlannedSequence>& plan) {
  for (const PlannedSequence& planned : plan) {
    Sequence& sequence = *planned.sequence;
    if (sequence.started || sequence.background) continue;
    sequence.started = true;
    metrics_.queue_wait_seconds.Observe(absl::ToDoubleSeconds(absl::Now() - sequence.submitted));
    v1::TokenEvent event;
    event.set_started(true);
    const int64_t cached = std::min(sequence.num_computed, sequence.num_prompt);
    event.set_cached_prompt_tokens(static_cast<uint32_t>(cached));
    metrics_.cached_prompt_tokens.Increment(static_cast<double>(cached));
    *event.mutable_thinking() = ToProto(sequence.emitted_thinking);
    emitter_.OnEvent(sequence.sink, std::move(event));
  }
}

absl::Status Engine::Step(const std::vector<PlannedSequence>& plan) {
  const absl::Time start = absl::Now();
  Announce(plan);
  BuildBatch(plan, batch_, logit_rows_);
  RETURN_IF_ERROR(decoder_.Forward(batch_));
  const absl::Time forwarded = absl::Now();
  RETURN_IF_ERROR(SampleRows(logit_rows_, decoder_, options_.limits.vocab_size,
                             options_.limits.num_ids, splitting_ids_, device_, logits_, drawn_));
  bool any_prompt = false;
  size_t row = 0;
  for (const PlannedSequence& planned : plan) {
    any_prompt |= planned.sequence->num_computed < planned.sequence->num_prompt;
    const SampleResult* drawn = nullptr;
    for (; row < logit_rows_.size() && logit_rows_[row].sequence == planned.sequence; ++row) {
      if (logit_rows_[row].sample) drawn = &drawn_[row];
    }
    Advance(planned, drawn);
  }
  const absl::Time end = absl::Now();
  metrics_.steps.Increment();
  if (decoder_.times().split) metrics_.split_steps.Increment();
  metrics_.attention_seconds.Increment(absl::ToDoubleSeconds(decoder_.times().attention));
  metrics_.mlp_seconds.Increment(absl::ToDoubleSeconds(decoder_.times().mlp));
  metrics_.experts_seconds.Increment(absl::ToDoubleSeconds(decoder_.times().experts));
  metrics_.sampling_seconds.Increment(absl::ToDoubleSeconds(end - forwarded));
  (any_prompt ? metrics_.prefill_step_seconds : metrics_.decode_step_seconds)
      .Observe(absl::ToDoubleSeconds(end - start));
  return absl::OkStatus();
}

void Engine::Advance(const PlannedSequence& planned, const SampleResult* drawn) {
  Sequence& sequence = *planned.sequence;
  const bool was_prompt = sequence.num_computed < sequence.num_prompt;
  planner_.OnComputed(&sequence, planned.num_tokens);
  if (sequence.background) {
    metrics_.background_tokens.Increment(static_cast<double>(planned.num_tokens));
    if (sequence.num_pending() == 0) Finish(&sequence, absl::OkStatus());
    return;
  }
  const bool prompt_done = was_prompt && sequence.num_computed >= sequence.num_prompt;
  // A recomputed prompt counts once: logprobs and tokens it led to are kept.
  if (prompt_done && sequence.num_emitted == sequence.num_prompt) {
    metrics_.prompt_tokens.Increment(static_cast<double>(sequence.num_prompt));
  }
  if (drawn != nullptr) {
    Emit(sequence, Append(sequence, drawn->id));
  } else if (sequence.max_tokens == 0 && sequence.num_pending() == 0) {
    Emit(sequence, v1::FINISH_REASON_LENGTH);  // only the prompt was to be scored
  }
}

v1::FinishReason Engine::Append(Sequence& sequence, uint32_t id) {
  const ThinkingSnapshot before = sequence.thinking.state();
  sequence.tokens.push_back(id);
  sequence.thinking.OnSampled(id);
  const ThinkingSnapshot& after = sequence.thinking.state();
  metrics_.thinking_tokens.Increment(static_cast<double>(after.used - before.used));
  const bool ended = before.phase == ThinkingPhase::kThinking && after.phase != before.phase;
  if (ended && after.ended_by == ThinkingEndedBy::kNatural) {
    metrics_.ThinkingEnded(ThinkingEndedBy::kNatural).Increment();
  }
  if (sequence.has_penalty()) ++sequence.counts.output[id];
  if (std::find(sequence.stop_ids.begin(), sequence.stop_ids.end(), id) !=
      sequence.stop_ids.end()) {
    return v1::FINISH_REASON_STOP;
  }
  return sequence.num_generated() >= sequence.max_tokens ? v1::FINISH_REASON_LENGTH
                                                         : v1::FINISH_REASON_NONE;
}

void Engine::Emit(Sequence& sequence, v1::FinishReason reason) {
  v1::TokenEvent event;
  const auto num_new = static_cast<int64_t>(sequence.tokens.size()) - sequence.num_emitted;
  event.mutable_ids()->Add(sequence.tokens.begin() + sequence.num_emitted, sequence.tokens.end());
  if (num_new > 0) event.set_num_forced(static_cast<uint32_t>(num_new - 1));
  for (v1::TokenLogprobs& logprobs : sequence.logprobs) {
    *event.add_logprobs() = std::move(logprobs);
  }
  sequence.logprobs.clear();
  if (sequence.prompt_logprobs_wanted) {
    event.mutable_prompt_logprobs()->Add(sequence.prompt_logprobs.begin(),
                                         sequence.prompt_logprobs.end());
    sequence.prompt_logprobs_wanted = false;
  }
  sequence.num_emitted += num_new;
  sequence.emitted_thinking = sequence.thinking.state();
  *event.mutable_thinking() = ToProto(sequence.emitted_thinking);
  event.set_finish_reason(reason);
  if (reason == v1::FINISH_REASON_STOP) event.set_stop_id(sequence.tokens.back());
  metrics_.generated_tokens.Increment(static_cast<double>(num_new));
  recent_tokens_.emplace_back(absl::Now(), num_new);
  emitter_.OnEvent(sequence.sink, std::move(event));
  if (reason != v1::FINISH_REASON_NONE) {
    Finish(&sequence, absl::OkStatus());
  } else {
    ForceIfDue(sequence);
  }
}

void Engine::ForceIfDue(Sequence& sequence) {
  if (!sequence.thinking.must_force()) return;
  const absl::Span<const uint32_t> forced = sequence.thinking.forced_ids();
  if (sequence.num_generated() + static_cast<int64_t>(forced.size()) >= sequence.max_tokens) {
    // No room for the forced ids and an answer, and no reserve was asked for: max_tokens is spent.
    Emit(sequence, v1::FINISH_REASON_LENGTH);
    return;
  }
  sequence.tokens.insert(sequence.tokens.end(), forced.begin(), forced.end());
  if (sequence.has_penalty()) {
    for (uint32_t id : forced) ++sequence.counts.output[id];
  }
  metrics_.forced_tokens.Increment(static_cast<double>(forced.size()));
  // Behind a natural end, counted when it came, only the answer's prefix is forced.
  const ThinkingEndedBy ended_by = sequence.thinking.state().ended_by;
  if (ended_by != ThinkingEndedBy::kNone && ended_by != ThinkingEndedBy::kNatural) {
    metrics_.ThinkingEnded(ended_by).Increment();
  }
  sequence.thinking.OnForced();
}

void Engine::Finish(Sequence* sequence, const absl::Status& status) {
  planner_.Remove(sequence);
  const bool background = sequence->background;
  const char* outcome = status.ok() ? "ok" : absl::IsCancelled(status) ? "cancelled" : "failed";
  if (!background) metrics_.Requests(outcome).Increment();
  const std::string request_id = sequence->request_id;
  const std::shared_ptr<TokenSink> sink = sequence->sink;
  sequences_.erase(request_id);
  {
    absl::MutexLock lock(&mutex_);
    in_flight_.erase(request_id);
    if (background) --num_background_;
  }
  emitter_.OnDone(sink, status);
}

void Engine::FailAll(const absl::Status& status) {
  RunCommands(/*wait=*/false);  // what was accepted and not yet taken over fails like the rest
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence.get());
  for (Sequence* sequence : all) Finish(sequence, status);
}

void Engine::PublishLoad() {
  const absl::Time now = absl::Now();
  while (!recent_tokens_.empty() && recent_tokens_.front().first < now - kRateWindow) {
    recent_tokens_.pop_front();
  }
  int64_t recent = 0;
  for (const auto& [time, count] : recent_tokens_) recent += count;
  EngineLoad load;
  load.running = static_cast<int64_t>(planner_.running().size());
  load.waiting = static_cast<int64_t>(planner_.waiting().size());
  load.kv_blocks_used = blocks_.num_blocks() - blocks_.num_free();
  load.tokens_per_second = static_cast<double>(recent) / absl::ToDoubleSeconds(kRateWindow);
  metrics_.running.Set(static_cast<double>(load.running));
  metrics_.waiting.Set(static_cast<double>(load.waiting));
  metrics_.kv_blocks_used.Set(static_cast<double>(load.kv_blocks_used));
  metrics_.preemptions.Increment(
      static_cast<double>(planner_.num_preemptions() - preemptions_reported_));
  preemptions_reported_ = planner_.num_preemptions();
  const PrefixCacheCounts& counts = planner_.prefix_cache();
  metrics_.prefix_cache_queried.Increment(
      static_cast<double>(counts.queried - prefix_cache_reported_.queried));
  metrics_.prefix_cache_hit.Increment(static_cast<double>(counts.hit - prefix_cache_reported_.hit));
  prefix_cache_reported_ = counts;
  metrics_.prefix_cache_evicted.Increment(
      static_cast<double>(blocks_.num_evicted() - evicted_reported_));
  evicted_reported_ = blocks_.num_evicted();
  metrics_.kv_blocks_cached.Set(static_cast<double>(blocks_.num_unused_cached()));
  absl::MutexLock lock(&mutex_);
  load_ = load;
}

}  // namespace conclave
