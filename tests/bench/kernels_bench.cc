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
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"
#include "kernels/moe_combine.h"
#include "kernels/moe_gate.h"
#include "kernels/norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/sampling.h"
#include "kernels/swiglu.h"
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

std::vector<BFloat16> RandomBf16(int64_t size) {
  static const std::vector<float> pattern = RandomFloats(65521);  // a prime: rows differ
  std::vector<BFloat16> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = ToBFloat16(pattern[i % pattern.size()]);
  return values;
}

void MustSucceed(const absl::Status& status) { CHECK(status.ok()) << status.ToString(); }

struct Shape {
  std::string model;
  int num_layers;
  int64_t hidden_size, intermediate_size, vocab_size;
  int num_attention_heads, num_key_value_heads, head_dim;
};

struct Layer {
  PackedMatrix qkv_proj, o_proj, gate_up_proj, down_proj;
};

// Weights of distinct memory; their values repeat.
struct Weights {
  Weights(const Shape& shape, ThreadPool* pool) : pool_(pool) {
    const int64_t q = int64_t{shape.num_attention_heads} * shape.head_dim;
    const int64_t kv = int64_t{shape.num_key_value_heads} * shape.head_dim;
    source_ = RandomBf16(std::max(shape.vocab_size, 4 * q) * shape.hidden_size);
    for (int i = 0; i < shape.num_layers; ++i) {
      Layer layer;
      layer.qkv_proj = Pack(q + 2 * kv, shape.hidden_size);
      layer.o_proj = Pack(shape.hidden_size, q);
      if (shape.intermediate_size > 0) {
        layer.gate_up_proj = Pack(2 * shape.intermediate_size, shape.hidden_size);
        layer.down_proj = Pack(shape.hidden_size, shape.intermediate_size);
      }
      layers.push_back(std::move(layer));
    }
    if (shape.vocab_size > 0) lm_head = Pack(shape.vocab_size, shape.hidden_size);
  }

  PackedMatrix Pack(int64_t out, int64_t in) const {
    const MatrixRows part{source_.data(), out};
    return PackedMatrix::Pack({&part, 1}, in, pool_);
  }

  std::vector<Layer> layers;
  PackedMatrix lm_head;

 private:
  ThreadPool* pool_;
  std::vector<BFloat16> source_;
};

void LinearRows(Table& table, const Shape& shape, const Weights& weights, const Device& device) {
  struct Named {
    std::string name;
    PackedMatrix Layer::*member;
  };
  for (const Named& named :
       {Named{"qkv_proj", &Layer::qkv_proj}, Named{"o_proj", &Layer::o_proj},
        Named{"gate_up_proj", &Layer::gate_up_proj}, Named{"down_proj", &Layer::down_proj}}) {
    const PackedMatrix& first = weights.layers[0].*named.member;
    if (first.bytes() == 0) continue;
    for (const int64_t rows : {1, 4, 8, 32, 512}) {
      const std::vector<BFloat16> input = RandomBf16(rows * first.in_features());
      std::vector<float> output(rows * first.out_features());
      // Every layer in turn, so that the cache holds none of them; one is enough where the
      // product takes 100 times as long as the weights.
      const int calls = rows < 512 ? static_cast<int>(weights.layers.size()) : 1;
      table.Row(
          shape.model + " " + named.name + ", rows " + std::to_string(rows),
          {.bytes = static_cast<double>(first.bytes()),
           .flops = 2.0 * static_cast<double>(rows * first.in_features() * first.out_features())},
          calls, [&] {
            for (int i = 0; i < calls; ++i) {
              MustSucceed(Linear({.input = input.data(),
                                  .weight = &(weights.layers[i].*named.member),
                                  .output = output.data(),
                                  .num_rows = rows},
                                 device));
            }
          });
    }
  }
}

