#include "worker/shard_connection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "worker/nccl_call.h"
#include "worker/shared_memory_call.h"

namespace conclave {
namespace {

// Between two attempts to reach a shard: soon enough to be back within a blink of its return, rare
// enough that a shard that loads for minutes is asked twice a second.
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Milliseconds(500);

}  // namespace

ShardConnection::ShardConnection(Options options, ExchangeInbox* inbox, BufferPool* pool)
    : options_(std::move(options)),
      inbox_(inbox),
      pool_(pool),
      channel_(MakeChannel(options_.target, Traffic::kTensors)) {
  view_.reason = absl::UnavailableError("not connected yet");
  if (options_.nccl != nullptr) {
    link_kinds_.push_back({Transport::kNccl, options_.link_retry, options_.link_retry});
  }
  if (options_.shared_memory && inbox_->bell().is_shared()) {
    link_kinds_.push_back({Transport::kSharedMemory, absl::InfiniteDuration(), {}});
  }
  thread_ = std::thread([this] { ThreadMain(); });
}

ShardConnection::~ShardConnection() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (describing_ != nullptr) describing_->TryCancel();
  }
  thread_.join();  // no stream or link is opened any more
  std::shared_ptr<DispatchStream> stream;
  LinkCalls link_calls;
  {
    absl::MutexLock lock(&mutex_);
    stream = stream_;
    link_calls = TakeLinks();
  }
  for (const auto& call : link_calls) call->Cancel(absl::CancelledError("the worker stops"));
  if (stream != nullptr) stream->Cancel(absl::CancelledError("the worker stops"));
  // Calls call back until they end.
  absl::MutexLock lock(&mutex_);
  const auto none_open = [this]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_calls_ == 0; };
  mutex_.Await(absl::Condition(&none_open));
}

ShardView ShardConnection::view() const {
  absl::MutexLock lock(&mutex_);
  return view_;
}

bool ShardConnection::Send(uint64_t stream_id, grpc::ByteBuffer frame) {
  std::shared_ptr<DispatchStream> stream;
  {
    absl::MutexLock lock(&mutex_);
    if (!view_.up || view_.stream_id != stream_id) return false;
    stream = stream_;
  }
  return stream->Send(std::move(frame));
}

void ShardConnection::Announce(const v1::RequestTag& request) {
  absl::MutexLock lock(&mutex_);
  // A shard that gets nothing for long, because it is down, misses some.
  if (announced_.size() < limits::kMaxAnnouncedRequests) announced_.push_back(request);
}

std::vector<v1::RequestTag> ShardConnection::TakeAnnounced() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(announced_, {});
}

void ShardConnection::Reset(uint64_t path_id, const absl::Status& reason) {
  std::shared_ptr<DispatchStream> stream;
  LinkCalls link_calls;
  {
    absl::MutexLock lock(&mutex_);
    if (!view_.HasPath(path_id)) return;
    stream = stream_;
    link_calls = SetDown(reason);
  }
  inbox_->NotifyChanged();
  stream->Cancel(reason);
  for (const auto& call : link_calls) call->Cancel(reason);
}

void ShardConnection::DropLink(uint64_t link_id, const absl::Status& reason) {
  std::shared_ptr<LinkCall> call;
  {
    absl::MutexLock lock(&mutex_);
    if (view_.link == nullptr || view_.link_id != link_id) return;
    LOG_WARNING("the link to shard {} through {} is given up: {}", options_.target,
                TransportName(link_.transport), reason.ToString());
    call = std::move(link_.call);
    LinkFailed(link_, reason);
    link_ = Link();
    view_.link = nullptr;
  }
  inbox_->NotifyChanged();
  if (call != nullptr) call->Cancel(reason);
}

void ShardConnection::OnStreamEnd(uint64_t stream_id, const absl::Status& reason) {
  LinkCalls link_calls;
  {
    absl::MutexLock lock(&mutex_);
    if (view_.up && view_.stream_id == stream_id) link_calls = SetDown(reason);
  }
  for (const auto& call : link_calls) call->Cancel(reason);
  inbox_->NotifyChanged();
  absl::MutexLock lock(&mutex_);
  --open_calls_;  // last: the destructor may go on from here
}

