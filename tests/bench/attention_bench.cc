// Times attention over a paged cache on the head shapes of Qwen3 and prints its share of what the
// machine gives: read bandwidth for decode, FP32 multiply-adds for prefill. The ceilings are
// measured next to every repetition, because other processes take their part.
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/limits.h"
#include "kernels/attention.h"
#include "tests/bench/table.h"

namespace conclave {
namespace {

constexpr int64_t kBlock = limits::kKvBlockTokens;

struct Shape {
  std::string model;
  int num_attention_heads, num_key_value_heads, head_dim;
};

struct Case {
  int64_t sequences, tokens, context;
};

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Values = std::unique_ptr<BFloat16[], FreeDeleter>;

// On huge pages, as the worker keeps its cache.
Values RandomValues(int64_t size) {
  constexpr size_t kHugePage = 2 << 20;
  const size_t bytes = (size * sizeof(BFloat16) + kHugePage - 1) / kHugePage * kHugePage;
  Values values(static_cast<BFloat16*>(std::aligned_alloc(kHugePage, bytes)));
  CHECK(values != nullptr) << bytes << " bytes";
#if defined(MADV_HUGEPAGE)
  madvise(values.get(), bytes, MADV_HUGEPAGE);
#endif
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<BFloat16> pattern(65521);  // a prime: rows differ
  for (BFloat16& value : pattern) value = ToBFloat16(uniform(generator));
  for (int64_t i = 0; i < size; ++i) values[i] = pattern[i % pattern.size()];
  return values;
}

void AttentionRow(Table& table, const Shape& shape, const Case& c, const Device& device) {
  const std::string name = shape.model + " " + std::to_string(c.sequences) + " x " +
                           std::to_string(c.tokens) + " at " + std::to_string(c.context);
  if (!table.Wants(name)) return;
  const int64_t blocks_each = (c.context + kBlock - 1) / kBlock;
  const int64_t num_blocks = blocks_each * c.sequences;
  const int64_t values = num_blocks * shape.num_key_value_heads * kBlock * shape.head_dim;
  const Values k = RandomValues(values), v = RandomValues(values);
  std::vector<int32_t> blocks(num_blocks);
  for (int64_t i = 0; i < num_blocks; ++i) blocks[i] = static_cast<int32_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(3));
  std::vector<AttentionSequence> sequences;
  for (int64_t i = 0; i < c.sequences; ++i) {
    sequences.push_back({.first_row = i * c.tokens,
                         .num_tokens = c.tokens,
                         .first_position = c.context - c.tokens,
                         .block_table = blocks.data() + i * blocks_each});
  }
  const int64_t q_values = c.sequences * c.tokens * shape.num_attention_heads * shape.head_dim;
  const Values q = RandomValues(q_values), output = RandomValues(q_values);
  const AttentionArgs args{.q = q.get(),
                           .kv_cache = {.k = k.get(),
                                        .v = v.get(),
                                        .num_blocks = num_blocks,
                                        .num_key_value_heads = shape.num_key_value_heads,
                                        .block_tokens = kBlock,
                                        .head_dim = shape.head_dim},
                           .sequences = sequences,
                           .output = output.get(),
                           .num_attention_heads = shape.num_attention_heads,
                           .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  const double visible = static_cast<double>(c.sequences * c.tokens) *
                         (static_cast<double>(c.context) - static_cast<double>(c.tokens - 1) / 2);
  table.Row(name,
            {.bytes = 4.0 * static_cast<double>(values),
             .flops = 4.0 * shape.head_dim * shape.num_attention_heads * visible,
             .peak = Peak::kFp32},
            1, [&] {
              const absl::Status status = Attention(args, device);
              CHECK(status.ok()) << status.ToString();
            });
}

int Run(const Options& options) {
  const absl::StatusOr<CpuIsa> isa = ParseCpuIsa(options.isa);
  if (!isa.ok()) {
    std::fprintf(stderr, "attention_bench: %s\n", isa.status().ToString().c_str());
    return 1;
  }
  ThreadPool pool(options.threads);
  const Device device{.isa = *isa, .pool = &pool};
  Table table(options, device);
  table.CeilingRows();
  for (const Shape& shape :
       {Shape{"0.6B", 16, 8, 128}, Shape{"30B-A3B", 32, 4, 128}, Shape{"235B-A22B", 64, 4, 128}}) {
    for (const Case& c : {Case{1, 1, 4096}, Case{1, 1, 32768}, Case{16, 1, 1024},
                          Case{16, 1, 16384}, Case{1, 512, 512}, Case{1, 512, 4096}}) {
      AttentionRow(table, shape, c, device);
    }
  }
  return 0;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::Options options;
  CLI::App app("Times attention against this machine's ceilings");
  app.add_option("--threads", options.threads, "threads of the pool")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--isa", options.isa, "auto or a name that conclave-worker --cpu_isa takes")
      ->capture_default_str();
  app.add_option("--only", options.only, "only rows whose name contains this");
  app.add_flag("--quick", options.quick, "3 repetitions, smaller buffers");
  app.add_flag("--cpu_time", options.cpu_time,
               "count the process's CPU time over the threads instead of the time that passes: for "
               "a busy machine; hides idle threads");
  CLI11_PARSE(app, argc, argv);
  return conclave::Run(options);
}
