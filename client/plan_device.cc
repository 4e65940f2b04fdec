#include "client/plan_device.h"

#include <cmath>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/memory_plan.h"

namespace conclave {
namespace {

constexpr double kMiBPerGiB = 1024;

// Bandwidth and dense TFLOP/s from NVIDIA's data sheets (where one gives the figure with sparsity,
// half of it), the SXM variants; memory in MiB as nvidia-smi reports it.
//   H100, H800: data sheet of the H100 SXM: 3.35 TB/s, 1,979 BF16 and 3,958 FP8 with sparsity.
//   H200:       data sheet: 4.8 TB/s, the H100's arithmetic.
//   H20:        as published by resellers, NVIDIA has no public sheet: 4.0 TB/s, 148 and 296. For
//               the 141 GB variant figures of 4.0 to 4.8 TB/s are quoted; the lower one is taken.
//   A100:       data sheet: 2,039 GB/s (80 GB) and 1,555 GB/s (40 GB), 312 BF16, no FP8.
//   L20:        data sheet: 864 GB/s, 119.5 BF16, 239 FP8.
struct GpuSheet {
  const char* name;
  double memory_gib, bandwidth_tbs, bf16_tflops, fp8_tflops;
};
constexpr GpuSheet kGpus[] = {
    {"h20-96gb", 97871 / kMiBPerGiB, 4.0, 148, 296},
    {"h20-141gb", 143771 / kMiBPerGiB, 4.0, 148, 296},
    {"h100", 81559 / kMiBPerGiB, 3.35, 989, 1979},
    {"h200", 143771 / kMiBPerGiB, 4.8, 989, 1979},
    {"h800", 81559 / kMiBPerGiB, 3.35, 989, 1979},
    {"a100-80gb", 81920 / kMiBPerGiB, 2.039, 312, 0},
    {"a100-40gb", 40960 / kMiBPerGiB, 1.555, 312, 0},
    {"l20", 46068 / kMiBPerGiB, 0.864, 119.5, 239},
};

absl::Status CheckNumber(const char* flag, const std::optional<double>& value, double most) {
  if (!value.has_value() || (*value > 0 && *value <= most)) return absl::OkStatus();
  return errors::OutOfRange(flag, *value, absl::StrCat("more than 0 and at most ", most));
}

absl::StatusOr<PlanDevice> Cpu(const DeviceFlags& flags) {
  PlanDevice device{.name = "cpu", .is_cpu = true};
  if (!flags.bandwidth_tbs) {
    return absl::InvalidArgumentError(
        "--host_bandwidth_gbs is not given, want what the server's memory is read with "
        "(kernels_bench prints this machine's)");
  }
  if (flags.memory_gib) {
    device.memory_gib = *flags.memory_gib;
  } else {
    ASSIGN_OR_RETURN(const int64_t bytes, AvailableMemoryBytes());
    device.memory_gib = std::ldexp(static_cast<double>(bytes), -30);
  }
  return device;
}

absl::StatusOr<PlanDevice> Gpu(const DeviceFlags& flags) {
  if (!flags.gpu.empty()) return KnownGpu(flags.gpu);
  if (flags.memory_gib && flags.bandwidth_tbs && flags.tflops) return PlanDevice{.name = "gpu"};
  return absl::InvalidArgumentError(
      absl::StrCat("no device is given, want --gpu (", KnownGpuNames(),
                   "), all of --gpu_memory_gib, --gpu_bandwidth_tbs and --gpu_tflops, or --cpu"));
}

}  // namespace

std::string KnownGpuNames() {
  return absl::StrJoin(std::begin(kGpus), std::end(kGpus), ", ",
                       [](std::string* out, const GpuSheet& gpu) { out->append(gpu.name); });
}

absl::StatusOr<PlanDevice> KnownGpu(absl::string_view name) {
  const std::string wanted = absl::AsciiStrToLower(name);
  for (const GpuSheet& gpu : kGpus) {
    if (gpu.name != wanted) continue;
    return PlanDevice{.name = gpu.name,
                      .memory_gib = gpu.memory_gib,
                      .bandwidth_tbs = gpu.bandwidth_tbs,
                      .bf16_tflops = gpu.bf16_tflops,
                      .fp8_tflops = gpu.fp8_tflops};
  }
  return absl::NotFoundError(
      absl::StrCat("--gpu is \"", name, "\", want one of ", KnownGpuNames()));
}

absl::StatusOr<PlanDevice> ChooseDevice(const DeviceFlags& flags, bool fp8) {
  if (flags.cpu && !flags.gpu.empty()) {
    return absl::InvalidArgumentError("--cpu and --gpu are given, want one of them");
  }
  // A petabyte, a petabyte a second and an exaFLOP/s: whatever is larger is a slip of units.
  RETURN_IF_ERROR(CheckNumber("memory in GiB", flags.memory_gib, 1 << 20));
  RETURN_IF_ERROR(CheckNumber("bandwidth in TB/s", flags.bandwidth_tbs, 1000));
  RETURN_IF_ERROR(CheckNumber("TFLOP/s", flags.tflops, 1e6));
  ASSIGN_OR_RETURN(PlanDevice device, flags.cpu ? Cpu(flags) : Gpu(flags));
  if (flags.memory_gib) device.memory_gib = *flags.memory_gib;
  if (flags.bandwidth_tbs) device.bandwidth_tbs = *flags.bandwidth_tbs;
  if (flags.tflops && flags.cpu) {
    // FP8 weights are multiplied as BF16; int8 instructions do twice as much as BF16's, VNNI beside
    // AVX-512's as well as AMX's.
    device.bf16_tflops = *flags.tflops;
    device.int8_tops = 2 * *flags.tflops;
  } else if (flags.tflops) {
    // Of the type that is planned for. FP8 instructions do twice BF16's on all that have them.
    device.bf16_tflops = fp8 ? *flags.tflops / 2 : *flags.tflops;
    device.fp8_tflops = fp8 ? *flags.tflops : 0;
  }
  return device;
}

}  // namespace conclave
