#pragma once

#include "absl/status/statusor.h"
#include "worker/device_decoder.h"

namespace conclave {

// The OpenDeviceDecoder of "cuda" and "cuda:N". What the device may hold is memory_utilization of
// its memory less what is in use already; weights and workspace are taken from it first, KV blocks
// get the rest.
absl::StatusOr<DeviceDecoder> OpenCudaDecoder(const DeviceDecoderRequest& request);

}  // namespace conclave
