#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"

// Matrix products. Device memory, row-major; asynchronous on `stream`, allocates nothing.
//
// But with wgmma, a product's sum over k is taken in eighths of K (rounded up to whole 32s), each
// on the tensor cores in rising k, then the eighths in order. Both kernels do exactly that, so that
// a row's result depends neither on the other rows, nor on how many there are, by construction; it
// holds for one kind of device, as the order inside one mma is the device's own.
namespace conclave::cuda {

enum class WeightFormat {
  kBf16,
  kFp8Block128,  // E4M3, one FP32 scale for each 128 x 128 values
};

// One or several (experts') matrices of one shape, one after another.
struct DeviceMatrix {
  WeightFormat format = WeightFormat::kBf16;
  const void* values = nullptr;   // [num_matrices, out_features, in_features]
  const float* scales = nullptr;  // FP8: [num_matrices, ceil(out / 128), ceil(in / 128)]
  int64_t out_features = 0;
  int64_t in_features = 0;  // a multiple of 32
  int num_matrices = 1;

  int64_t value_bytes() const { return format == WeightFormat::kBf16 ? 2 : 1; }
  int64_t scale_columns() const { return (in_features + 127) / 128; }
  int64_t scale_rows() const { return (out_features + 127) / 128; }
};

// Which kernel computes it. Skinny reads weights straight into registers, for few rows, where
// memory is the limit; tiled shares them through shared memory, for many: both give the same bits.
// Wgmma is for more still, in BF16 and on Hopper (compute capability 9.0) alone, and sums in
// another order.
enum class GemmKernel { kAuto, kSkinny, kTiled, kWgmma };

struct DeviceLinearArgs {
  const BFloat16* input = nullptr;  // [num_rows, in_features], 16-byte aligned
  DeviceMatrix weight = {};         // one matrix
  float* output = nullptr;          // out [num_rows, out_features]
  int64_t num_rows = 0;
  bool accumulate = false;  // output += the product: the residual stream
  GemmKernel kernel = GemmKernel::kAuto;
};

// output[r, o] = sum over k of input[r, k] * weight[o, k], FP32. FP8 weights are multiplied by
// their scale and rounded to BF16 first, to the bits that model/weight_reader.h widens them to.
// Bytes: the weight once for each 32 rows (skinny), 64 (tiled) or 128 (wgmma); L2 has most of
// those. FLOPs: 2 * num_rows * out_features * in_features. Errors: InvalidArgument (null pointer,
// size out of range), Internal (launch failed).
absl::Status Linear(const DeviceLinearArgs& args, const Stream& stream);

struct DeviceExpertFfnArgs {
  const BFloat16* hidden_states = nullptr;  // [num_rows, hidden_size]
  const int32_t* pair_rows = nullptr;       // [max_pairs]: row of each pair, sorted by expert
  const int32_t* expert_offsets = nullptr;  // [num_experts + 1]: first pair of each expert
  DeviceMatrix gate_up_proj = {};    // num_experts of [2 * moe_intermediate_size, hidden_size]
  DeviceMatrix down_proj = {};       // num_experts of [hidden_size, moe_intermediate_size]
  BFloat16* intermediate = nullptr;  // workspace [max_pairs, moe_intermediate_size]
  BFloat16* output = nullptr;        // out [max_pairs, hidden_size], in the pairs' order
  // At least expert_offsets[num_experts], which only the device knows; sizes the launch.
  int64_t max_pairs = 0;
  GemmKernel kernel = GemmKernel::kAuto;
  // Lets kAuto choose wgmma for many pairs: a pair's bits then depend on how many there
  // are.
  bool may_use_wgmma = false;
};

// As conclave::ExpertFfn: down_proj(silu(gate_proj x) * up_proj x), FP32 sums, BF16 after SwiGLU
// and at the end. But for may_use_wgmma, a pair's result depends on its row and expert alone, by
// construction. In FP8 a
// moe_intermediate_size that is no multiple of 128 is InvalidArgument: up_proj's scales would not
// begin with a row of blocks.
absl::Status ExpertFfn(const DeviceExpertFfnArgs& args, const Stream& stream);

}  // namespace conclave::cuda
