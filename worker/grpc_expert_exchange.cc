#include "worker/grpc_expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// A shard that refused a dispatch because its queue is full gets the next after this.
constexpr absl::Duration kBusyPause = absl::Milliseconds(20);
// Bytes of a dispatch's header for each pair: varints of a row below 2^21 and an expert below 2^14.
constexpr size_t kHeaderBytesPerPair = 5;
constexpr size_t kHeaderBytes = 64;

}  // namespace

GrpcExpertExchange::GrpcExpertExchange(GrpcExpertExchangeOptions options,
                                       std::unique_ptr<ExpertRunner> local, Metrics* metrics)
    : options_(std::move(options)),
      row_bytes_(static_cast<size_t>(options_.config.hidden_size) * sizeof(BFloat16)),
      local_(std::move(local)),
      metrics_(metrics),
      shards_({.targets = options_.shards,
               .resolver = options_.resolver,
               .name_refresh = options_.name_refresh,
               .connection = {.target = "",  // each its own
                              .fingerprint = options_.fingerprint,
                              .weight_dtype = options_.weight_dtype,
                              .num_experts = options_.config.num_experts,
                              .shared_memory = options_.shared_memory,
                              .nccl = options_.nccl,
                              .nccl_fp8_dispatches = options_.nccl_fp8_dispatches,
                              .hidden_size = options_.config.hidden_size,
                              .link_retry = options_.link_retry}},
              &inbox_, &pool_, metrics),
      in_place_(options_.config.num_experts, false) {
  for (const int expert : options_.experts_in_place) in_place_[expert] = true;
}

GrpcExpertExchange::~GrpcExpertExchange() { inbox_.Stop(); }

GrpcExpertExchange::Placement GrpcExpertExchange::LookAtShards() {
  Placement placement;
  placement.changes = inbox_.changes();
  placement.shards = shards_.Look();
  std::vector<ShardExperts> owners;
  for (size_t shard = 0; shard < placement.shards.size(); ++shard) {
    const ShardSet::Shard& found = placement.shards[shard];
    if (!found.view.up || found.leaving) continue;
    owners.push_back({static_cast<int>(shard), found.view.experts});
  }
  absl::StatusOr<ExpertPlacement> replicas =
      ExpertPlacement::Make(options_.config.num_experts, owners);
  CHECK(replicas.ok()) << replicas.status();  // ShardConnection checked the ids
  placement.replicas = *std::move(replicas);
  metrics_.shards_with_other_model.Set(static_cast<double>(absl::c_count_if(
      placement.shards, [](const auto& shard) { return shard.view.wrong_model; })));
  return placement;
}

void GrpcExpertExchange::UpdatePlacement() {
  placement_ = LookAtShards();
  busy_until_.resize(placement_.shards.size(), absl::InfinitePast());
  for (LayerPart& part : parts_) part.assigned_pairs.resize(placement_.shards.size(), 0);
}

absl::Status GrpcExpertExchange::MissingExperts(const Placement& placement, int layer,
                                                absl::Span<const int> experts,
                                                absl::Duration waited) const {
  std::string why;
  for (const ShardSet::Shard& shard : placement.shards) {
    if (shard.view.wrong_model) return shard.view.reason;
    if (shard.connection == nullptr || shard.view.up || shard.leaving) continue;
    absl::StrAppend(&why, "; shard ", shard.connection->target(), ": ",
                    shard.view.reason.message());
  }
  for (const std::string& unresolved : shards_.Unresolved()) {
    absl::StrAppend(&why, "; shards of ", unresolved);
  }
  const absl::Status missing = errors::ExpertsMissing(layer, experts, waited);
  return absl::Status(missing.code(), absl::StrCat(missing.message(), why));
}

std::vector<int> GrpcExpertExchange::ExpertsOf(const LayerPart& part,
                                               absl::Span<const uint32_t> pairs) {
  std::vector<int> experts;
  for (const uint32_t pair : pairs) experts.push_back(static_cast<int>(part.order.experts[pair]));
  std::sort(experts.begin(), experts.end());
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  return experts;
}

