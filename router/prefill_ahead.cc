#include "router/prefill_ahead.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/log.h"
#include "router/next_turn.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

// Below two KV blocks the next turn would hardly notice.
constexpr int64_t kMinNewIds = 2 * limits::kKvBlockTokens;

int64_t CommonLength(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

// One prefill_only request. The worker sends no event, only the end.
class PrefillAhead::Call final : public grpc::ClientReadReactor<v1::TokenEvent> {
 public:
  Call(PrefillAhead* owner, std::unique_ptr<WorkerLease> lease, v1::TokenRequest request)
      : owner_(owner), lease_(std::move(lease)), request_(std::move(request)) {}

  void Start() {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + limits::kPrefillAheadDeadline));
    lease_->stub().async()->Generate(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  void OnReadDone(bool ok) override {
    if (ok) StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override {
    lease_ = nullptr;
    owner_->OnDone(this, FromGrpcStatus(status));
  }

  PrefillAhead* const owner_;
  std::unique_ptr<WorkerLease> lease_;
  const v1::TokenRequest request_;
  grpc::ClientContext context_;
  v1::TokenEvent event_;
};

PrefillAhead::~PrefillAhead() {
  absl::MutexLock lock(&mutex_);
  for (Call* call : calls_) call->Cancel();
  mutex_.Await(absl::Condition(this, &PrefillAhead::NoCalls));
}

void PrefillAhead::Start(const FinishedTurn& turn) {
  const auto prompt_ids = absl::MakeConstSpan(turn.computed_ids).first(turn.num_prompt);
  absl::StatusOr<std::vector<uint32_t>> ids =
      NextTurnIds(*model_, turn.conversation, turn.answer, prompt_ids);
  if (!ids.ok()) {
    LOG_WARNING("no prefill ahead: {}", ids.status().ToString());
    return;
  }
  const auto num_ids = static_cast<int64_t>(ids->size());
  if (num_ids - CommonLength(*ids, turn.computed_ids) < kMinNewIds) return;
  if (num_ids >= pool_->max_context()) return;  // there will be no next turn
  std::unique_ptr<WorkerLease> lease = pool_->AcquireIdle(turn.worker, PrefixMap::KeysOf(*ids));
  if (lease == nullptr) return metrics_->CountPrefillAhead(PrefillAheadOutcome::kBusy);

  v1::TokenRequest request;
  request.set_request_id(
      absl::StrCat("ahead-", absl::Hex(absl::Uniform<uint64_t>(absl::BitGen()), absl::kZeroPad16)));
  request.mutable_prompt_ids()->Add(ids->begin(), ids->end());
  request.set_prefill_only(true);
  auto* call = new Call(this, std::move(lease), std::move(request));
  {
    absl::MutexLock lock(&mutex_);
    calls_.insert(call);
  }
  call->Start();
}

void PrefillAhead::OnDone(Call* call, const absl::Status& status) {
  metrics_->CountPrefillAhead(status.ok() ? PrefillAheadOutcome::kDone
                                          : PrefillAheadOutcome::kDropped);
  absl::MutexLock lock(&mutex_);
  calls_.erase(call);
  delete call;
}

}  // namespace conclave
