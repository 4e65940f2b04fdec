#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// Where a process computes and keeps its memory: --cpus and --numa_node.
struct CpuPlacementOptions {
  std::string cpus;    // "0-15,32-47"; empty: any that the process may use
  int numa_node = -1;  // CPUs (unless `cpus` names them) and memory of this node; -1: any
};

// Reads "0-15,32-47" as rising ids, as the kernel writes such lists. InvalidArgument as ParseIdList
// has it, or an id not below CPU_SETSIZE.
absl::StatusOr<std::vector<int>> ParseCpuList(absl::string_view text);

// The CPUs of a NUMA node. InvalidArgument naming the nodes there are. `root` stands before /sys,
// for tests.
absl::StatusOr<std::vector<int>> CpusOfNumaNode(int node, const std::string& root = "");

// The CPUs that the calling thread may run on, rising.
absl::StatusOr<std::vector<int>> AllowedCpus();

// The errors of PlaceProcess that can be known without changing anything.
absl::Status CheckPlacement(const CpuPlacementOptions& options);

// Restricts the calling thread, and the threads it starts from now on, to the chosen CPUs, and lets
// memory that they touch first come from the node while it has some. Call it before any other
// thread is started. Returns the CPUs that may be used, all that were allowed before if nothing was
// chosen. InvalidArgument: the errors above, or a CPU that this process may not use, with those it
// may. Internal: the kernel refused.
absl::StatusOr<std::vector<int>> PlaceProcess(const CpuPlacementOptions& options);

// What a ThreadPool pins its threads to: `cpus`, as PlaceProcess returned them, if any were chosen,
// and nothing otherwise: the kernel then moves threads out of each other's way.
absl::Span<const int> ThreadCpus(const CpuPlacementOptions& options, absl::Span<const int> cpus);

// Restricts the calling thread to these CPUs; false if the kernel refused.
bool PinThisThread(absl::Span<const int> cpus);

}  // namespace conclave