absl::Status GrpcExpertExchange::Ready() {
  const Placement placement = LookAtShards();
  std::vector<int> missing = placement.replicas.MissingExperts();
  absl::Status ready;
  // Every sparse layer has the same experts in the same places.
  for (int layer = 0; layer < options_.config.num_hidden_layers; ++layer) {
    if (!options_.config.IsSparseLayer(layer)) continue;
    missing.erase(
        std::remove_if(missing.begin(), missing.end(),
                       [&](int expert) { return in_place_[expert] || IsLocal(layer, expert); }),
        missing.end());
    if (!missing.empty()) {
      ready = MissingExperts(placement, layer, missing, absl::ZeroDuration());
    }
    break;
  }
  metrics_.missing_experts.Set(static_cast<double>(missing.size()));
  return ready;
}

absl::Status GrpcExpertExchange::AwaitReady(absl::Time deadline) {
  while (true) {
    const uint64_t seen = inbox_.changes();
    const absl::Status ready = Ready();
    if (ready.ok() || absl::Now() >= deadline || inbox_.stopped()) return ready;
    inbox_.WaitForChange(seen, deadline);
  }
}

absl::Status GrpcExpertExchange::Run(const ExpertBatch& batch,
                                     std::vector<const BFloat16*>& expert_rows) {
  GiveUp();
  RETURN_IF_ERROR(Start(0, batch, expert_rows));
  return Finish(0);
}

absl::Status GrpcExpertExchange::Start(int part, const ExpertBatch& batch,
                                       std::vector<const BFloat16*>& expert_rows) {
  BeginPart(parts_[part], batch, expert_rows);
  return AssignPairs();
}

absl::Status GrpcExpertExchange::Finish(int part) {
  RETURN_IF_ERROR(RunLocalPairs(parts_[part]));  // while the shards compute theirs
  while (!IsComputed(parts_[part])) {
    RETURN_IF_ERROR(WaitForNews());
    RETURN_IF_ERROR(AssignPairs());
  }
  return absl::OkStatus();
}

void GrpcExpertExchange::GiveUp() {
  // Answers to what was given up are ignored by their sequence.
  while (!outstanding_.empty()) Close(outstanding_.begin()->first);
  for (LayerPart& part : parts_) part.unassigned.clear();
}

bool GrpcExpertExchange::IsComputed(const LayerPart& part) const {
  return part.unassigned.empty() &&
         absl::c_none_of(outstanding_, [&](const auto& each) { return each.second.part == &part; });
}

void GrpcExpertExchange::BeginPart(LayerPart& part, const ExpertBatch& batch,
                                   std::vector<const BFloat16*>& expert_rows) {
  part.batch = batch;
  SortPairs(batch, options_.config.num_experts_per_tok, options_.config.num_experts, &part.order);
  expert_rows.assign(part.order.slots.size(), nullptr);
  part.expert_rows = &expert_rows;
  part.received.clear();
  part.local_pairs.clear();
  part.unassigned.clear();
  part.assigned_pairs.assign(placement_.shards.size(), 0);
  part.lost_since = absl::InfiniteFuture();
  int64_t num_in_place = 0;
  for (uint32_t pair = 0; pair < part.order.slots.size(); ++pair) {
    const auto expert = static_cast<int>(part.order.experts[pair]);
    if (in_place_[expert]) {
      ++num_in_place;
      continue;
    }
    const bool local = IsLocal(batch.layer, expert);
    (local ? part.local_pairs : part.unassigned).push_back(pair);
  }
  metrics_.local_rows.Increment(static_cast<double>(num_in_place));
}

