// Share of a GPU's peak that each CUDA kernel reaches, at the shapes of Qwen3-30B-A3B. Bandwidth is
// compared with a copy on the device, measured in the same run; arithmetic with TFLOPS.
//
//   cuda_bench [DEVICE [TFLOPS]]      the peak in dense BF16: H100 SXM 989 (default), H20 148, A100
//   312
//   cuda_bench --deterministic=false [DEVICE [TFLOPS]]      beside them cuBLASLt and wgmma

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/fill.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe_routing.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {
namespace {

constexpr int kRounds = 7;  // of which the median is printed
constexpr int kCallsPerRound = 20;

constexpr int64_t kMaxBenchRows = 2048;

// Qwen3-30B-A3B.
constexpr int64_t kHidden = 2048, kQkv = 5120, kWidth = 768, kVocab = 151936;
constexpr int kExperts = 128, kTopK = 8, kHeads = 32, kKvHeads = 4, kHeadDim = 128;

class Bench {
 public:
  Bench(Stream stream, double tflops) : stream_(std::move(stream)), tflops_(tflops) {}

  const Stream& stream() const { return stream_; }
  // Null: only our own kernels are measured.
  LibraryGemm* library() const { return library_.get(); }
  bool has_wgmma() const { return has_wgmma_; }
  absl::Status OpenLibrary(const LibraryGemmOptions& options) {
    has_wgmma_ = options.compute_major == 9;
    ASSIGN_OR_RETURN(library_, LibraryGemm::Create(options));
    return absl::OkStatus();
  }
  // All arrays; nothing may be running.
  void Free() { memory_.clear(); }

  template <typename T>
  absl::StatusOr<T*> Array(int64_t count) {
    ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(count * sizeof(T)));
    RETURN_IF_ERROR(FillBytes(memory.As<char>(), 0, memory.bytes(), stream_));
    memory_.push_back(std::move(memory));
    return memory_.back().As<T>();
  }
  absl::StatusOr<BFloat16*> Weights(int64_t count) {
    ASSIGN_OR_RETURN(BFloat16* const values, Array<BFloat16>(count));
    RETURN_IF_ERROR(FillRandomBf16(values, count, 0.02f, 1, stream_));
    return values;
  }
  // `count` matrices in a row of one array.
  absl::StatusOr<DeviceMatrix> Matrices(WeightFormat format, int count, int64_t out, int64_t in) {
    DeviceMatrix matrix{
        .format = format, .out_features = out, .in_features = in, .num_matrices = count};
    if (format == WeightFormat::kBf16) {
      ASSIGN_OR_RETURN(matrix.values, Weights(count * out * in));
      return matrix;
    }
    ASSIGN_OR_RETURN(uint8_t* const values, Array<uint8_t>(count * out * in));
    RETURN_IF_ERROR(FillRandomFp8(values, count * out * in, 1, stream_));
    matrix.values = values;
    const int64_t num_scales = count * matrix.scale_rows() * matrix.scale_columns();
    ASSIGN_OR_RETURN(matrix.scales, Upload(std::vector<float>(num_scales, 0.03f)));
    return matrix;
  }
  template <typename T>
  absl::StatusOr<T*> Upload(const std::vector<T>& values) {
    ASSIGN_OR_RETURN(T* const array, Array<T>(values.size()));
    RETURN_IF_ERROR(CopyToDevice(array, values.data(), values.size() * sizeof(T), stream_));
    RETURN_IF_ERROR(stream_.Synchronize());
    return array;
  }

  // Median microseconds of one call. Recorded in a graph, so that launching is not measured.
  absl::StatusOr<double> Microseconds(const std::function<absl::Status(int call)>& op) {
    ASSIGN_OR_RETURN(const Graph graph, Graph::Record(stream_, [&] {
                       for (int call = 0; call < kCallsPerRound; ++call) {
                         RETURN_IF_ERROR(op(call));
                       }
                       return absl::OkStatus();
                     }));
    ASSIGN_OR_RETURN(const Event start, Event::Create());
    ASSIGN_OR_RETURN(const Event end, Event::Create());
    std::vector<double> times;
    for (int round = 0; round <= kRounds; ++round) {
      RETURN_IF_ERROR(start.Record(stream_));
      RETURN_IF_ERROR(graph.Launch(stream_));
      RETURN_IF_ERROR(end.Record(stream_));
      RETURN_IF_ERROR(stream_.Synchronize());
      ASSIGN_OR_RETURN(const double milliseconds, Event::MillisecondsBetween(start, end));
      if (round > 0) times.push_back(milliseconds * 1000 / kCallsPerRound);  // the first warms up
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  absl::Status MeasureCopy() {
    constexpr int64_t kBytes = int64_t{1} << 30;
    ASSIGN_OR_RETURN(char* const from, Array<char>(kBytes));
    ASSIGN_OR_RETURN(char* const to, Array<char>(kBytes));
    ASSIGN_OR_RETURN(const double us,
                     Microseconds([&](int) { return CopyOnDevice(to, from, kBytes, stream_); }));
    bandwidth_ = 2 * static_cast<double>(kBytes) / us / 1e6;  // TB/s, read and written
    std::printf("copy on the device: %.2f TB/s\n", bandwidth_);
    return absl::OkStatus();
  }

  absl::Status Report(const std::string& name, double bytes, double flops,
                      const std::function<absl::Status(int call)>& op) {
    ASSIGN_OR_RETURN(const double us, Microseconds(op));
    std::printf("%-44s %9.1f us  %5.1f %% of copy  %5.1f %% of %.0f TFLOP/s\n", name.c_str(), us,
                100 * bytes / us / 1e6 / bandwidth_, 100 * flops / us / 1e6 / tflops_, tflops_);
    return absl::OkStatus();
  }

 private:
  const Stream stream_;
  const double tflops_;
  double bandwidth_ = 1;
  std::vector<DeviceMemory> memory_;
  std::unique_ptr<LibraryGemm> library_;
  bool has_wgmma_ = false;
};

const char* NameOf(WeightFormat format) { return format == WeightFormat::kBf16 ? "" : " fp8"; }

absl::Status BenchLinear(Bench& bench, WeightFormat format, const char* name, int64_t out,
                         int64_t in) {
  // Eight copies in turn, so that a small weight does not stay in L2.
  constexpr int kCopies = 8;
  ASSIGN_OR_RETURN(const DeviceMatrix weights, bench.Matrices(format, kCopies, out, in));
  const auto copy = [&](int call) {
    DeviceMatrix weight = weights;
    weight.num_matrices = 1;
    const int64_t index = call % kCopies;
    weight.values =
        static_cast<const char*>(weights.values) + index * out * in * weights.value_bytes();
    if (weights.scales != nullptr) {
      weight.scales += index * weights.scale_rows() * weights.scale_columns();
    }
    return weight;
  };
  const int64_t most = out == kVocab ? 64 : kMaxBenchRows;
  ASSIGN_OR_RETURN(const BFloat16* const input, bench.Weights(most * in));
  ASSIGN_OR_RETURN(float* const output, bench.Array<float>(most * out));
  for (const int64_t rows : {1, 8, 16, 32, 64, 256, 2048}) {
    if (rows > most) continue;
    const double bytes = static_cast<double>(weights.value_bytes() * out * in) +
                         static_cast<double>(rows * (2 * in + 4 * out));
    const double flops = 2.0 * static_cast<double>(rows * out * in);
    const std::string what = std::string(name) + NameOf(format) + ", rows " + std::to_string(rows);
    const auto args = [&](int call) {
      return DeviceLinearArgs{
          .input = input, .weight = copy(call), .output = output, .num_rows = rows};
    };
    RETURN_IF_ERROR(bench.Report(what, bytes, flops,
                                 [&](int call) { return Linear(args(call), bench.stream()); }));
    if (bench.library() == nullptr) continue;
    // Once outside of the graph, for it to choose. FP8 with its activations' quantization.
    ASSIGN_OR_RETURN(const bool suits, bench.library()->Linear(args(0), bench.stream()));
    if (!suits) continue;
    RETURN_IF_ERROR(bench.Report(what + " (cuBLASLt)", bytes, flops, [&](int call) {
      return bench.library()->Linear(args(call), bench.stream()).status();
    }));
  }
  return absl::OkStatus();
}

absl::Status BenchExperts(Bench& bench, WeightFormat format) {
  const int64_t gate_up_size = 2 * kWidth * kHidden, down_size = kHidden * kWidth;
  ASSIGN_OR_RETURN(const DeviceMatrix gate_up,
                   bench.Matrices(format, kExperts, 2 * kWidth, kHidden));
  ASSIGN_OR_RETURN(const DeviceMatrix down, bench.Matrices(format, kExperts, kHidden, kWidth));
  for (const int64_t rows : {1, 8, 32, 128, 512, 2048}) {
    const int64_t pairs = rows * kTopK;
    std::vector<int32_t> ids;  // spread evenly
    for (int64_t i = 0; i < pairs; ++i) {
      ids.push_back(static_cast<int32_t>((i * 37 + i / kTopK) % kExperts));
    }
    ASSIGN_OR_RETURN(const int32_t* const topk_ids, bench.Upload(ids));
    std::sort(ids.begin(), ids.end());
    const auto used = std::unique(ids.begin(), ids.end()) - ids.begin();
    ASSIGN_OR_RETURN(const BFloat16* const hidden, bench.Weights(rows * kHidden));
    ASSIGN_OR_RETURN(int32_t* const offsets, bench.Array<int32_t>(kExperts + 1));
    ASSIGN_OR_RETURN(int32_t* const pair_rows, bench.Array<int32_t>(pairs));
    ASSIGN_OR_RETURN(int32_t* const pair_of_slot, bench.Array<int32_t>(pairs));
    ASSIGN_OR_RETURN(BFloat16* const intermediate, bench.Array<BFloat16>(pairs * kWidth));
    ASSIGN_OR_RETURN(BFloat16* const output, bench.Array<BFloat16>(pairs * kHidden));
    const std::string tokens = NameOf(format) + (", tokens " + std::to_string(rows));
    RETURN_IF_ERROR(bench.Report("sort pairs" + tokens, 0, 0, [&](int) {
      return SortPairs({.topk_ids = topk_ids,
                        .expert_offsets = offsets,
                        .pair_rows = pair_rows,
                        .pair_of_slot = pair_of_slot,
                        .num_tokens = rows,
                        .num_experts = kExperts,
                        .num_experts_per_tok = kTopK},
                       bench.stream());
    }));
    const double bytes = static_cast<double>(gate_up.value_bytes()) *
                             static_cast<double>(used * (gate_up_size + down_size)) +
                         2.0 * static_cast<double>(pairs * (2 * kHidden + 2 * kWidth));
    const double flops = 2.0 * static_cast<double>(pairs * (gate_up_size + down_size));
    DeviceExpertFfnArgs ffn = {.hidden_states = hidden,
                               .pair_rows = pair_rows,
                               .expert_offsets = offsets,
                               .gate_up_proj = gate_up,
                               .down_proj = down,
                               .intermediate = intermediate,
                               .output = output,
                               .max_pairs = pairs};
    RETURN_IF_ERROR(bench.Report("experts" + tokens, bytes, flops,
                                 [&](int) { return ExpertFfn(ffn, bench.stream()); }));
    if (!bench.has_wgmma()) continue;
    ffn.kernel = GemmKernel::kWgmma;
    RETURN_IF_ERROR(bench.Report("experts" + tokens + " (wgmma)", bytes, flops,
                                 [&](int) { return ExpertFfn(ffn, bench.stream()); }));
  }
  return absl::OkStatus();
}

// What lies between the products of a sparse layer: bytes in and out once.
absl::Status BenchRows(Bench& bench, int64_t rows) {
  const int64_t slots = rows * kTopK;
  ASSIGN_OR_RETURN(float* const residual, bench.Array<float>(rows * kHidden));
  ASSIGN_OR_RETURN(const float* const weight, bench.Array<float>(kHidden));
  ASSIGN_OR_RETURN(BFloat16* const normed, bench.Array<BFloat16>(rows * kHidden));
  const std::string name = ", rows " + std::to_string(rows);
  RETURN_IF_ERROR(
      bench.Report("norm" + name, static_cast<double>(rows * kHidden * (4 + 2)), 0, [&](int) {
        return RmsNorm({.input = residual,
                        .weight = weight,
                        .output = normed,
                        .num_rows = rows,
                        .hidden_size = kHidden,
                        .rms_norm_eps = 1e-6f},
                       nullptr, bench.stream());
      }));
  ASSIGN_OR_RETURN(const float* const logits, bench.Array<float>(rows * kExperts));
  DeviceMoeGateArgs gate;
  ASSIGN_OR_RETURN(gate.bad_token, bench.Array<int32_t>(1));
  ASSIGN_OR_RETURN(int32_t* const ids, bench.Array<int32_t>(slots));
  ASSIGN_OR_RETURN(float* const weights, bench.Array<float>(slots));
  gate.args = {.gate_logits = logits,
               .topk_ids = ids,
               .topk_weights = weights,
               .num_tokens = rows,
               .num_experts = kExperts,
               .num_experts_per_tok = kTopK};
  RETURN_IF_ERROR(bench.Report("gate" + name, static_cast<double>(rows * 4 * kExperts + 8 * slots),
                               0, [&](int) { return MoeGate(gate, bench.stream()); }));
  std::vector<int32_t> pairs(slots);
  for (int64_t i = 0; i < slots; ++i) pairs[i] = static_cast<int32_t>(i);
  ASSIGN_OR_RETURN(const int32_t* const pair_of_slot, bench.Upload(pairs));
  ASSIGN_OR_RETURN(const BFloat16* const expert_rows, bench.Array<BFloat16>(slots * kHidden));
  return bench.Report("combine" + name, static_cast<double>((slots * 2 + rows * 8) * kHidden), 0,
                      [&](int) {
                        return Combine({.expert_rows = expert_rows,
                                        .pair_of_slot = pair_of_slot,
                                        .topk_weights = weights,
                                        .residual = residual,
                                        .num_tokens = rows,
                                        .num_experts_per_tok = kTopK,
                                        .hidden_size = kHidden},
                                       bench.stream());
                      });
}

// `batch` sequences of `new_tokens` tokens each at the end of `context`.
absl::Status BenchAttention(Bench& bench, int batch, int new_tokens, int context) {
  const int blocks = (context + 15) / 16;
  const int64_t cache_size = int64_t{batch} * blocks * 16 * kKvHeads * kHeadDim;
  const int64_t q_size = int64_t{batch} * new_tokens * kHeads * kHeadDim;
  ASSIGN_OR_RETURN(BFloat16* const k, bench.Weights(cache_size));
  ASSIGN_OR_RETURN(BFloat16* const v, bench.Weights(cache_size));
  ASSIGN_OR_RETURN(const BFloat16* const q, bench.Weights(q_size));
  std::vector<DeviceAttentionSequence> sequences;
  std::vector<int32_t> tables;
  const int segments = NumAttentionSegments(context);
  for (int i = 0; i < batch; ++i) {
    sequences.push_back(
        {i * new_tokens, new_tokens, context - new_tokens, i * blocks, i * segments});
    for (int b = 0; b < blocks; ++b) tables.push_back(i * blocks + b);
  }
  DeviceAttentionArgs args;
  args.q = q;
  args.kv_cache = {
      .k = k, .v = v, .num_key_value_heads = kKvHeads, .block_tokens = 16, .head_dim = kHeadDim};
  ASSIGN_OR_RETURN(args.sequences, bench.Upload(sequences));
  ASSIGN_OR_RETURN(args.block_tables, bench.Upload(tables));
  args.num_sequences = batch;
  args.max_tokens = new_tokens;
  args.max_context = context;
  ASSIGN_OR_RETURN(args.output, bench.Array<BFloat16>(q_size));
  args.num_attention_heads = kHeads;
  args.scale = 0.0883883f;
  const bool decode = new_tokens * kHeads / kKvHeads <= kDecodeRows;
  ASSIGN_OR_RETURN(args.workspace, bench.Array<float>(static_cast<int64_t>(DecodeWorkspaceFloats(
                                       decode ? batch * segments : 1, kKvHeads, kHeadDim))));
  const double visible = static_cast<double>(batch) * new_tokens * (context - new_tokens / 2.0);
  const std::string name = std::string(decode ? "decode" : "prefill") + " attention, " +
                           std::to_string(batch) + " x " + std::to_string(new_tokens) + " at " +
                           std::to_string(context);
  return bench.Report(name, 4.0 * static_cast<double>(batch) * context * kKvHeads * kHeadDim,
                      4.0 * kHeadDim * kHeads * visible, [&](int) {
                        return decode ? AttentionDecode(args, bench.stream())
                                      : AttentionPrefill(args, bench.stream());
                      });
}

absl::Status Run(int device, double tflops, bool deterministic) {
  ASSIGN_OR_RETURN(const DeviceInfo info, QueryDevice(device));
  std::printf("%s\n", info.ToString().c_str());
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  Bench bench(std::move(stream), tflops);
  RETURN_IF_ERROR(bench.MeasureCopy());
  if (!deterministic) {
    RETURN_IF_ERROR(bench.OpenLibrary({.compute_major = info.compute_major,
                                       .max_rows = kMaxBenchRows,
                                       .max_fp8_in_features = kHeads * kHeadDim}));
  }
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8Block128}) {
    RETURN_IF_ERROR(BenchLinear(bench, format, "qkv_proj 5120 x 2048", kQkv, kHidden));
    RETURN_IF_ERROR(BenchLinear(bench, format, "o_proj 2048 x 4096", kHidden, kHeads * kHeadDim));
    RETURN_IF_ERROR(BenchExperts(bench, format));
    bench.Free();
  }
  RETURN_IF_ERROR(
      BenchLinear(bench, WeightFormat::kBf16, "lm_head 151936 x 2048", kVocab, kHidden));
  for (const int64_t rows : {1, 32, 2048}) RETURN_IF_ERROR(BenchRows(bench, rows));
  for (const int batch : {1, 8, 32, 128}) RETURN_IF_ERROR(BenchAttention(bench, batch, 1, 1024));
  RETURN_IF_ERROR(BenchAttention(bench, 1, 1, 32768));
  for (const int tokens : {512, 2048, 8192}) {
    RETURN_IF_ERROR(BenchAttention(bench, 1, tokens, tokens));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace conclave::cuda

int main(int argc, char** argv) {
  const bool deterministic = argc < 2 || std::string(argv[1]) != "--deterministic=false";
  if (!deterministic) {
    --argc;
    ++argv;
  }
  const int device = argc > 1 ? std::atoi(argv[1]) : 0;
  const double tflops = argc > 2 ? std::atof(argv[2]) : 989;
  if (argc > 3 || device < 0 || tflops <= 0) {
    std::cerr << "usage: cuda_bench [--deterministic=false] [DEVICE [TFLOPS]]" << std::endl;
    return 2;
  }
  const absl::Status status = conclave::cuda::Run(device, tflops, deterministic);
  if (status.ok()) return 0;
  std::cerr << "cuda_bench: " << status << std::endl;
  return 1;
}
