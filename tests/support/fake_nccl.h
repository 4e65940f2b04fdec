#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "common/nccl_api.h"

namespace conclave {

// What stands in for the GPUs' links between the "processes" of a test: FakeNccl objects that share
// one of these reach each other by unique id, as processes do. It is as unkind as NCCL may be:
//  - nothing is taken over before it was polled for twice, and nothing is done before that;
//  - bytes are copied at the last moment, when a transfer becomes done, so that a buffer that was
//    changed too early carries the wrong ones; a receive buffer holds nonsense until then;
//  - a peer that aborts or dies is not reported: what waits for it waits for ever.
// It aborts the test if it is misused: two calls at once, from another thread than the one that
// joined, a third rank, transfers of unequal sizes.
class FakeNcclFabric {
 public:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  // From now on nobody who joins is joined.
  void HangJoins() { joins_hang_ = true; }
  void LetJoin() { joins_hang_ = false; }
  // After `transfers` more are done, no other will be; kNever: all will.
  void HangAfter(int64_t transfers) { Set(&hang_at_, transfers); }
  // After `transfers` more are done, every communicator that is there fails.
  void FailAfter(int64_t transfers) { Set(&fail_at_, transfers); }
  // Every byte arrives changed.
  void Corrupt() { corrupt_ = true; }

  int64_t transfers() const { return transfers_; }
  // Transfers that only one rank has asked for yet.
  int64_t waiting() {
    absl::MutexLock lock(&mutex_);
    size_t count = 0;
    for (const auto& [id, pair] : pairs_) {
      for (const size_t rank : {0, 1})
        count += pair.sends[rank].size() + pair.receives[rank].size();
    }
    return static_cast<int64_t>(count);
  }
  int live_comms() const { return live_comms_; }
  int live_buffers() const { return live_buffers_; }

 private:
  friend class FakeNccl;
  friend class FakeNcclComm;
  friend class FakeNcclBuffer;

  struct Transfer {
    uint8_t* host = nullptr;
    size_t bytes = 0;
  };
  struct Pair {
    std::array<bool, 2> joined{};
    std::array<bool, 2> gone{};
    // Of each rank, as sender and as receiver.
    std::array<std::deque<Transfer>, 2> sends;
    std::array<std::deque<Transfer>, 2> receives;
    std::array<int64_t, 2> done{};
  };

  void Set(std::atomic<int64_t>* at, int64_t transfers) {
    *at = transfers == kNever ? kNever : transfers_ + transfers;
  }

  // Does what both ranks have asked for. A rank either sends or receives in this test double's
  // pairs, as the links do.
  void Match(Pair& pair) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const size_t from : {0, 1}) {
      const size_t to = 1 - from;
      while (!pair.sends[from].empty() && !pair.receives[to].empty() && !pair.gone[from] &&
             !pair.gone[to] && transfers_ < hang_at_) {
        const Transfer send = pair.sends[from].front();
        const Transfer receive = pair.receives[to].front();
        pair.sends[from].pop_front();
        pair.receives[to].pop_front();
        CHECK_EQ(send.bytes, receive.bytes) << "NCCL would hang, or write past the buffer";
        std::memcpy(receive.host, send.host, send.bytes);
        if (corrupt_) receive.host[0] ^= 1;
        ++pair.done[from];
        ++pair.done[to];
        ++transfers_;
      }
    }
  }

  std::atomic<bool> joins_hang_{false};
  std::atomic<bool> corrupt_{false};
  std::atomic<int64_t> hang_at_{kNever};
  std::atomic<int64_t> fail_at_{kNever};
  std::atomic<int64_t> transfers_{0};
  std::atomic<int> live_comms_{0};
  std::atomic<int> live_buffers_{0};
  std::atomic<int> last_id_{0};
  absl::Mutex mutex_;
  std::map<std::string, Pair> pairs_ ABSL_GUARDED_BY(mutex_);
};

class FakeNcclBuffer final : public NcclBuffer {
 public:
  FakeNcclBuffer(FakeNcclFabric* fabric, size_t bytes) : fabric_(fabric), bytes_(bytes) {
    host_ = static_cast<uint8_t*>(::operator new(bytes, kAlignment));
    std::memset(host_, 0xee, bytes);
    ++fabric_->live_buffers_;
  }
  ~FakeNcclBuffer() override {
    CHECK(std::this_thread::get_id() == thread_);
    ::operator delete(host_, kAlignment);
    --fabric_->live_buffers_;
  }