absl::Status GrpcExpertExchange::RunLocalPairs(LayerPart& part) {
  if (part.local_pairs.empty()) return absl::OkStatus();
  std::vector<uint32_t> rows, experts;
  for (const uint32_t pair : part.local_pairs) {
    rows.push_back(part.order.rows[pair]);
    experts.push_back(part.order.experts[pair]);
  }
  const size_t hidden_size = static_cast<size_t>(options_.config.hidden_size);
  if (part.local_output.size() < rows.size() * hidden_size) {
    part.local_output.resize(rows.size() * hidden_size);
  }
  RETURN_IF_ERROR(local_->Run(part.batch.layer, part.batch.hidden_states, part.batch.num_rows, rows,
                              experts, part.local_output.data()));
  for (size_t i = 0; i < part.local_pairs.size(); ++i) {
    (*part.expert_rows)[part.order.slots[part.local_pairs[i]]] =
        part.local_output.data() + i * hidden_size;
  }
  metrics_.local_rows.Increment(static_cast<double>(rows.size()));
  return absl::OkStatus();
}

absl::Status GrpcExpertExchange::AssignPairs() {
  if (placement_.changes != inbox_.changes() || placement_.shards.empty()) {
    UpdatePlacement();
    RETURN_IF_ERROR(TakeBackLost());
  }
  for (LayerPart& part : parts_) {
    if (!part.unassigned.empty()) RETURN_IF_ERROR(AssignPairsOf(part));
  }
  return absl::OkStatus();
}

absl::Status GrpcExpertExchange::AssignPairsOf(LayerPart& part) {
  const absl::Time now = part.assigned_at = absl::Now();
  std::vector<std::vector<uint32_t>> pairs_of_shard(placement_.shards.size());
  std::vector<uint32_t> unserved;
  std::sort(part.unassigned.begin(), part.unassigned.end());  // by expert again
  for (size_t begin = 0, end = 0; begin < part.unassigned.size(); begin = end) {
    const uint32_t expert = part.order.experts[part.unassigned[begin]];
    while (end < part.unassigned.size() && part.order.experts[part.unassigned[end]] == expert) {
      ++end;
    }
    const int shard = ChooseShard(part, static_cast<int>(expert), now);
    std::vector<uint32_t>& pairs = shard < 0 ? unserved : pairs_of_shard[shard];
    pairs.insert(pairs.end(), part.unassigned.begin() + begin, part.unassigned.begin() + end);
    if (shard >= 0) part.assigned_pairs[shard] += end - begin;
  }
  part.unassigned = std::move(unserved);
  if (!part.unassigned.empty()) {
    part.lost_since = std::min(part.lost_since, now);
    const bool wrong_model =
        absl::c_any_of(placement_.shards, [](const auto& shard) { return shard.view.wrong_model; });
    if (wrong_model || now - part.lost_since >= options_.shard_wait) {
      return MissingExperts(placement_, part.batch.layer, ExpertsOf(part, part.unassigned),
                            now - part.lost_since);
    }
  }
  for (size_t shard = 0; shard < pairs_of_shard.size(); ++shard) {
    if (pairs_of_shard[shard].empty()) continue;
    SendPairs(part, static_cast<int>(shard), pairs_of_shard[shard]);
  }
  return absl::OkStatus();
}

int GrpcExpertExchange::ChooseShard(const LayerPart& part, int expert, absl::Time now) {
  int chosen = -1;
  for (const int shard : placement_.replicas.ReplicasOf(expert)) {
    if (busy_until_[shard] > now) continue;
    if (chosen < 0 || part.assigned_pairs[shard] < part.assigned_pairs[chosen]) chosen = shard;
  }
  return chosen;
}

void GrpcExpertExchange::SendPairs(LayerPart& part, int shard_idx,
                                   const std::vector<uint32_t>& pairs) {
  // Each row once, in rising order.
  row_idx_.assign(part.batch.num_rows, -1);
  for (const uint32_t pair : pairs) row_idx_[part.order.rows[pair]] = 0;
  std::vector<uint32_t> rows;
  for (uint32_t row = 0; row < row_idx_.size(); ++row) {
    if (row_idx_[row] < 0) continue;
    row_idx_[row] = static_cast<int64_t>(rows.size());
    rows.push_back(row);
  }
  const size_t bytes_per_row =
      row_bytes_ + options_.config.num_experts_per_tok * kHeaderBytesPerPair;
  const size_t rows_per_frame =
      std::max<size_t>(1, (limits::kMaxExpertFrameBytes - kHeaderBytes) / bytes_per_row);
  for (size_t first = 0; first < rows.size(); first += rows_per_frame) {
    const size_t count = std::min(rows_per_frame, rows.size() - first);
    const auto begin = static_cast<int64_t>(first);
    const auto end = static_cast<int64_t>(first + count);
    std::vector<uint32_t> frame_pairs;  // sorted as `pairs` is
    for (const uint32_t pair : pairs) {
      const int64_t idx = row_idx_[part.order.rows[pair]];
      if (idx >= begin && idx < end) frame_pairs.push_back(pair);
    }
    SendFrame(part, shard_idx, absl::MakeSpan(rows).subspan(first, count), std::move(frame_pairs));
  }
}

