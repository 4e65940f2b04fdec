#include "rpc/channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <utility>

#include "common/limits.h"
#include "common/status_macros.h"
#include "rpc/pem_file.h"

namespace conclave {
namespace {

grpc::ChannelArguments MakeArguments(Traffic traffic) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(limits::kMaxGrpcMessageBytes);
  arguments.SetMaxSendMessageSize(limits::kMaxGrpcMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  // Besides its name, gRPC gives every attempt to connect at least this long.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  // A name is asked again as soon as that after a loss (gRPC's default: 30 s), so that a peer that
  // came back under another address is found. c-ares caches nothing itself.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1'000);
  // Channels of equal arguments would share one connection, and with it its lock and its window.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  for (const auto& [key, value] : TrafficArguments(traffic)) arguments.SetInt(key, value);
  return arguments;
}

// gRPC runs callbacks on threads that live while a channel or a server uses them; the last user
// joins them as it goes. A call holds its channel, so that the last user may be a call that ends on
// one of those very threads, and the process then aborts (gRPC 1.51). The call made here, which is
// never started, uses them for ever.
void KeepCallbackThreads() {
  struct IdleCall {
    grpc::ClientContext context;
    grpc::ByteBuffer request, response;
    grpc::ClientUnaryReactor reactor;
  };
  // Atomic, so that the pointer is kept although nobody reads it: what it points to is no leak.
  [[maybe_unused]] static std::atomic<IdleCall*> idle = [] {
    auto* call = new IdleCall;
    grpc::GenericStub stub(
        grpc::CreateChannel("unix:/nonexistent", grpc::InsecureChannelCredentials()));
    stub.PrepareUnaryCall(&call->context, "/idle", {}, &call->request, &call->response,
                          &call->reactor);
    return call;
  }();
}

std::shared_ptr<grpc::Channel> MakeChannelWith(
    const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    Traffic traffic) {
  KeepCallbackThreads();
  return grpc::CreateCustomChannel(target, credentials, MakeArguments(traffic));
}

}  // namespace

std::vector<std::pair<std::string, int>> TrafficArguments(Traffic traffic) {
  if (traffic != Traffic::kTensors) return {};
  // 1 MiB round trips on loopback: 1.1-2.7 ms with gRPC's defaults, 0.4 ms with these. The window
  // of 64 MiB holds 16 of the largest expert frames; 16 MiB - 1 is HTTP/2's largest frame.
  return {{GRPC_ARG_HTTP2_BDP_PROBE, 0},
          {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 20},
          {GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1}};
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, Traffic traffic) {
  return MakeChannelWith(target, grpc::InsecureChannelCredentials(), traffic);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& target,
                                                           const ChannelOptions& options) {
  if (options.tls_ca_file.empty()) return MakeChannel(target, options.traffic);
  grpc::SslCredentialsOptions tls;
  ASSIGN_OR_RETURN(tls.pem_root_certs, ReadPemFile(options.tls_ca_file));
  return MakeChannelWith(target, grpc::SslCredentials(tls), options.traffic);
}

}  // namespace conclave
