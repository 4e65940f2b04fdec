#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave {

// What Conclave uses of NCCL, of one process on one GPU. kernels/cuda/nccl.h has the real one;
// tests/support/fake_nccl.h stands in for it where there is no GPU. Nothing here blocks but for
// Allocate, and nothing waits for the peer. What is made for a link is used by one thread, the one
// that made it.

// Memory of the GPU that one transfer is sent from or received into, and as much pinned memory of
// the host, which transfers are copied from and to.
class NcclBuffer {
 public:
  virtual ~NcclBuffer() = default;
  virtual uint8_t* host() const = 0;  // 64-byte aligned
};

// A communicator of two ranks, with a stream of its own. Any error is final: the peer has gone, or
// NCCL or the GPU has failed.
class NcclComm {
 public:
  virtual ~NcclComm() = default;  // aborts what is under way

  // Whether NCCL has taken over what was asked last, beginning with joining: until then, nothing
  // else may be. To be polled.
  virtual absl::StatusOr<bool> Settled() = 0;

  // Start a transfer after all earlier ones: from the peer's rank to ours, or back. Both ranks must
  // ask for the same transfers in the same order. The buffer must stay as it is until it is done.
  virtual absl::Status Send(const NcclBuffer& buffer, size_t bytes) = 0;
  virtual absl::Status Receive(const NcclBuffer& buffer, size_t bytes) = 0;

  // How many transfers are done, of all that were started. To be polled.
  virtual absl::StatusOr<int64_t> NumDone() = 0;
};

class NcclApi {
 public:
  virtual ~NcclApi() = default;

  virtual int version() const = 0;  // 22809 is 2.28.9

  // Names a communicator that nobody has joined yet. Any thread.
  virtual absl::StatusOr<std::string> NewUniqueId() = 0;

  // Begins to join as rank 0 or 1. InvalidArgument: the id is none.
  virtual absl::StatusOr<std::unique_ptr<NcclComm>> Join(const std::string& unique_id,
                                                         int rank) = 0;

  // Not initialised. ResourceExhausted: there is no room.
  virtual absl::StatusOr<std::unique_ptr<NcclBuffer>> Allocate(size_t bytes) = 0;
};

}  // namespace conclave
