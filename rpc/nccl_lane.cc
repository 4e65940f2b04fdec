#include "rpc/nccl_lane.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace conclave {

NcclLane::NcclLane(std::unique_ptr<NcclComm> comm, std::vector<std::unique_ptr<NcclBuffer>> buffers,
                   absl::Duration timeout)
    : timeout_(timeout), buffers_(std::move(buffers)), comm_(std::move(comm)) {}

NcclLane::Transfer& NcclLane::Start(size_t bytes, absl::Time now) {
  CHECK(MayStart());
  const auto idx = static_cast<size_t>(num_started_++) % buffers_.size();
  settled_ = false;
  return under_way_.emplace_back(Transfer{buffers_[idx].get(), bytes, now});
}

absl::Status NcclLane::Send(absl::Span<const uint8_t> bytes, absl::Time now) {
  const Transfer& transfer = Start(bytes.size(), now);
  std::memcpy(transfer.buffer->host(), bytes.data(), bytes.size());
  return comm_->Send(*transfer.buffer, bytes.size());
}

absl::Status NcclLane::Receive(size_t bytes, absl::Time now) {
  const Transfer& transfer = Start(bytes, now);
  return comm_->Receive(*transfer.buffer, bytes);
}

absl::StatusOr<bool> NcclLane::Poll(absl::Time now, OnDone on_done) {
  bool news = false;
  if (!settled_) {
    ASSIGN_OR_RETURN(settled_, comm_->Settled());
    joined_ = joined_ || settled_;
    news = settled_;
  }
  if (!settled_ || under_way_.empty()) {
    // A transfer that NCCL does not even take over is late as well.
    if (under_way_.empty() || now - under_way_.front().started < timeout_) return news;
  } else {
    ASSIGN_OR_RETURN(const int64_t done, comm_->NumDone());
    for (; num_done_ < done; ++num_done_) {
      const Transfer& transfer = under_way_.front();
      on_done(absl::MakeConstSpan(transfer.buffer->host(), transfer.bytes));
      under_way_.pop_front();
      news = true;
    }
    if (under_way_.empty() || now - under_way_.front().started < timeout_) return news;
  }
  return absl::DeadlineExceededError(absl::StrCat("a transfer of ", under_way_.front().bytes,
                                                  " bytes over NCCL is not done after ",
                                                  absl::FormatDuration(timeout_)));
}

}  // namespace conclave
