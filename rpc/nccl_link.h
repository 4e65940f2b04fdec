#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "rpc/doorbell.h"
#include "rpc/frame_link.h"
#include "rpc/nccl_transport.h"
#include "rpc/shared_memory_link.h"

namespace conclave {

class NcclSession;

// What both ends of an NCCL link agreed on.
struct NcclTerms {
  int rank = 0;  // 0: the worker
  std::string dispatch_id;
  std::string combine_id;
  size_t frame_bytes = 0;
  int num_frames = 0;
  bool fp8_dispatches = false;
  int hidden_size = 0;
  uint64_t hello = 0;
};

// A link whose headers go through memory and whose tensors go from GPU to GPU. A thread of its own
// drives NCCL, so that a peer that hangs holds up nobody else: Send and Poll only hand frames over.
//
// Tensors begin and end in the host's memory: they are copied to pinned memory, to the GPU, to the
// other GPU and back. Rows that live on the GPU would enter and leave at NcclLane's buffers.
class NcclLink final : public FrameLink {
 public:
  // Once, from the link's thread: OK when frames may be sent, else why they never may.
  using OnReady = std::function<void(const absl::Status& status)>;

  // Begins to join. `headers` is used by the link's thread, which sleeps at `own_bell`; `user_bell`
  // is rung when there is something to poll for. It and `transport` are borrowed, the latter
  // outlives the link.
  NcclLink(NcclTransport* transport, NcclTerms terms, std::unique_ptr<Doorbell> own_bell,
           std::unique_ptr<FrameLink> headers, Doorbell* user_bell, OnReady on_ready);
  ~NcclLink() override;  // does not wait for NCCL

  // Errors: DeadlineExceeded (a transfer or the setup hangs), DataLoss and InvalidArgument (the
  // other end breaks the protocol), those of NCCL.
  absl::Status Send(const google::protobuf::MessageLite& header, Pieces tensor) override;
  absl::StatusOr<bool> Poll(int max_frames, OnFrame on_frame) override;
  size_t num_waiting() const override;

 private:
  const std::shared_ptr<NcclSession> session_;
};

// What a worker and a shard must have in common to agree.
struct NcclPeers {
  std::string fingerprint;  // of the model
  uint64_t placement_epoch = 0;
  int hidden_size = 0;
};

// A worker's side of agreeing on such a link.
class NcclOffering {
 public:
  // Errors: those of NCCL, and the system's, which may have no memory to share.
  static absl::StatusOr<NcclOffering> Make(NcclTransport* transport, const NcclPeers& peers,
                                           bool fp8_dispatches);

  const v1::NcclOffer& offer() const { return offer_; }

  // Joins as the shard's answer says. Call once. Errors: InvalidArgument (the answer makes no
  // sense), FailedPrecondition (the shard has other memory than ours).
  absl::StatusOr<std::unique_ptr<FrameLink>> Open(const v1::NcclAnswer& answer, Doorbell* user_bell,
                                                  NcclLink::OnReady on_ready);

 private:
  NcclOffering(NcclTransport* transport, std::unique_ptr<Doorbell> bell,
               SharedMemoryOffering headers)
      : transport_(transport), bell_(std::move(bell)), headers_(std::move(headers)) {}

  NcclTransport* transport_;
  std::unique_ptr<Doorbell> bell_;  // of the link's thread
  SharedMemoryOffering headers_;
  v1::NcclOffer offer_;
  NcclTerms terms_;
};

// A shard's side: begins to join, and says so in `answer`. `user_bell` is where the thread that
// will use the link sleeps. Errors: FailedPrecondition (another model, placement or NCCL; the
// memory is out of reach), InvalidArgument (sizes or ids that make no sense).
absl::StatusOr<std::unique_ptr<FrameLink>> AcceptNccl(const v1::NcclOffer& offer,
                                                      NcclTransport* transport,
                                                      const NcclPeers& peers, Doorbell* user_bell,
                                                      v1::NcclAnswer* answer);

}  // namespace conclave
