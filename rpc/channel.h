#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave {

// What a connection mostly carries; both ends choose the same.
enum class Traffic {
  kTokens,   // many small messages: gRPC's own windows
  kTensors,  // megabytes a message
};

struct ChannelOptions {
  Traffic traffic = Traffic::kTokens;
  std::string tls_ca_file;  // PEM of the authorities to trust; empty: no TLS
};

// A connection of its own to `target` ("host:port", "dns:///name:port", "unix:path"). It connects
// on first use, pings every 10 s, so that a host that vanished is noticed within 15 s, and after a
// loss connects again within 50 ms to 1 s of the peer's return. A name is resolved anew after every
// loss: a peer may return under another address, or another may stand under the name.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           Traffic traffic = Traffic::kTokens);
// The same with TLS. InvalidArgument if tls_ca_file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& target,
                                                           const ChannelOptions& options);

// HTTP/2 settings of one kind of traffic, alike for both ends.
std::vector<std::pair<std::string, int>> TrafficArguments(Traffic traffic);

}  // namespace conclave
