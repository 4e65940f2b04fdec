#pragma once

#include <string>
#include <utility>
#include <vector>

namespace conclave {

// What a server says on stdout, one line of JSON each, flushed, so that whoever started it learns
// the ports it picked and when it serves. Nothing else goes to stdout.

// {"event":"listening","grpc":"127.0.0.1:43211","metrics":"127.0.0.1:40001"}: as soon as the
// ports are bound. Endpoints are printed in the order given; "metrics" is where /metrics is, and a
// server that has an API beside it there says so with "http" and the same address.
void PrintListening(const std::vector<std::pair<std::string, std::string>>& endpoints);

// {"event":"ready"}: as soon as health says SERVING.
void PrintReady();

}  // namespace conclave
