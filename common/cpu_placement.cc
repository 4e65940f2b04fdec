#include "common/cpu_placement.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/id_list.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// From linux/mempolicy.h, which belongs to the kernel's own headers.
constexpr int kMempolicyPreferred = 1;

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

absl::Status PreferMemoryOf(int node) {
  constexpr int kWordBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> mask(node / kWordBits + 1);
  mask[node / kWordBits] = 1UL << (node % kWordBits);
  // The kernel reads one bit less than it is told.
  const unsigned long num_bits = mask.size() * kWordBits + 1;
  if (syscall(SYS_set_mempolicy, kMempolicyPreferred, mask.data(), num_bits) == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("cannot prefer the memory of NUMA node ", node, ": ", strerror(errno)));
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCpuList(absl::string_view text) {
  return ParseIdList("cpu", text, CPU_SETSIZE);
}

absl::StatusOr<std::vector<int>> CpusOfNumaNode(int node, const std::string& root) {
  const std::string nodes = root + "/sys/devices/system/node/";
  const std::string cpus = FirstLine(absl::StrCat(nodes, "node", node, "/cpulist"));
  if (node >= 0 && !cpus.empty()) return ParseCpuList(cpus);
  const std::string online = FirstLine(nodes + "has_cpu");
  return errors::OutOfRange("numa_node", node,
                            online.empty() ? "none: the kernel shows no NUMA nodes"
                                           : absl::StrCat("one with CPUs, ", online));
}

absl::StatusOr<std::vector<int>> AllowedCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return absl::InternalError(absl::StrCat("sched_getaffinity: ", strerror(errno)));
  }
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

absl::Span<const int> ThreadCpus(const CpuPlacementOptions& options, absl::Span<const int> cpus) {
  return options.cpus.empty() && options.numa_node < 0 ? absl::Span<const int>() : cpus;
}

bool PinThisThread(absl::Span<const int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

namespace {

// The CPUs that PlaceProcess returns.
absl::StatusOr<std::vector<int>> ChooseCpus(const CpuPlacementOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int> allowed, AllowedCpus());
  if (options.cpus.empty() && options.numa_node < 0) return allowed;
  std::vector<int> chosen;
  if (!options.cpus.empty()) {
    ASSIGN_OR_RETURN(chosen, ParseCpuList(options.cpus));
  }
  if (options.numa_node >= 0) {
    ASSIGN_OR_RETURN(const std::vector<int> of_node, CpusOfNumaNode(options.numa_node));
    if (chosen.empty()) chosen = of_node;
  }
  for (const int cpu : chosen) {
    if (std::binary_search(allowed.begin(), allowed.end(), cpu)) continue;
    return errors::OutOfRange("cpu", cpu,
                              absl::StrCat("those this process may use, ", FormatIdList(allowed)));
  }
  return chosen;
}

}  // namespace

absl::Status CheckPlacement(const CpuPlacementOptions& options) {
  return ChooseCpus(options).status();
}

absl::StatusOr<std::vector<int>> PlaceProcess(const CpuPlacementOptions& options) {
  ASSIGN_OR_RETURN(std::vector<int> chosen, ChooseCpus(options));
  if (options.cpus.empty() && options.numa_node < 0) return chosen;
  if (options.numa_node >= 0) RETURN_IF_ERROR(PreferMemoryOf(options.numa_node));
  if (!PinThisThread(chosen)) {
    return absl::InternalError(
        absl::StrCat("cannot run on cpus ", FormatIdList(chosen), ": ", strerror(errno)));
  }
  return chosen;
}

}  // namespace conclave
