#include "rpc/transport_choice.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace conclave {

absl::StatusOr<TransportChoice> ChooseTransports(absl::string_view expert_transport,
                                                 absl::string_view shared_memory) {
  TransportChoice choice;
  if (shared_memory != "auto" && shared_memory != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--shared_memory is ", shared_memory, ", want auto or off"));
  }
  choice.shared_memory = shared_memory == "auto" && expert_transport != "grpc";
  if (expert_transport == "nccl") {
    choice.nccl = TransportChoice::Nccl::kRequired;
  } else if (expert_transport != "auto") {
    choice.nccl = TransportChoice::Nccl::kOff;
    if (expert_transport != "shared_memory" && expert_transport != "grpc") {
      return absl::InvalidArgumentError(absl::StrCat("--expert_transport is ", expert_transport,
                                                     ", want auto, nccl, shared_memory or grpc"));
    }
  }
  if (shared_memory == "off") {
    if (expert_transport == "nccl" || expert_transport == "shared_memory") {
      return absl::InvalidArgumentError(absl::StrCat("--expert_transport is ", expert_transport,
                                                     " and --shared_memory is off, want auto"));
    }
    choice.nccl = TransportChoice::Nccl::kOff;
  }
  return choice;
}

absl::StatusOr<std::unique_ptr<NcclTransport>> OpenNcclTransport(
    TransportChoice::Nccl wanted,
    const std::function<absl::StatusOr<std::unique_ptr<NcclApi>>()>& open) {
  if (wanted == TransportChoice::Nccl::kOff) return nullptr;
  absl::StatusOr<std::unique_ptr<NcclApi>> api =
      open ? open() : absl::FailedPreconditionError("this program was built without NCCL");
  if (api.ok()) {
    LOG_INFO("NCCL {} is there", (*api)->version());
    return std::make_unique<NcclTransport>(*std::move(api));
  }
  if (wanted == TransportChoice::Nccl::kRequired) return api.status();
  LOG_DEBUG("NCCL is not used: {}", api.status().ToString());
  return nullptr;
}

}  // namespace conclave