void ShardConnection::TendLinks() {
  while (true) {
    Link opening;
    {
      absl::MutexLock lock(&mutex_);
      if (DownOrStopping()) return;
      links_changed_ = false;
      absl::Time look_again;
      const LinkKind* kind = NextLink(&look_again);
      if (kind == nullptr) {
        mutex_.AwaitWithDeadline(absl::Condition(this, &ShardConnection::LinksChanged), look_again);
        continue;
      }
      ++open_calls_;
      opening.id = inbox_->NextPathId();
      opening.transport = kind->transport;
      opening_ = opening;
    }
    const uint64_t id = opening.id;
    absl::StatusOr<std::shared_ptr<LinkCall>> call =
        StartLink(opening.transport,
                  {[this, id](std::shared_ptr<FrameLink> link) { OnLinkOpen(id, std::move(link)); },
                   [this, id](const absl::Status& reason) { OnLinkEnd(id, reason); }});
    if (!call.ok()) {
      OnLinkEnd(id, call.status());
      continue;
    }
    {
      // It may be open already, or be of no use any more.
      absl::MutexLock lock(&mutex_);
      for (Link* link : {&opening_, &link_}) {
        if (link->id == id) link->call = std::exchange(*call, nullptr);
      }
    }
    if (*call != nullptr) (*call)->Cancel(absl::CancelledError("given up while it was opened"));
  }
}

ShardConnection::LinkKind* ShardConnection::NextLink(absl::Time* look_again) {
  *look_again = absl::InfiniteFuture();
  if (opening_.id != 0) return nullptr;  // its end, either way, is a change
  const absl::Time now = absl::Now();
  for (LinkKind& kind : link_kinds_) {
    if (link_.id != 0 && link_.transport == kind.transport) break;  // none after it is better
    if (kind.not_before <= now) return &kind;
    *look_again = std::min(*look_again, kind.not_before);
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<LinkCall>> ShardConnection::StartLink(Transport transport,
                                                                     LinkCall::Events events) {
  if (transport == Transport::kSharedMemory) {
    return SharedMemoryCall::Start(channel_, inbox_->bell(), pool_, std::move(events));
  }
  const NcclPeers peers{options_.fingerprint, view().placement_epoch, options_.hidden_size};
  return NcclCall::Start(channel_, options_.nccl, peers, options_.nccl_fp8_dispatches,
                         &inbox_->bell(), std::move(events));
}

void ShardConnection::OnLinkOpen(uint64_t id, std::shared_ptr<FrameLink> link) {
  std::shared_ptr<LinkCall> replaced;
  Transport transport;
  {
    absl::MutexLock lock(&mutex_);
    if (opening_.id != id) return;
    transport = opening_.transport;
    replaced = std::move(link_.call);
    link_ = std::exchange(opening_, Link());
    link_.opened = absl::Now();
    view_.link = std::move(link);
    view_.link_id = id;
    view_.link_transport = transport;
    links_changed_ = true;
  }
  LOG_INFO("shard {} is reached through {}", options_.target, TransportName(transport));
  inbox_->NotifyChanged();
  if (replaced != nullptr) replaced->Cancel(absl::CancelledError("there is a better link"));
}

void ShardConnection::OnLinkEnd(uint64_t id, const absl::Status& reason) {
  {
    absl::MutexLock lock(&mutex_);
    for (Link* link : {&opening_, &link_}) {
      if (link->id != id) continue;
      LOG_INFO("shard {} is not reached through {}: {}", options_.target,
               TransportName(link->transport), reason.ToString());
      if (link == &link_) view_.link = nullptr;
      LinkFailed(*link, reason);
      *link = Link();
    }
  }
  inbox_->NotifyChanged();
  absl::MutexLock lock(&mutex_);
  --open_calls_;  // last: the destructor may go on from here
}

void ShardConnection::LinkFailed(const Link& link, const absl::Status& reason) {
  for (LinkKind& kind : link_kinds_) {
    if (kind.transport != link.transport) continue;
    // One that lasted was well: its loss is a new one.
    if (absl::Now() - link.opened > 16 * kind.first_pause) kind.next_pause = kind.first_pause;
    // It would refuse it again: it has no GPU, or another NCCL.
    const bool refused = absl::IsFailedPrecondition(reason) || absl::IsUnimplemented(reason);
    kind.not_before = refused ? absl::InfiniteFuture() : absl::Now() + kind.next_pause;
    kind.next_pause = std::min(2 * kind.next_pause, 16 * kind.first_pause);
  }
  links_changed_ = true;
}

ShardConnection::LinkCalls ShardConnection::TakeLinks() {
  LinkCalls calls;
  for (Link* link : {&opening_, &link_}) {
    if (link->call != nullptr) calls.push_back(std::move(link->call));
    *link = Link();
  }
  view_.link = nullptr;
  return calls;
}

ShardConnection::LinkCalls ShardConnection::SetDown(const absl::Status& reason) {
  if (!stopping_) LOG_WARNING("shard {} is lost: {}", options_.target, reason.ToString());
  view_.up = false;
  view_.reason = reason;
  view_.experts.clear();
  stream_ = nullptr;
  return TakeLinks();
}

void ShardConnection::ThreadMain() {
  absl::Duration pause = kFirstPause;
  while (true) {
    const absl::Time start = absl::Now();
    absl::StatusOr<v1::ShardDescription> description = Describe();
    const bool own = description.ok() && IsOwn(*description);
    if (own) {
      SetOwn();
    } else if (description.ok()) {
      OpenStream(*description);
      TendLinks();
    } else {
      absl::MutexLock lock(&mutex_);
      if (view_.reason.message() != description.status().message()) {
        LOG_INFO("shard {}: {}", options_.target, description.status().ToString());
      }
      view_.reason = description.status();
      view_.wrong_model = absl::IsFailedPrecondition(description.status());
      view_.is_own = false;
    }
    if (!description.ok()) {
      inbox_->NotifyChanged();
      options_.on_unreachable();
    }
    // A stream that lasted shows that the shard was well: the next loss is a new one.
    const bool lasted = description.ok() && absl::Now() - start > absl::Seconds(1);
    pause = lasted ? kFirstPause : std::min(2 * pause, kLongestPause);
    absl::MutexLock lock(&mutex_);
    // As a name is: the address may become another process's.
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), own ? limits::kNameRefresh : pause);
    if (stopping_) return;
  }
}

