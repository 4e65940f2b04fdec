// Times every op on the shapes of Qwen3-0.6B and Qwen3-30B-A3B and prints its share of what the
// machine gives: read bandwidth for ops that stream, multiply-adds for ops that compute. The
// ceilings are measured next to every repetition, because other processes take their part.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/check.h"
#include "kernels/norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/sampling.h"
#include "kernels/swiglu.h"
#include "tests/bench/product_rows.h"
#include "tests/bench/table.h"

namespace conclave {
namespace {

std::vector<float> RandomFloats(int64_t size, float scale = 1) {
  static std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(size);
  for (float& value : values) value = uniform(generator);
  return values;
}

void MustSucceed(const absl::Status& status) { CHECK(status.ok()) << status.ToString(); }

// Ops that walk activations: counted in the bytes they read and write.
void ElementRows(Table& table, const Shape& shape, const Device& device) {
  const int64_t hidden = shape.hidden_size;
  const int num_heads = shape.num_attention_heads + 2 * shape.num_key_value_heads;
  const RopeTable rope = MakeRopeTable({.head_dim = shape.head_dim, .max_positions = 4096});
  for (const int64_t rows : {1, 512}) {
    const std::string suffix = ", rows " + std::to_string(rows);
    const double count = static_cast<double>(rows);
    std::vector<float> input = RandomFloats(rows * hidden);
    const std::vector<float> weight = RandomFloats(std::max<int64_t>(hidden, shape.head_dim));
    std::vector<BFloat16> output(rows * std::max<int64_t>(hidden, shape.intermediate_size));
    constexpr int kCalls = 20;
    table.Row(shape.model + " rms_norm" + suffix,
              {.bytes = count * 6 * static_cast<double>(hidden), .peak = Peak::kFp32}, kCalls, [&] {
                for (int i = 0; i < kCalls; ++i) {
                  MustSucceed(RmsNorm({.input = input.data(),
                                       .weight = weight.data(),
                                       .output = output.data(),
                                       .num_rows = rows,
                                       .hidden_size = hidden},
                                      device));
                }
              });
    const std::vector<float> qkv = RandomFloats(rows * num_heads * shape.head_dim);
    std::vector<BFloat16> q(rows * shape.num_attention_heads * shape.head_dim);
    std::vector<BFloat16> k(512 * shape.num_key_value_heads * shape.head_dim), v = k;
    std::vector<int32_t> positions(rows);
    std::vector<int64_t> slots(rows);
    for (int64_t i = 0; i < rows; ++i) positions[i] = static_cast<int32_t>(slots[i] = i);
    table.Row(
        shape.model + " norm_rope" + suffix,
        {.bytes = count * 6 * num_heads * shape.head_dim, .peak = Peak::kFp32}, kCalls, [&] {
          for (int i = 0; i < kCalls; ++i) {
            MustSucceed(NormRope({.qkv = qkv.data(),
                                  .q_norm = weight.data(),
                                  .k_norm = weight.data(),
                                  .rope = &rope,
                                  .positions = positions.data(),
                                  .slot_mapping = slots.data(),
                                  .q = q.data(),
                                  .kv_cache = {.k = k.data(),
                                               .v = v.data(),
                                               .num_blocks = 32,
                                               .num_key_value_heads = shape.num_key_value_heads,
                                               .block_tokens = 16,
                                               .head_dim = shape.head_dim},
                                  .num_tokens = rows,
                                  .num_attention_heads = shape.num_attention_heads},
                                 device));
          }
        });
    if (shape.intermediate_size == 0) continue;
    const std::vector<float> gate_up = RandomFloats(rows * 2 * shape.intermediate_size, 4);
    table.Row(
        shape.model + " swiglu" + suffix,
        {.bytes = count * 10 * static_cast<double>(shape.intermediate_size), .peak = Peak::kFp32},
        kCalls, [&] {
          for (int i = 0; i < kCalls; ++i) {
            MustSucceed(SwiGlu({.gate_up = gate_up.data(),
                                .output = output.data(),
                                .num_rows = rows,
                                .intermediate_size = shape.intermediate_size},
                               device));
          }
        });
  }
}

void SamplingRows(Table& table, const Shape& shape) {
  std::mt19937 generator(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(shape.vocab_size), scratch;
  for (float& logit : logits) logit = normal(generator);
  struct Case {
    std::string name;
    SamplingParams params;
  };
  for (const Case& c :
       {Case{"greedy", {.temperature = 0}},
        Case{"top_k 20, top_p 0.95", {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f}},
        Case{"top_p 0.95", {.temperature = 0.6f, .top_p = 0.95f}}, Case{"all ids", {}},
        Case{"top_k 20, 20 logprobs", {.top_k = 20, .num_top_logprobs = 20, .logprob = true}}}) {
    constexpr int kCalls = 20;
    table.Row(shape.model + " sample, " + c.name,
              {.bytes = 4.0 * static_cast<double>(shape.vocab_size), .peak = Peak::kFp32}, kCalls,
              [&] {
                for (int i = 0; i < kCalls; ++i) {
                  scratch = logits;
                  MustSucceed(Sample({.logits = scratch.data(),
                                      .vocab_size = shape.vocab_size,
                                      .num_ids = shape.vocab_size - 267,
                                      .params = &c.params,
                                      .position = static_cast<uint64_t>(i)})
                                  .status());
                }
              });
  }
}

int Run(const Options& options) {
  const absl::StatusOr<CpuIsa> isa = ParseCpuIsa(options.isa);
  if (!isa.ok() || options.threads < 1) {
    std::fprintf(stderr, "kernels_bench: %s\n",
                 isa.ok() ? "threads: want at least 1" : isa.status().ToString().c_str());
    return 1;
  }
  ThreadPool pool(options.threads);
  const Device device{.isa = *isa, .pool = &pool};
  Table table(options, device);
  table.CeilingRows();
  {
    const Shape shape{"0.6B", 28, 1024, 3072, 151936, 16, 8, 128};
    ProductRows(table, shape, options, device);
    ElementRows(table, shape, device);
    SamplingRows(table, shape);
  }
  const Shape shape{"30B-A3B", 4, 2048, 0, 0, 32, 4, 128};
  ProductRows(table, shape, options, device);
  ElementRows(table, shape, device);
  return 0;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::Options options;
  CLI::App app("Times the kernels against this machine's ceilings");
  app.add_option("--threads", options.threads, "threads of the pool")->capture_default_str();
  app.add_option("--isa", options.isa, "auto, plain, avx2, avx512, avx512_bf16 or amx")
      ->capture_default_str();
  app.add_option("--only", options.only, "only rows whose name contains this");
  app.add_option("--weight_dtype", options.weight_dtypes, "of the matrices: bf16,int8,int4,fp8")
      ->delimiter(',')
      ->capture_default_str();
  app.add_flag("--quick", options.quick, "3 repetitions, smaller buffers");
  app.add_flag("--cpu_time", options.cpu_time,
               "count the process's CPU time over the threads instead of the time that passes: for "
               "a busy machine; hides idle threads");
  CLI11_PARSE(app, argc, argv);
  return conclave::Run(options);
}
