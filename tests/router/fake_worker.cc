#include "tests/router/fake_worker.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "rpc/grpc_status.h"
#include "tests/router/test_model.h"

namespace conclave {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

ThinkingAutomaton MakeAutomaton(const v1::TokenRequest& request) {
  const v1::ThinkingParams& params = request.thinking();
  ThinkingAutomatonOptions options;
  options.enabled = params.enabled();
  options.start_id = params.start_id();
  options.end_id = params.end_id();
  options.budget = params.budget();
  options.forced_ids.assign(params.forced_ids().begin(), params.forced_ids().end());
  options.answer_reserve = params.answer_reserve();
  options.max_tokens = request.max_tokens();
  options.starts_inside = params.starts_inside();
  options.tool_call_start_id = params.tool_call_start_id();
  options.tool_call_end_id = params.tool_call_end_id();
  options.answer_prefix_ids.assign(params.answer_prefix_ids().begin(),
                                   params.answer_prefix_ids().end());
  options.answer_separator_ids.assign(params.answer_separator_ids().begin(),
                                      params.answer_separator_ids().end());
  ThinkingAutomaton automaton(options,
                              [](uint32_t id) { return TestModel().vocabulary().Bytes(id); });
  if (request.generated_ids_size() > 0 || request.has_thinking_state()) {
    const v1::ThinkingState& state = request.thinking_state();
    ThinkingSnapshot snapshot;
    snapshot.phase = static_cast<ThinkingPhase>(state.phase());
    snapshot.used = state.used();
    snapshot.forced = state.forced();
    snapshot.ended_by = static_cast<ThinkingEndedBy>(state.ended_by());
    snapshot.budget = state.budget();
    snapshot.in_tool_call = state.in_tool_call();
    snapshot.finish_requested = state.finish_requested();
    snapshot.partial_utf8 = state.partial_utf8();
    snapshot.prefix_forced = state.prefix_forced();
    automaton.Restore(snapshot, request.generated_ids_size());
  }
  return automaton;
}

void EncodeState(const ThinkingSnapshot& snapshot, v1::ThinkingState* state) {
  state->set_phase(static_cast<v1::ThinkingState::Phase>(snapshot.phase));
  state->set_used(static_cast<uint32_t>(snapshot.used));
  state->set_forced(static_cast<uint32_t>(snapshot.forced));
  state->set_ended_by(static_cast<v1::ThinkingEnd>(snapshot.ended_by));
  state->set_budget(snapshot.budget);
  state->set_prefix_forced(snapshot.prefix_forced);
  state->set_in_tool_call(snapshot.in_tool_call);
  state->set_finish_requested(snapshot.finish_requested);
  state->set_partial_utf8(snapshot.partial_utf8);
}

// A value that only this id at this place has: shows that logprobs stay with their ids.
float LogprobOf(uint32_t id, size_t position) {
  return -static_cast<float>(position) - id / 1024.f;
}

}  // namespace

NextId ThinkThenAnswer(absl::string_view thinking, absl::string_view answer) {
  std::vector<uint32_t> before = Encode(absl::StrCat("<think>", thinking, "</think>"));
  std::vector<uint32_t> after = Encode(absl::StrCat(answer, "<|im_end|>"));
  return [before, after](const v1::TokenRequest& request, const std::vector<uint32_t>& generated) {
    const auto end = std::find(generated.rbegin(), generated.rend(), request.thinking().end_id());
    if (end == generated.rend()) {
      const size_t skip = request.thinking().starts_inside() ? 1 : 0;
      return before[std::min(generated.size() + skip, before.size() - 1)];
    }
    return after[std::min<size_t>(end - generated.rbegin(), after.size() - 1)];
  };
}

NextId Say(absl::string_view text) {
  std::vector<uint32_t> ids = Encode(absl::StrCat(text, "<|im_end|>"));
  return [ids](const v1::TokenRequest&, const std::vector<uint32_t>& generated) {
    return ids[std::min(generated.size(), ids.size() - 1)];
  };
}

