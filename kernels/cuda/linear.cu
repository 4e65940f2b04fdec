#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/linear.h"

namespace conclave::cuda {
namespace {

// From here on a group's rows fill half a tile of the tiled kernel.
constexpr int64_t kTiledRows = 33;
// The same for wgmma's tile of 128.
constexpr int64_t kWgmmaRows = 65;

absl::Status CheckMatrix(absl::string_view name, const DeviceMatrix& matrix) {
  RETURN_IF_ERROR(CheckRange(absl::StrCat(name, ".out_features"), matrix.out_features, 1,
                             limits::kMaxVocabSize));
  RETURN_IF_ERROR(CheckRange(absl::StrCat(name, ".in_features"), matrix.in_features, 1,
                             limits::kMaxHiddenSize));
  RETURN_IF_ERROR(CheckMultiple(absl::StrCat(name, ".in_features"), matrix.in_features, kChunk));
  RETURN_IF_ERROR(
      CheckRange(absl::StrCat(name, ".num_matrices"), matrix.num_matrices, 1, limits::kMaxExperts));
  RETURN_IF_ERROR(CheckNotNull({{absl::StrCat(name, ".values"), matrix.values}}));
  if (matrix.format == WeightFormat::kBf16) return absl::OkStatus();
  return CheckNotNull({{absl::StrCat(name, ".scales"), matrix.scales}});
}

GemmArgs ArgsFor(const DeviceMatrix& matrix) {
  GemmArgs args = {};
  args.values = static_cast<const unsigned char*>(matrix.values);
  args.scales = matrix.scales;
  args.in_features = matrix.in_features;
  args.out_features = matrix.out_features;
  args.num_groups = matrix.num_matrices;
  return args;
}

absl::Status LaunchGemm(const GemmArgs& args, WeightFormat format, bool swiglu, int64_t max_rows,
                        GemmKernel kernel, const Stream& stream) {
  if (kernel == GemmKernel::kWgmma) {
    return LaunchWgmmaGemm(args, format, swiglu, max_rows, stream);
  }
  const bool tiled = kernel == GemmKernel::kAuto ? max_rows >= kTiledRows * args.num_groups
                                                 : kernel == GemmKernel::kTiled;
  return tiled ? LaunchTiledGemm(args, format, swiglu, max_rows, stream)
               : LaunchSkinnyGemm(args, format, swiglu, max_rows, stream);
}

}  // namespace

absl::Status Linear(const DeviceLinearArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckMatrix("weight", args.weight));
  RETURN_IF_ERROR(CheckRange("weight.num_matrices", args.weight.num_matrices, 1, 1));
  RETURN_IF_ERROR(CheckRange("num_rows", args.num_rows, 0, kMaxRows));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"input", args.input}, {"output", args.output}}));
  GemmArgs gemm = ArgsFor(args.weight);
  gemm.input = args.input;
  gemm.output_f32 = args.output;
  gemm.num_rows = args.num_rows;
  gemm.accumulate = args.accumulate;
  return LaunchGemm(gemm, args.weight.format, /*swiglu=*/false, args.num_rows, args.kernel, stream);
}

absl::Status ExpertFfn(const DeviceExpertFfnArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckMatrix("gate_up_proj", args.gate_up_proj));
  RETURN_IF_ERROR(CheckMatrix("down_proj", args.down_proj));
  const int64_t width = args.down_proj.in_features;
  RETURN_IF_ERROR(CheckRange("gate_up_proj.out_features", args.gate_up_proj.out_features, 2 * width,
                             2 * width));
  RETURN_IF_ERROR(CheckRange("down_proj.out_features", args.down_proj.out_features,
                             args.gate_up_proj.in_features, args.gate_up_proj.in_features));
  RETURN_IF_ERROR(CheckRange("down_proj.num_matrices", args.down_proj.num_matrices,
                             args.gate_up_proj.num_matrices, args.gate_up_proj.num_matrices));
  if (args.gate_up_proj.format == WeightFormat::kFp8Block128) {
    RETURN_IF_ERROR(CheckMultiple("moe_intermediate_size in FP8", width, 128));
  }
  RETURN_IF_ERROR(CheckRange("max_pairs", args.max_pairs, 0, kMaxRows));
  if (args.max_pairs == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"hidden_states", args.hidden_states},
                                {"pair_rows", args.pair_rows},
                                {"expert_offsets", args.expert_offsets},
                                {"intermediate", args.intermediate},
                                {"output", args.output}}));
  GemmKernel kernel = args.kernel;
  if (kernel == GemmKernel::kAuto && args.may_use_wgmma &&
      args.max_pairs >= kWgmmaRows * args.gate_up_proj.num_matrices) {
    kernel = GemmKernel::kWgmma;
  }
  GemmArgs up = ArgsFor(args.gate_up_proj);
  up.input = args.hidden_states;
  up.row_ids = args.pair_rows;
  up.offsets = args.expert_offsets;
  up.output_bf16 = args.intermediate;
  RETURN_IF_ERROR(
      LaunchGemm(up, args.gate_up_proj.format, /*swiglu=*/true, args.max_pairs, kernel, stream));
  GemmArgs down = ArgsFor(args.down_proj);
  down.input = args.intermediate;
  down.offsets = args.expert_offsets;
  down.output_bf16 = args.output;
  return LaunchGemm(down, args.down_proj.format, /*swiglu=*/false, args.max_pairs, kernel, stream);
}

}  // namespace conclave::cuda