  uint8_t* host() const override { return host_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr std::align_val_t kAlignment{64};

  FakeNcclFabric* const fabric_;
  const size_t bytes_;
  const std::thread::id thread_ = std::this_thread::get_id();
  uint8_t* host_ = nullptr;
};

class FakeNcclComm final : public NcclComm {
 public:
  FakeNcclComm(FakeNcclFabric* fabric, const std::string& id, int rank)
      : fabric_(fabric), rank_(static_cast<size_t>(rank)) {
    ++fabric_->live_comms_;
    absl::MutexLock lock(&fabric_->mutex_);
    pair_ = &fabric_->pairs_[id];
    CHECK(!pair_->joined[rank_]) << "rank " << rank << " is there already";
    pair_->joined[rank_] = true;
  }

  ~FakeNcclComm() override {
    CheckThread();
    absl::MutexLock lock(&fabric_->mutex_);
    pair_->gone[rank_] = true;
    pair_->sends[rank_].clear();
    pair_->receives[rank_].clear();
    --fabric_->live_comms_;
  }

  absl::StatusOr<bool> Settled() override {
    CheckThread();
    if (Failed()) return Failure();
    absl::MutexLock lock(&fabric_->mutex_);
    if (settled_) return true;
    if (joining_ && (fabric_->joins_hang_ || !pair_->joined[1 - rank_])) return false;
    if (polls_++ == 0) return false;
    settled_ = true;
    joining_ = false;
    if (asked_.host != nullptr) {
      (sending_ ? pair_->sends : pair_->receives)[rank_].push_back(asked_);
      asked_ = {};
    }
    return true;
  }

  absl::Status Send(const NcclBuffer& buffer, size_t bytes) override {
    return Ask(buffer, bytes, /*send=*/true);
  }
  absl::Status Receive(const NcclBuffer& buffer, size_t bytes) override {
    std::memset(buffer.host(), 0xdd, bytes);
    return Ask(buffer, bytes, /*send=*/false);
  }

  absl::StatusOr<int64_t> NumDone() override {
    CheckThread();
    CHECK(settled_) << "NCCL was asked while it was in progress";
    if (Failed()) return Failure();
    absl::MutexLock lock(&fabric_->mutex_);
    fabric_->Match(*pair_);
    return pair_->done[rank_];
  }

 private:
  void CheckThread() const { CHECK(std::this_thread::get_id() == thread_); }
  bool Failed() const { return fabric_->transfers_ >= fabric_->fail_at_; }
  static absl::Status Failure() { return absl::UnavailableError("ncclRemoteError, as told"); }

  absl::Status Ask(const NcclBuffer& buffer, size_t bytes, bool send) {
    CheckThread();
    CHECK(settled_) << "NCCL was asked while it was in progress";
    CHECK_LE(bytes, static_cast<const FakeNcclBuffer&>(buffer).bytes());
    CHECK(bytes > 0);
    if (Failed()) return Failure();
    asked_ = {buffer.host(), bytes};
    sending_ = send;
    settled_ = false;
    polls_ = 0;
    return absl::OkStatus();
  }

  FakeNcclFabric* const fabric_;
  const size_t rank_;
  const std::thread::id thread_ = std::this_thread::get_id();
  FakeNcclFabric::Pair* pair_ = nullptr;  // stays in place; its fields are the fabric's mutex's
  bool joining_ = true;
  bool settled_ = false;
  int polls_ = 0;
  bool sending_ = false;
  FakeNcclFabric::Transfer asked_;
};

// NCCL of one "process".
class FakeNccl final : public NcclApi {
 public:
  explicit FakeNccl(FakeNcclFabric* fabric, int version = 22809)
      : fabric_(fabric), version_(version) {}

  int version() const override { return version_; }
  absl::StatusOr<std::string> NewUniqueId() override {
    std::string id = absl::StrCat("fake ", ++fabric_->last_id_);
    id.resize(kIdBytes);
    return id;
  }
  absl::StatusOr<std::unique_ptr<NcclComm>> Join(const std::string& unique_id, int rank) override {
    if (unique_id.size() != kIdBytes) return absl::InvalidArgumentError("no unique id");
    return std::make_unique<FakeNcclComm>(fabric_, unique_id, rank);
  }
  absl::StatusOr<std::unique_ptr<NcclBuffer>> Allocate(size_t bytes) override {
    return std::make_unique<FakeNcclBuffer>(fabric_, bytes);
  }

 private:
  static constexpr size_t kIdBytes = 128;

  FakeNcclFabric* const fabric_;
  const int version_;
};

}  // namespace conclave