NextId Ramble() {
  const std::vector<uint32_t> letters = Encode("abcdefghijklmnopqrstuvwxyz");
  return [letters](const v1::TokenRequest& request, const std::vector<uint32_t>& generated) {
    const std::vector<uint32_t> prompt(request.prompt_ids().begin(), request.prompt_ids().end());
    uint64_t hash = request.sampling().seed() + 1;
    for (const std::vector<uint32_t>* ids : {&prompt, &generated}) {
      for (uint32_t id : *ids) hash = hash * 6364136223846793005ull + id + 1442695040888963407ull;
    }
    return letters[(hash >> 33) % letters.size()];
  };
}

FakeWorker::FakeWorker() : next_(ThinkThenAnswer("hmm", "\n\nhello")) {
  *description_.mutable_model() = TestModel().Info();
  description_.mutable_model()->set_fingerprint("f00d");
  description_.set_ready(true);
  description_.set_prefix_cache(true);
  description_.set_max_context(kTestContext);
  Start();
}

FakeWorker::~FakeWorker() { Stop(); }

void FakeWorker::Start() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(this);
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = false;
  }
  server_ = builder.BuildAndStart();
  CHECK(server_ != nullptr && port_ > 0) << "cannot listen";
}

void FakeWorker::Stop() {
  if (server_ == nullptr) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
  server_ = nullptr;
}

std::string FakeWorker::target() const { return absl::StrCat("127.0.0.1:", port_); }

// ---- the script ----

void FakeWorker::SetNext(NextId next) {
  absl::MutexLock lock(&mutex_);
  next_ = std::move(next);
}
void FakeWorker::RefuseWith(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  refusal_ = std::move(status);
}
void FakeWorker::BreakAfter(int num_ids, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  break_after_ = num_ids;
  break_status_ = std::move(status);
}
void FakeWorker::PauseAfter(int num_ids) {
  absl::MutexLock lock(&mutex_);
  pause_after_ = num_ids;
}
void FakeWorker::Continue() {
  absl::MutexLock lock(&mutex_);
  pause_after_ = -1;
}
void FakeWorker::SetDescription(std::function<void(v1::WorkerDescription&)> change) {
  absl::MutexLock lock(&mutex_);
  change(description_);
}
void FakeWorker::SetCachedPromptTokens(uint32_t count) {
  absl::MutexLock lock(&mutex_);
  cached_prompt_tokens_ = count;
}

// ---- what happened ----

bool FakeWorker::Await(std::function<bool()> condition) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&condition), kPatience);
}
bool FakeWorker::WaitForPaused(int num_requests) {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return paused_ >= num_requests; });
}
bool FakeWorker::WaitForCancelled(int num_requests) {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return cancelled_ >= num_requests; });
}
bool FakeWorker::WaitForControl(int num_calls) {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return controls_ >= num_calls; });
}
bool FakeWorker::WaitForRequests(int num_requests) {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return static_cast<int>(requests_.size()) >= num_requests;
  });
}
bool FakeWorker::WaitForIdle() {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return running_.empty(); });
}
std::vector<v1::TokenRequest> FakeWorker::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

// ---- the service ----

grpc::Status FakeWorker::Describe(grpc::ServerContext*, const v1::DescribeWorkerRequest*,
                                  v1::WorkerDescription* response) {
  absl::MutexLock lock(&mutex_);
  *response = description_;
  return grpc::Status::OK;
}

grpc::Status FakeWorker::Control(grpc::ServerContext*, const v1::WorkerControlRequest* request,
                                 v1::WorkerControlResponse*) {
  absl::MutexLock lock(&mutex_);
  const auto running = running_.find(request->request_id());
  if (running == running_.end()) return ToGrpcStatus(absl::NotFoundError("not here"));
  if (request->action_case() == v1::WorkerControlRequest::kFinishThinking) {
    running->second.automaton->RequestFinish();
  } else {
    running->second.automaton->SetBudget(request->set_thinking_budget());
  }
  ++controls_;
  return grpc::Status::OK;
}