// All products of one token: what a decode step waits for.
void DecodeStep(Table& table, const Shape& shape, const Weights& weights, const Device& device) {
  double bytes = static_cast<double>(weights.lm_head.bytes());
  int64_t widest = shape.vocab_size;
  for (const Layer& layer : weights.layers) {
    for (const PackedMatrix* matrix :
         {&layer.qkv_proj, &layer.o_proj, &layer.gate_up_proj, &layer.down_proj}) {
      bytes += static_cast<double>(matrix->bytes());
      widest = std::max({widest, matrix->out_features(), matrix->in_features()});
    }
  }
  const std::vector<BFloat16> input = RandomBf16(widest);
  std::vector<float> output(widest);
  auto run = [&](const PackedMatrix& weight) {
    MustSucceed(
        Linear({.input = input.data(), .weight = &weight, .output = output.data(), .num_rows = 1},
               device));
  };
  table.Row(shape.model + " decode step, every linear, rows 1", {.bytes = bytes, .flops = bytes}, 1,
            [&] {
              for (const Layer& layer : weights.layers) {
                run(layer.qkv_proj);
                run(layer.o_proj);
                run(layer.gate_up_proj);
                run(layer.down_proj);
              }
              run(weights.lm_head);
            });
}

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

// The MoE half of a layer of Qwen3-30B-A3B over a pool of experts in distinct memory.
class MoeBench {
 public:
  static constexpr int64_t kHidden = 2048, kIntermediate = 768;
  static constexpr int kTopK = 8;

  MoeBench(const Weights& weights, int num_experts, const Device& device) : device_(device) {
    for (int e = 0; e < num_experts; ++e) {
      experts_.push_back({.gate_up_proj = weights.Pack(2 * kIntermediate, kHidden),
                          .down_proj = weights.Pack(kHidden, kIntermediate)});
    }
    gate_ = weights.Pack(num_experts, kHidden);
  }

  static double ExpertBytes() { return 3.0 * kIntermediate * kHidden * 2; }

  // The gate's product, gate, experts and combine of `num_tokens`; the experts are drawn anew.
  void Layer(int64_t num_tokens, bool with_gate) {
    hidden_.resize(num_tokens * kHidden, ToBFloat16(0.5f));
    residual_.resize(num_tokens * kHidden);
    Route(num_tokens);
    if (with_gate) {
      std::vector<float> gate_logits(num_tokens * gate_.out_features());
      MustSucceed(Linear({.input = hidden_.data(),
                          .weight = &gate_,
                          .output = gate_logits.data(),
                          .num_rows = num_tokens},
                         device_));
      ids_.resize(num_tokens * kTopK);
      weights_.resize(num_tokens * kTopK);
      MustSucceed(MoeGate({.gate_logits = gate_logits.data(),
                           .topk_ids = ids_.data(),
                           .topk_weights = weights_.data(),
                           .num_tokens = num_tokens,
                           .num_experts = static_cast<int>(gate_.out_features()),
                           .num_experts_per_tok = kTopK},
                          device_));
    }
    MustSucceed(ExpertFfn({.hidden_states = hidden_.data(),
                           .pair_rows = pair_rows_,
                           .groups = groups_,
                           .output = output_.data(),
                           .num_rows = num_tokens,
                           .hidden_size = kHidden,
                           .moe_intermediate_size = kIntermediate,
                           .workspace = &workspace_},
                          device_));
    if (with_gate) {
      MustSucceed(MoeCombine({.expert_rows = rows_.data(),
                              .topk_weights = weights_.data(),
                              .residual = residual_.data(),
                              .num_tokens = num_tokens,
                              .num_experts_per_tok = kTopK,
                              .hidden_size = kHidden},
                             device_));
    }
  }

  size_t num_groups() const { return groups_.size(); }

