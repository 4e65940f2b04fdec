#include "tests/bench/product_rows.h"

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/aligned_vector.h"
#include "common/check.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"

namespace conclave {
namespace {

constexpr int kTopK = 8;
constexpr int64_t kMoeIntermediate = 768;

void MustSucceed(const absl::Status& status) { CHECK(status.ok()) << status.ToString(); }

std::vector<BFloat16> RandomBf16(int64_t size) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<BFloat16> pattern(65521), values(size);  // a prime: rows differ
  for (BFloat16& value : pattern) value = ToBFloat16(uniform(generator));
  for (int64_t i = 0; i < size; ++i) values[i] = pattern[i % pattern.size()];
  return values;
}

// What becomes of a matrix's sums, as in the decoder.
enum class Use { kStore, kAccumulate, kSwiGlu };

struct Projection {
  PackedMatrix weight;
  Use use;
};

struct Layer {
  std::vector<Projection> linears;     // in the order of their use
  std::vector<ExpertWeights> experts;  // of an MoE layer
};

// Weights of distinct memory; their values repeat.
class Model {
 public:
  Model(const Shape& shape, WeightDtype dtype, int num_experts, ThreadPool* pool)
      : dtype_(dtype), pool_(pool) {
    const int64_t q = int64_t{shape.num_attention_heads} * shape.head_dim;
    const int64_t kv = int64_t{shape.num_key_value_heads} * shape.head_dim;
    const int64_t hidden = shape.hidden_size;
    source_ = RandomBf16(std::max(shape.vocab_size, 4 * q) * hidden);
    scales_.assign(source_.size() / 128, 0.01f);
    for (int i = 0; i < shape.num_layers; ++i) {
      Layer layer;
      layer.linears.push_back({Pack(q + 2 * kv, hidden), Use::kStore});
      layer.linears.push_back({Pack(hidden, q), Use::kAccumulate});
      if (shape.intermediate_size > 0) {
        layer.linears.push_back({Pack(2 * shape.intermediate_size, hidden), Use::kSwiGlu});
        layer.linears.push_back({Pack(hidden, shape.intermediate_size), Use::kAccumulate});
      }
      for (int e = 0; shape.intermediate_size == 0 && e < num_experts; ++e) {
        layer.experts.push_back({.gate_up_proj = Pack(2 * kMoeIntermediate, hidden),
                                 .down_proj = Pack(hidden, kMoeIntermediate)});
      }
      layers.push_back(std::move(layer));
    }
    if (shape.vocab_size > 0) lm_head.weight = Pack(shape.vocab_size, hidden);
    source_ = {};
  }

  std::vector<Layer> layers;
  Projection lm_head{.weight = {}, .use = Use::kStore};

 private:
  PackedMatrix Pack(int64_t out, int64_t in) const {
    if (dtype_ == WeightDtype::kFp8) {
      // Any bytes are FP8; NaN costs what numbers cost.
      const Fp8Rows part{reinterpret_cast<const uint8_t*>(source_.data()), scales_.data(), out};
      return PackedMatrix::PackFp8({&part, 1}, in, pool_);
    }
    const MatrixRows part{source_.data(), out};
    return PackedMatrix::Pack({&part, 1}, in, pool_, dtype_);
  }

  WeightDtype dtype_;
  ThreadPool* pool_;
  std::vector<BFloat16> source_;
  std::vector<float> scales_;
};

// Runs products and counts what they cost.
class Runner {
 public:
  explicit Runner(const Device& device) : device_(device) {}

  void Linear(const Projection& projection, int64_t rows) {
    const PackedMatrix& weight = projection.weight;
    GrowTo(rows * std::max(weight.in_features(), weight.out_features()));
    if (projection.use == Use::kSwiGlu) {
      MustSucceed(LinearSwiGlu({.input = input_.data(),
                                .gate_up_proj = &weight,
                                .output = bf16_output_.data(),
                                .num_rows = rows},
                               device_));
    } else {
      MustSucceed(conclave::Linear({.input = input_.data(),
                                    .weight = &weight,
                                    .output = output_.data(),
                                    .num_rows = rows,
                                    .accumulate = projection.use == Use::kAccumulate},
                                   device_));
    }
    bytes += static_cast<double>(weight.bytes());
    flops += 2.0 * static_cast<double>(rows * weight.in_features() * weight.out_features());
  }