grpc::Status FakeWorker::Generate(grpc::ServerContext* context, const v1::TokenRequest* request,
                                  grpc::ServerWriter<v1::TokenEvent>* writer) {
  {
    absl::MutexLock lock(&mutex_);
    requests_.push_back(*request);
    if (!refusal_.ok()) return ToGrpcStatus(refusal_);
    if (request->prefill_only()) return grpc::Status::OK;
    auto automaton = std::make_unique<ThinkingAutomaton>(MakeAutomaton(*request));
    if (!running_.emplace(request->request_id(), Running{std::move(automaton)}).second) {
      return ToGrpcStatus(absl::AlreadyExistsError("request_id is in flight"));
    }
  }
  writer->SendInitialMetadata();  // accepted
  const grpc::Status status = Run(*context, *request, *writer);
  absl::MutexLock lock(&mutex_);
  running_.erase(request->request_id());
  if (context->IsCancelled()) ++cancelled_;
  return status;
}

bool FakeWorker::PassGate(grpc::ServerContext& context, size_t num_generated) {
  absl::MutexLock lock(&mutex_);
  if (pause_after_ == static_cast<int>(num_generated)) {
    ++paused_;
    // A synchronous handler learns of a cancellation only by asking.
    while (pause_after_ == static_cast<int>(num_generated) && !context.IsCancelled() &&
           !stopping_) {
      const bool waiting = false;
      mutex_.AwaitWithTimeout(absl::Condition(&waiting), absl::Milliseconds(5));
    }
    --paused_;
  }
  return !context.IsCancelled() && !stopping_;
}

std::optional<absl::Status> FakeWorker::TakeBreak(size_t num_generated) {
  absl::MutexLock lock(&mutex_);
  if (break_after_ < 0 || static_cast<int>(num_generated) < break_after_) return std::nullopt;
  break_after_ = -1;
  return break_status_;
}

grpc::Status FakeWorker::Run(grpc::ServerContext& context, const v1::TokenRequest& request,
                             grpc::ServerWriter<v1::TokenEvent>& writer) {
  std::vector<uint32_t> generated(request.generated_ids().begin(), request.generated_ids().end());
  v1::TokenEvent event;
  event.set_started(true);
  bool finished = false;
  while (!finished) {
    if (!PassGate(context, generated.size())) return grpc::Status::CANCELLED;
    if (auto status = TakeBreak(generated.size())) return ToGrpcStatus(*status);
    {
      absl::MutexLock lock(&mutex_);
      if (event.started()) {
        event.set_cached_prompt_tokens(cached_prompt_tokens_);
        for (int i = 1; request.prompt_logprobs() && i < request.prompt_ids_size(); ++i) {
          event.add_prompt_logprobs(-static_cast<float>(i));
        }
      }
      ThinkingAutomaton& automaton = *running_.at(request.request_id()).automaton;
      const size_t first = generated.size();
      if (automaton.must_force()) {
        const auto forced = automaton.forced_ids();
        generated.insert(generated.end(), forced.begin(), forced.end());
        event.set_num_forced(static_cast<uint32_t>(forced.size()));
        automaton.OnForced();
      }
      if (generated.size() < request.max_tokens()) {
        generated.push_back(next_(request, generated));
        automaton.OnSampled(generated.back());
        const bool is_stop =
            std::count(request.stop_ids().begin(), request.stop_ids().end(), generated.back()) > 0;
        if (is_stop && !request.ignore_eos()) {
          event.set_finish_reason(v1::FINISH_REASON_STOP);
          event.set_stop_id(generated.back());
        }
      }
      if (event.finish_reason() == v1::FINISH_REASON_NONE &&
          generated.size() >= request.max_tokens()) {
        event.set_finish_reason(v1::FINISH_REASON_LENGTH);
      }
      for (size_t i = first; i < generated.size(); ++i) {
        event.add_ids(generated[i]);
        if (request.sampling().logprobs()) {
          event.add_logprobs()->set_logprob(LogprobOf(generated[i], i));
        }
      }
      EncodeState(automaton.state(), event.mutable_thinking());
      finished = event.finish_reason() != v1::FINISH_REASON_NONE;
    }
    if (!writer.Write(event)) return grpc::Status::CANCELLED;
    event.Clear();
  }
  return grpc::Status::OK;
}

}  // namespace conclave
