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
                              .own_placement_epoch = options_.own_placement_epoch,
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
    if (shard.connection == nullptr || shard.view.up || shard.view.is_own || shard.leaving) {
      continue;
    }
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

}  // namespace conclave