  // Every token draws kTopK experts, others each time, so that no cache holds them: pairs sorted by
  // expert.
  void Experts(const Layer& layer, int64_t tokens) {
    const int num_experts = static_cast<int>(layer.experts.size());
    const int64_t hidden = layer.experts[0].down_proj.out_features();
    std::vector<std::vector<uint32_t>> tokens_of(num_experts);
    std::vector<int> ids(num_experts);
    for (int e = 0; e < num_experts; ++e) ids[e] = e;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int k = 0; k < kTopK; ++k) {
        std::swap(ids[k], ids[k + generator_() % (num_experts - k)]);
        tokens_of[ids[k]].push_back(static_cast<uint32_t>(t));
      }
    }
    pair_rows_.clear();
    groups_.clear();
    for (int e = 0; e < num_experts; ++e) {
      if (tokens_of[e].empty()) continue;
      groups_.push_back({.weights = &layer.experts[e],
                         .first_pair = static_cast<int64_t>(pair_rows_.size()),
                         .num_pairs = static_cast<int64_t>(tokens_of[e].size())});
      pair_rows_.insert(pair_rows_.end(), tokens_of[e].begin(), tokens_of[e].end());
      bytes += static_cast<double>(layer.experts[e].gate_up_proj.bytes() +
                                   layer.experts[e].down_proj.bytes());
    }
    flops += 6.0 * static_cast<double>(tokens * kTopK * hidden * kMoeIntermediate);
    GrowTo(tokens * kTopK * hidden);
    bf16_output_.resize(pair_rows_.size() * hidden);
    MustSucceed(ExpertFfn({.hidden_states = input_.data(),
                           .pair_rows = pair_rows_,
                           .groups = groups_,
                           .output = bf16_output_.data(),
                           .num_rows = tokens,
                           .hidden_size = hidden,
                           .moe_intermediate_size = kMoeIntermediate,
                           .workspace = &workspace_},
                          device_));
  }

  double bytes = 0, flops = 0;

 private:
  void GrowTo(int64_t size) {
    if (static_cast<int64_t>(input_.size()) >= size) return;
    input_ = RandomBf16(size);
    output_.resize(size);
    bf16_output_.resize(size);
  }

  const Device device_;
  std::mt19937 generator_{11};
  std::vector<BFloat16> input_, bf16_output_;
  AlignedVector<float> output_;
  std::vector<uint32_t> pair_rows_;
  std::vector<ExpertGroup> groups_;
  ExpertFfnWorkspace workspace_;
};

// One line for what `run` does, after a run that counts it.
void Row(Table& table, const std::string& name, Peak peak, Runner& runner,
         const std::function<void()>& run) {
  if (!table.Wants(name)) return;
  runner.bytes = runner.flops = 0;
  run();
  table.Row(name, {.bytes = runner.bytes, .flops = runner.flops, .peak = peak}, 1, run);
}

}  // namespace

void ProductRows(Table& table, const Shape& shape, const Options& options, const Device& device) {
  for (const std::string& dtype_name : options.weight_dtypes) {
    const absl::StatusOr<WeightDtype> dtype = ParseWeightDtype(dtype_name);
    CHECK(dtype.ok()) << dtype.status().ToString();
    const std::string prefix = shape.model + " " + dtype_name + " ";
    const Model model(shape, *dtype, options.quick ? 64 : 128, device.pool);
    const Peak peak =
        *dtype == WeightDtype::kInt8 || *dtype == WeightDtype::kInt4 ? Peak::kInt8 : Peak::kBf16;
    Runner runner(device);
    auto layers = [&](int64_t rows, size_t num_layers) {
      for (size_t i = 0; i < std::min(num_layers, model.layers.size()); ++i) {
        for (const Projection& each : model.layers[i].linears) runner.Linear(each, rows);
        if (!model.layers[i].experts.empty()) runner.Experts(model.layers[i], rows);
      }
    };
    for (const int64_t rows : {1, 16}) {
      Row(table, prefix + "decode step, rows " + std::to_string(rows), peak, runner, [&] {
        layers(rows, model.layers.size());
        if (model.lm_head.weight.bytes() > 0) runner.Linear(model.lm_head, rows);
      });
    }
    Row(table, prefix + "prefill of 2 layers, rows 512", peak, runner, [&] { layers(512, 2); });
    for (const Projection& projection : model.layers[0].linears) {
      const PackedMatrix& weight = projection.weight;
      for (const int64_t rows : {1, 512}) {
        Row(table,
            prefix + "[" + std::to_string(weight.out_features()) + ", " +
                std::to_string(weight.in_features()) + "], rows " + std::to_string(rows),
            peak, runner, [&] {
              const size_t at = &projection - model.layers[0].linears.data();
              // Every layer in turn, so that the cache holds none of them.
              for (const Layer& layer : model.layers) {
                runner.Linear(layer.linears[at], rows);
                if (rows > 1) break;
              }
            });
      }
    }
    if (model.layers[0].experts.empty()) continue;
    for (const int64_t tokens : {1, 16, 512}) {
      Row(table, prefix + "experts, tokens " + std::to_string(tokens), peak, runner,
          [&] { runner.Experts(model.layers[0], tokens); });
    }
  }
}

}  // namespace conclave
