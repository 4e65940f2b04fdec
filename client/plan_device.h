#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A card or, with is_cpu, a server's processors: what a plan must know of them.
struct PlanDevice {
  std::string name;
  double memory_gib = 0;     // as nvidia-smi and free report it
  double bandwidth_tbs = 0;  // read bandwidth of the memory, 10^12 bytes/s
  double bf16_tflops = 0;    // dense, no sparsity; 0: not known, computing then costs no time
  double fp8_tflops = 0;     // 0: no FP8 instructions, BF16's are used
  double int8_tops = 0;      // the same of int8, with which int8 and int4 weights are multiplied
  bool is_cpu = false;
};

// GPUs known by name: h20-96gb, h20-141gb, h100, h200, h800, a100-80gb, a100-40gb, l20. NotFound
// listing them for any other (letter case does not matter).
absl::StatusOr<PlanDevice> KnownGpu(absl::string_view name);
std::string KnownGpuNames();  // separated by ", "

struct DeviceFlags {
  std::string gpu = "";  // name; empty: described by the numbers
  bool cpu = false;
  // Of a card or a host; given beside a name they replace what is known.
  std::optional<double> memory_gib = std::nullopt;
  std::optional<double> bandwidth_tbs = std::nullopt;
  std::optional<double> tflops = std::nullopt;
};

// InvalidArgument: neither --gpu nor --cpu nor numbers, both, a number out of range, or numbers
// that are missing. Memory of a CPU that is not given is what this machine has available now.
absl::StatusOr<PlanDevice> ChooseDevice(const DeviceFlags& flags, bool fp8);

}  // namespace conclave
