// What comes back to a GrpcExpertExchange: combines, errors, and what was lost on the way.

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "worker/grpc_expert_exchange.h"

namespace conclave {
namespace {

// A shard that refused a dispatch because its queue is full gets the next after this.
constexpr absl::Duration kBusyPause = absl::Milliseconds(20);

}  // namespace

absl::Time GrpcExpertExchange::NextDeadline() const {
  absl::Time deadline = absl::InfiniteFuture();
  for (const auto& [sequence, dispatch] : outstanding_) {
    deadline = std::min(deadline, dispatch.sent + options_.dispatch_timeout);
  }
  for (const LayerPart& part : parts_) {
    if (part.unassigned.empty()) continue;
    deadline = std::min(deadline, part.lost_since + options_.shard_wait);
    for (const absl::Time busy : busy_until_) {
      if (busy > part.assigned_at) deadline = std::min(deadline, busy);
    }
  }
  return deadline;
}

absl::Status GrpcExpertExchange::WaitForNews() {
  const absl::Time deadline = NextDeadline();
  combines_.clear();
  while (true) {
    const uint32_t rings = inbox_.bell().rings();  // before looking, so that no ring is missed
    const bool moved = PollLinks();
    if (inbox_.Take(placement_.changes, &combines_) || moved || absl::Now() >= deadline) break;
    inbox_.bell().Wait(rings, deadline);
  }
  if (inbox_.stopped()) return errors::Draining("worker");
  for (ShardCombine& combine : combines_) RETURN_IF_ERROR(TakeCombine(std::move(combine)));
  ResetTimedOut();
  if (placement_.changes == inbox_.changes()) return absl::OkStatus();
  UpdatePlacement();
  return TakeBackLost();
}

bool GrpcExpertExchange::PollLinks() {
  bool moved = false;
  for (size_t shard = 0; shard < placement_.shards.size(); ++shard) {
    const ShardView& view = placement_.shards[shard].view;
    if (view.link == nullptr) continue;
    const auto take = [&](const std::string& header, absl::Span<const uint8_t> rows) {
      ShardCombine combine{static_cast<int>(shard), view.link_id, {}};
      if (!combine.frame.header.ParseFromString(header) ||
          !combine.frame.header.expert_rows().empty()) {
        return absl::InvalidArgumentError("the header of a combine does not parse");
      }
      if (!rows.empty()) {
        std::shared_ptr<uint8_t> copy = pool_.Take(rows.size());
        std::memcpy(copy.get(), rows.data(), rows.size());
        combine.frame.expert_rows = TensorBytes(std::move(copy), rows.size());
      }
      combines_.push_back(std::move(combine));
      return absl::OkStatus();
    };
    const absl::StatusOr<bool> polled = view.link->Poll(limits::kMaxUnreadCombines, take);
    moved = moved || !polled.ok() || *polled;
    if (!polled.ok()) placement_.shards[shard].connection->DropLink(view.link_id, polled.status());
  }
  return moved;
}

void GrpcExpertExchange::ResetTimedOut() {
  const absl::Time sent_before = absl::Now() - options_.dispatch_timeout;
  for (const auto& [sequence, dispatch] : outstanding_) {
    if (dispatch.sent > sent_before) continue;
    dispatch.shard->Reset(dispatch.path_id, absl::DeadlineExceededError(absl::StrCat(
                                                "it did not answer within ",
                                                absl::FormatDuration(options_.dispatch_timeout))));
  }
}

absl::Status GrpcExpertExchange::TakeBackLost() {
  std::vector<uint64_t> lost;
  for (const auto& [sequence, dispatch] : outstanding_) {
    if (!placement_.shards[dispatch.shard_idx].view.HasPath(dispatch.path_id))
      lost.push_back(sequence);
  }
  for (const uint64_t sequence : lost) RETURN_IF_ERROR(TakeBack(sequence));
  return absl::OkStatus();
}

GrpcExpertExchange::Outstanding GrpcExpertExchange::Close(uint64_t sequence) {
  const auto found = outstanding_.find(sequence);
  Outstanding dispatch = std::move(found->second);
  outstanding_.erase(found);
  --dispatch.shard->outstanding;
  return dispatch;
}

absl::Status GrpcExpertExchange::TakeBack(uint64_t sequence) {
  const Outstanding dispatch = Close(sequence);
  LayerPart& part = *dispatch.part;
  metrics_.of(dispatch.transport).retries->Increment();
  dispatch.shard->retries.fetch_add(1, std::memory_order_relaxed);
  part.assigned_pairs[dispatch.shard_idx] -= dispatch.pairs.size();
  for (const uint32_t pair : dispatch.pairs) {
    if ((*part.expert_rows)[part.order.slots[pair]] == nullptr) part.unassigned.push_back(pair);
  }
  const absl::Time now = absl::Now();
  part.lost_since = std::min(part.lost_since, now);
  if (now - part.lost_since < options_.shard_wait) return absl::OkStatus();
  return MissingExperts(placement_, part.batch.layer, ExpertsOf(part, dispatch.pairs),
                        now - part.lost_since);
}

absl::Status GrpcExpertExchange::TakeCombine(ShardCombine combine) {
  const v1::ExpertCombine& header = combine.frame.header;
  const auto found = outstanding_.find(header.sequence());
  // An answer that came after its dispatch was taken back, or of a layer that was given up.
  if (found == outstanding_.end()) return absl::OkStatus();
  Outstanding& dispatch = found->second;
  if (dispatch.shard_idx != combine.shard_idx || dispatch.path_id != combine.path_id) {
    return absl::OkStatus();
  }
  if (header.status_code() != 0) {
    RETURN_IF_ERROR(TakeError(dispatch, header));
    return TakeBack(header.sequence());
  }
  if (!TakeRows(dispatch, combine.frame)) {
    dispatch.shard->Reset(dispatch.path_id,
                          absl::InternalError("its answer does not fit what it was asked"));
    return absl::OkStatus();  // taken back when the change is seen
  }
  if (dispatch.num_answered == dispatch.pairs.size()) {
    metrics_.of(dispatch.transport)
        .dispatch_seconds->Observe(absl::ToDoubleSeconds(absl::Now() - dispatch.sent));
    Close(header.sequence());
  }
  return absl::OkStatus();
}

absl::Status GrpcExpertExchange::TakeError(const Outstanding& dispatch,
                                           const v1::ExpertCombine& header) {
  ShardConnection& connection = *dispatch.shard;
  const auto code = static_cast<absl::StatusCode>(header.status_code());
  const absl::Status error(code, header.status_message());
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError(
          absl::StrCat("shard ", connection.target(), " refused a dispatch: ", error.message()));
    case absl::StatusCode::kResourceExhausted:  // it is well, but full
    case absl::StatusCode::kDeadlineExceeded:
      busy_until_[dispatch.shard_idx] = absl::Now() + kBusyPause;
      return absl::OkStatus();
    default:
      // Stale placement, draining, or broken: it is asked again before it gets anything more.
      connection.Reset(dispatch.path_id, error);
      return absl::OkStatus();
  }
}

bool GrpcExpertExchange::TakeRows(Outstanding& dispatch, CombineFrame& frame) {
  LayerPart& part = *dispatch.part;
  const uint64_t first = frame.header.first_pair();
  const uint64_t count = frame.header.num_pairs();
  if (count == 0 || first + count > dispatch.pairs.size()) return false;
  if (frame.expert_rows.size() != count * row_bytes_) return false;
  for (uint64_t pair = first; pair < first + count; ++pair) {
    const uint32_t slot = part.order.slots[dispatch.pairs[pair]];
    if ((*part.expert_rows)[slot] != nullptr) return false;  // twice
  }
  part.received.push_back(std::move(frame.expert_rows));
  const BFloat16* rows = part.received.back().Rows(pool_);
  for (uint64_t i = 0; i < count; ++i) {
    (*part.expert_rows)[part.order.slots[dispatch.pairs[first + i]]] =
        rows + i * static_cast<uint64_t>(options_.config.hidden_size);
  }
  dispatch.num_answered += count;
  metrics_.of(dispatch.transport).combine_bytes->Increment(static_cast<double>(count * row_bytes_));
  return true;
}

}  // namespace conclave
