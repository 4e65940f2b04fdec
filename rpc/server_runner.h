#pragma once

#include <grpcpp/impl/codegen/service_type.h>
#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/channel.h"

namespace conclave {

// Asked of grpc.health.v1 under this name, a server is SERVING while its process answers at all:
// also while it loads or drains. For an orchestrator that would restart it otherwise.
inline constexpr char kLivenessService[] = "liveness";

struct ServerOptions {
  std::string listen;                    // "host:port", port 0 picks a free one; or "unix:path"
  std::vector<grpc::Service*> services;  // borrowed; must outlive the runner
  Traffic traffic = Traffic::kTokens;
  std::string tls_cert_file;  // PEM, with tls_key_file; both empty: no TLS
  std::string tls_key_file;
};

// One gRPC server with what every Conclave server has: limits, keepalive, grpc.health.v1,
// reflection, a drain.
class ServerRunner {
 public:
  // Binds and serves at once; health says NOT_SERVING until SetServing(true). Unavailable naming
  // the address if it cannot be bound (two servers never share a port), InvalidArgument for
  // certificate files that cannot be read.
  static absl::StatusOr<std::unique_ptr<ServerRunner>> Start(const ServerOptions& options);

  // Stops at once, cancelling what runs, unless DrainAndStop was called.
  ~ServerRunner();
  ServerRunner(const ServerRunner&) = delete;
  ServerRunner& operator=(const ServerRunner&) = delete;

  // What grpc.health.v1 answers for the server and for each service but liveness. Any thread.
  void SetServing(bool serving);

  // NOT_SERVING, then no new calls, then waits until the running ones have finished; those that
  // have not after `deadline` are cancelled. Services that hold streams open end them themselves.
  // Not to be called from a gRPC thread.
  void DrainAndStop(absl::Duration deadline);

  int port() const { return port_; }                       // 0 for a unix socket
  const std::string& address() const { return address_; }  // as clients spell it

 private:
  ServerRunner(std::unique_ptr<grpc::Server> server, int port, std::string address);

  std::unique_ptr<grpc::Server> server_;
  const int port_;
  const std::string address_;
};

}  // namespace conclave