void GrpcExpertExchange::SendFrame(LayerPart& part, int shard_idx, absl::Span<const uint32_t> rows,
                                   std::vector<uint32_t> pairs) {
  const ShardSet::Shard& shard = placement_.shards[shard_idx];
  const ShardView& view = shard.view;
  v1::ExpertDispatch header;
  header.set_sequence(++last_sequence_);
  header.set_layer(static_cast<uint32_t>(part.batch.layer));
  header.set_placement_epoch(view.placement_epoch);
  header.set_num_rows(static_cast<uint32_t>(rows.size()));
  header.set_deadline_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.dispatch_timeout)));
  for (v1::RequestTag& request : shard.connection->TakeAnnounced()) {
    *header.add_new_requests() = std::move(request);
  }
  const int64_t first_idx = row_idx_[rows.front()];
  for (const uint32_t pair : pairs) {
    header.add_pair_rows(static_cast<uint32_t>(row_idx_[part.order.rows[pair]] - first_idx));
    header.add_pair_experts(part.order.experts[pair]);
  }
  const absl::Time sent = absl::Now();
  if (!Transmit(part.batch, shard_idx, header, rows)) {
    // The change that says so is in the inbox or on its way.
    part.unassigned.insert(part.unassigned.end(), pairs.begin(), pairs.end());
    return;
  }
  ++shard.connection->outstanding;
  shard.connection->rows_sent.fetch_add(pairs.size(), std::memory_order_relaxed);
  shard.rows->Increment(static_cast<double>(pairs.size()));
  Outstanding& dispatch = outstanding_[header.sequence()];
  dispatch.part = &part;
  dispatch.shard_idx = shard_idx;
  dispatch.shard = shard.connection;
  dispatch.path_id = view.path_id();
  dispatch.transport = view.transport();
  dispatch.pairs = std::move(pairs);
  dispatch.sent = sent;
  metrics_.of(dispatch.transport)
      .dispatch_bytes->Increment(static_cast<double>(rows.size() * row_bytes_));
}

bool GrpcExpertExchange::Transmit(const ExpertBatch& batch, int shard_idx,
                                  const v1::ExpertDispatch& header,
                                  absl::Span<const uint32_t> rows) {
  const auto row = [&](uint32_t idx) {
    return reinterpret_cast<const uint8_t*>(batch.hidden_states) + idx * row_bytes_;
  };
  const ShardView& view = placement_.shards[shard_idx].view;
  ShardConnection& connection = *placement_.shards[shard_idx].connection;
  if (view.link != nullptr) {
    pieces_.clear();
    for (const uint32_t idx : rows) pieces_.emplace_back(row(idx), row_bytes_);
    const absl::Status sent = view.link->Send(header, pieces_);
    if (!sent.ok()) connection.DropLink(view.link_id, sent);
    return sent.ok();
  }
  // Copied, for gRPC may still hold the bytes of a stream that was given up when the engine goes
  // on to overwrite its rows.
  const size_t bytes = rows.size() * row_bytes_;
  std::shared_ptr<uint8_t> buffer = pool_.Take(bytes);
  uint8_t* to = buffer.get();
  for (const uint32_t idx : rows) {
    std::memcpy(to, row(idx), row_bytes_);
    to += row_bytes_;
  }
  const uint8_t* data = buffer.get();
  return connection.Send(view.stream_id,
                         EncodeFrame(header, {BorrowSlice(std::move(buffer), data, bytes)}));
}

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
