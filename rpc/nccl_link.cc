#include "rpc/nccl_link.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "rpc/nccl_session.h"

namespace conclave {
namespace {

constexpr char kBf16Rows[] = "bf16";
constexpr char kFp8Rows[] = "fp8_e4m3";

absl::Status CheckSizes(uint64_t frame_bytes, uint32_t num_frames) {
  if (frame_bytes < limits::kMinNcclFrameBytes || frame_bytes > limits::kNcclFrameBytes) {
    return errors::OutOfRange(
        "frame_bytes", frame_bytes,
        absl::StrCat(limits::kMinNcclFrameBytes, "..", limits::kNcclFrameBytes));
  }
  if (num_frames < 1 || num_frames > limits::kMaxNcclFrames) {
    return errors::OutOfRange("num_frames", num_frames,
                              absl::StrCat("1..", limits::kMaxNcclFrames));
  }
  return absl::OkStatus();
}

absl::Status CheckPeers(const v1::NcclOffer& offer, const NcclPeers& peers) {
  if (offer.fingerprint() != peers.fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("fingerprint is ", offer.fingerprint(), ", want ", peers.fingerprint));
  }
  if (offer.placement_epoch() != peers.placement_epoch) {
    return errors::StalePlacement(offer.placement_epoch(), peers.placement_epoch);
  }
  return absl::OkStatus();
}

}  // namespace

NcclLink::NcclLink(NcclTransport* transport, NcclTerms terms, std::unique_ptr<Doorbell> own_bell,
                   std::unique_ptr<FrameLink> headers, Doorbell* user_bell, OnReady on_ready)
    : session_(std::make_shared<NcclSession>(transport, std::move(terms), std::move(own_bell),
                                             std::move(headers), user_bell, std::move(on_ready))) {
  transport->Run([session = session_] { session->Main(); });
}

NcclLink::~NcclLink() { session_->Stop(); }

absl::Status NcclLink::Send(const google::protobuf::MessageLite& header, Pieces tensor) {
  std::string serialized;
  CHECK(header.SerializeToString(&serialized)) << "the header passes 2 GiB";
  return session_->Send(std::move(serialized), tensor);
}

absl::StatusOr<bool> NcclLink::Poll(int max_frames, OnFrame on_frame) {
  return session_->Poll(max_frames, on_frame);
}

size_t NcclLink::num_waiting() const { return session_->num_waiting(); }

absl::StatusOr<NcclOffering> NcclOffering::Make(NcclTransport* transport, const NcclPeers& peers,
                                                bool fp8_dispatches) {
  auto bell = std::make_unique<Doorbell>();
  if (!bell->is_shared()) {
    return absl::FailedPreconditionError("this system gives no memory to share");
  }
  ASSIGN_OR_RETURN(SharedMemoryOffering headers, SharedMemoryOffering::Make(*bell));
  NcclOffering offering(transport, std::move(bell), std::move(headers));
  NcclTerms& terms = offering.terms_;
  ASSIGN_OR_RETURN(terms.dispatch_id, transport->api().NewUniqueId());
  ASSIGN_OR_RETURN(terms.combine_id, transport->api().NewUniqueId());
  terms.fp8_dispatches = fp8_dispatches;
  terms.hidden_size = peers.hidden_size;
  std::random_device random;
  terms.hello = static_cast<uint64_t>(random()) << 32 | random();
  v1::NcclOffer& offer = offering.offer_;
  *offer.mutable_headers() = offering.headers_.offer();
  offer.set_dispatch_id(terms.dispatch_id);
  offer.set_combine_id(terms.combine_id);
  offer.set_frame_bytes(transport->options().frame_bytes);
  offer.set_num_frames(static_cast<uint32_t>(transport->options().num_frames));
  offer.set_dispatch_rows(fp8_dispatches ? kFp8Rows : kBf16Rows);
  offer.set_fingerprint(peers.fingerprint);
  offer.set_placement_epoch(peers.placement_epoch);
  offer.set_hello(terms.hello);
  offer.set_nccl_version(static_cast<uint32_t>(transport->api().version()));
  return offering;
}

absl::StatusOr<std::unique_ptr<FrameLink>> NcclOffering::Open(const v1::NcclAnswer& answer,
                                                              Doorbell* user_bell,
                                                              NcclLink::OnReady on_ready) {
  RETURN_IF_ERROR(CheckSizes(answer.frame_bytes(), answer.num_frames()));
  if (answer.frame_bytes() > offer_.frame_bytes() || answer.num_frames() > offer_.num_frames()) {
    return absl::InvalidArgumentError("the shard answers with larger frames than were offered");
  }
  terms_.frame_bytes = answer.frame_bytes();
  terms_.num_frames = static_cast<int>(answer.num_frames());
  ASSIGN_OR_RETURN(std::unique_ptr<FrameLink> headers,
                   headers_.Open(answer.headers(), &transport_->pool()));
  return std::make_unique<NcclLink>(transport_, std::move(terms_), std::move(bell_),
                                    std::move(headers), user_bell, std::move(on_ready));
}

absl::StatusOr<std::unique_ptr<FrameLink>> AcceptNccl(const v1::NcclOffer& offer,
                                                      NcclTransport* transport,
                                                      const NcclPeers& peers, Doorbell* user_bell,
                                                      v1::NcclAnswer* answer) {
  RETURN_IF_ERROR(CheckPeers(offer, peers));
  RETURN_IF_ERROR(CheckSizes(offer.frame_bytes(), offer.num_frames()));
  const auto version = static_cast<uint32_t>(transport->api().version());
  if (offer.nccl_version() != version) {
    return absl::FailedPreconditionError(
        absl::StrCat("nccl_version is ", offer.nccl_version(), ", want ", version));
  }
  if (offer.dispatch_rows() != kBf16Rows && offer.dispatch_rows() != kFp8Rows) {
    return absl::InvalidArgumentError(absl::StrCat("dispatch_rows is \"", offer.dispatch_rows(),
                                                   "\", want \"", kBf16Rows, "\" or \"", kFp8Rows,
                                                   "\""));
  }
  if (offer.dispatch_id() == offer.combine_id()) {
    return absl::InvalidArgumentError("dispatch_id and combine_id are the same, want two");
  }
  auto bell = std::make_unique<Doorbell>();
  ASSIGN_OR_RETURN(
      std::unique_ptr<FrameLink> headers,
      AcceptSharedMemory(offer.headers(), *bell, &transport->pool(), answer->mutable_headers()));
  NcclTerms terms;
  terms.rank = 1;
  terms.dispatch_id = offer.dispatch_id();
  terms.combine_id = offer.combine_id();
  terms.frame_bytes = std::min<size_t>(offer.frame_bytes(), transport->options().frame_bytes);
  terms.num_frames =
      std::min(static_cast<int>(offer.num_frames()), transport->options().num_frames);
  terms.fp8_dispatches = offer.dispatch_rows() == kFp8Rows;
  terms.hidden_size = peers.hidden_size;
  terms.hello = offer.hello();
  answer->set_frame_bytes(terms.frame_bytes);
  answer->set_num_frames(static_cast<uint32_t>(terms.num_frames));
  return std::make_unique<NcclLink>(transport, std::move(terms), std::move(bell),
                                    std::move(headers), user_bell, nullptr);
}

}  // namespace conclave
