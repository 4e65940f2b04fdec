#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/nccl_api.h"

namespace conclave {

// One direction of an NCCL link: a communicator, and a ring of buffers that its transfers go
// through in order. Used by the link's thread alone.
class NcclLane {
 public:
  // Takes a transfer that is done; its bytes are valid during the call.
  using OnDone = absl::FunctionRef<void(absl::Span<const uint8_t> bytes)>;

  NcclLane(std::unique_ptr<NcclComm> comm, std::vector<std::unique_ptr<NcclBuffer>> buffers,
           absl::Duration timeout);

  // Whether the communicator has been joined.
  bool joined() const { return joined_; }
  // Whether there is something to poll for.
  bool busy() const { return !settled_ || !under_way_.empty(); }
  // Whether a transfer may be started now.
  bool MayStart() const { return settled_ && under_way_.size() < buffers_.size(); }

  // Requires MayStart. `now` is when the transfer's time begins.
  absl::Status Send(absl::Span<const uint8_t> bytes, absl::Time now);
  absl::Status Receive(size_t bytes, absl::Time now);

  // Returns whether anything is new. DeadlineExceeded: a transfer is not done in time.
  absl::StatusOr<bool> Poll(absl::Time now, OnDone on_done);

 private:
  struct Transfer {
    const NcclBuffer* buffer = nullptr;
    size_t bytes = 0;
    absl::Time started;
  };

  Transfer& Start(size_t bytes, absl::Time now);

  const absl::Duration timeout_;
  const std::vector<std::unique_ptr<NcclBuffer>> buffers_;
  std::unique_ptr<NcclComm> comm_;  // aborted before the buffers go
  bool joined_ = false;
  bool settled_ = false;
  int64_t num_started_ = 0;
  int64_t num_done_ = 0;
  std::deque<Transfer> under_way_;
};

}  // namespace conclave