void ShardConnection::SetOwn() {
  {
    absl::MutexLock lock(&mutex_);
    if (view_.is_own) return;
    view_.is_own = true;
    view_.wrong_model = false;
    view_.reason = absl::UnavailableError("it is this worker itself");
  }
  LOG_INFO("shard {} is this worker itself", options_.target);
  inbox_->NotifyChanged();
}

absl::StatusOr<v1::ShardDescription> ShardConnection::Describe() {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + limits::kDescribeDeadline));
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("the worker stops");
    describing_ = &context;
  }
  v1::ShardDescription description;
  const grpc::Status status = v1::ExpertShard::NewStub(channel_)->Describe(
      &context, v1::DescribeShardRequest(), &description);
  {
    absl::MutexLock lock(&mutex_);
    describing_ = nullptr;
  }
  RETURN_IF_ERROR(FromGrpcStatus(status));
  RETURN_IF_ERROR(Check(description));
  return description;
}

bool ShardConnection::IsOwn(const v1::ShardDescription& description) const {
  return options_.own_placement_epoch != 0 &&
         description.placement_epoch() == options_.own_placement_epoch;
}

absl::Status ShardConnection::Check(const v1::ShardDescription& description) const {
  if (IsOwn(description)) return absl::OkStatus();  // also while it drains
  if (!description.ready()) {
    return absl::UnavailableError("the shard is loading its experts, or draining");
  }
  if (description.model().fingerprint() != options_.fingerprint) {
    const std::string& dtype = description.model().weight_dtype();
    if (dtype != options_.weight_dtype) {
      return errors::WeightDtypeMismatch(options_.target, dtype, options_.weight_dtype);
    }
    return errors::FingerprintMismatch(options_.target, description.model().fingerprint(),
                                       options_.fingerprint);
  }
  if (description.dtype() != "bf16") {
    return absl::FailedPreconditionError(absl::StrCat("dtype of shard ", options_.target, " is ",
                                                      description.dtype(), ", want bf16"));
  }
  uint32_t least = 0;
  for (const uint32_t expert : description.expert_ids()) {
    if (expert < least || expert >= static_cast<uint32_t>(options_.num_experts)) {
      return absl::InternalError(absl::StrCat("expert_ids of shard ", options_.target, " holds ",
                                              expert, ", want rising ids below ",
                                              options_.num_experts));
    }
    least = expert + 1;
  }
  return absl::OkStatus();
}

void ShardConnection::OpenStream(const v1::ShardDescription& description) {
  uint64_t stream_id = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    stream_id = inbox_->NextPathId();
    ++open_calls_;
    view_.up = true;
    view_.stream_id = stream_id;
    view_.placement_epoch = description.placement_epoch();
    view_.experts.assign(description.expert_ids().begin(), description.expert_ids().end());
    view_.reason = absl::OkStatus();
    view_.wrong_model = false;
    view_.is_own = false;
    for (LinkKind& kind : link_kinds_) {
      kind.not_before = absl::InfinitePast();
      kind.next_pause = kind.first_pause;
    }
    // The stream may end, and call OnStreamEnd, before this returns: that waits for the lock.
    stream_ = DispatchStream::Start(
        channel_, {[this, stream_id](CombineFrame frame) {
                     return inbox_->Push({options_.shard_idx, stream_id, std::move(frame)});
                   },
                   [this, stream_id](absl::Status reason) { OnStreamEnd(stream_id, reason); }});
  }
  LOG_INFO("shard {} serves {} experts", options_.target, description.expert_ids_size());
  inbox_->NotifyChanged();
}

}  // namespace conclave