 private:
  // Every token draws 8 different experts; pairs sorted by expert.
  void Route(int64_t num_tokens) {
    std::vector<std::vector<uint32_t>> tokens_of(experts_.size());
    std::vector<int> ids(experts_.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(i);
    for (int64_t t = 0; t < num_tokens; ++t) {
      std::shuffle(ids.begin(), ids.end(), generator_);
      for (int k = 0; k < kTopK; ++k) tokens_of[ids[k]].push_back(static_cast<uint32_t>(t));
    }
    pair_rows_.clear();
    groups_.clear();
    for (size_t e = 0; e < experts_.size(); ++e) {
      if (tokens_of[e].empty()) continue;
      groups_.push_back({.weights = &experts_[e],
                         .first_pair = static_cast<int64_t>(pair_rows_.size()),
                         .num_pairs = static_cast<int64_t>(tokens_of[e].size())});
      pair_rows_.insert(pair_rows_.end(), tokens_of[e].begin(), tokens_of[e].end());
    }
    output_.resize(pair_rows_.size() * kHidden);
    rows_.clear();
    for (size_t i = 0; i < pair_rows_.size(); ++i) rows_.push_back(output_.data() + i * kHidden);
  }

  Device device_;
  std::mt19937 generator_{11};
  std::vector<ExpertWeights> experts_;
  PackedMatrix gate_;
  std::vector<BFloat16> hidden_, output_;
  std::vector<float> residual_, weights_;
  std::vector<int32_t> ids_;
  std::vector<uint32_t> pair_rows_;
  std::vector<ExpertGroup> groups_;
  std::vector<const BFloat16*> rows_;
  ExpertFfnWorkspace workspace_;
};

void MoeRows(Table& table, const Shape& shape, const Weights& weights, bool quick,
             const Device& device) {
  MoeBench moe(weights, quick ? 32 : 128, device);
  for (const int64_t tokens : {1, 8, 32, 512}) {
    moe.Layer(tokens, false);  // to know how many experts that many tokens meet
    const double pairs = static_cast<double>(tokens) * MoeBench::kTopK;
    table.Row(shape.model + " expert_ffn, tokens " + std::to_string(tokens),
              {.bytes = static_cast<double>(moe.num_groups()) * MoeBench::ExpertBytes(),
               .flops = pairs * MoeBench::ExpertBytes()},
              1, [&] { moe.Layer(tokens, false); });
  }
  double bytes = MoeBench::kTopK * MoeBench::ExpertBytes() * shape.num_layers;
  for (const Layer& layer : weights.layers) {
    bytes += static_cast<double>(layer.qkv_proj.bytes() + layer.o_proj.bytes());
  }
  const std::vector<BFloat16> input = RandomBf16(8192);
  std::vector<float> output(8192);
  table.Row(
      shape.model + " decode step of " + std::to_string(shape.num_layers) + " layers",
      {.bytes = bytes, .flops = bytes}, 1, [&] {
        for (const Layer& layer : weights.layers) {
          for (const PackedMatrix* weight : {&layer.qkv_proj, &layer.o_proj}) {
            MustSucceed(Linear(
                {.input = input.data(), .weight = weight, .output = output.data(), .num_rows = 1},
                device));
          }
          moe.Layer(1, true);
        }
      });
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
    const Weights weights(shape, &pool);
    DecodeStep(table, shape, weights, device);
    LinearRows(table, shape, weights, device);
    ElementRows(table, shape, device);
    SamplingRows(table, shape);
  }
  const Shape shape{"30B-A3B", 4, 2048, 0, 0, 32, 4, 128};
  const Weights weights(shape, &pool);
  LinearRows(table, shape, weights, device);
  ElementRows(table, shape, device);
  MoeRows(table, shape, weights, options.quick, device);
  return 0;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::Options options;
  CLI::App app("Times the kernels against this machine's ceilings");
  app.add_option("--threads", options.threads, "threads of the pool")->capture_default_str();
  app.add_option("--isa", options.isa, "auto, plain, avx2, avx512 or avx512_bf16")
      ->capture_default_str();
  app.add_option("--only", options.only, "only rows whose name contains this");
  app.add_flag("--quick", options.quick, "3 repetitions, smaller buffers");
  app.add_flag("--cpu_time", options.cpu_time,
               "count the process's CPU time over the threads instead of the time that passes: for "
               "a busy machine; hides idle threads");
  CLI11_PARSE(app, argc, argv);
  return conclave::Run(options);
}
