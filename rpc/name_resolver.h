#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace conclave {

// "dns:///NAME:PORT", "dns:NAME:PORT" or "dns://SERVER[:PORT]/NAME:PORT" taken apart.
struct DnsTarget {
  std::string server;  // the name server to ask; empty: as the system is set up
  std::string name;
  int port = 0;
};

// Whether a gRPC target is a DNS name in so many words, behind which any number of peers may stand.
bool IsDnsTarget(absl::string_view target);
// InvalidArgument naming the text if it is not one of the forms above, with a port.
absl::StatusOr<DnsTarget> ParseDnsTarget(absl::string_view target);
// InvalidArgument if a peer's target is empty or, with "dns:", does not parse.
absl::Status CheckPeerTarget(absl::string_view target);

// Asks where the peers behind a name are. One thread resolves; Stop may come from any other.
class NameResolver {
 public:
  virtual ~NameResolver() = default;

  // The addresses of a DnsTarget as gRPC targets, "10.0.0.7:50051" or "[fd00::7]:50051": rising,
  // distinct, not empty; as many as fit into a DNS message. Blocks, at most until the deadline.
  // Errors: InvalidArgument, NotFound (no such name, or no address), DeadlineExceeded, Unavailable.
  virtual absl::StatusOr<std::vector<std::string>> Resolve(const std::string& target,
                                                           absl::Time deadline) = 0;
  // A Resolve in progress, and every later one, returns Cancelled soon.
  virtual void Stop() = 0;
};

// Asks as gRPC does, with c-ares: the hosts file, then the name servers of resolv.conf with its
// search list, both read anew for each question. Nothing is cached. A name with addresses of both
// families gives those of IPv4 alone: one peer in two networks is still one.
std::unique_ptr<NameResolver> MakeDnsResolver();

}  // namespace conclave
