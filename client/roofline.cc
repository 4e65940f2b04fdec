#include "client/roofline.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace conclave {
namespace {

constexpr double kKvBytes = 2;  // of a BF16 number

double AttentionParameters(const Qwen3Config& config) {  // of a layer: q, o, k and v projections
  return 2.0 * config.hidden_size * config.head_dim *
         (config.num_attention_heads + config.num_key_value_heads);
}
double GateParameters(const Qwen3Config& config) {
  return static_cast<double>(config.hidden_size) * config.num_experts;
}
double ExpertParameters(const Qwen3Config& config) {
  return 3.0 * config.hidden_size * config.moe_intermediate_size;
}
double DenseParameters(const Qwen3Config& config) {
  return 3.0 * config.hidden_size * config.intermediate_size;
}

double Flops(double tflops) {
  return tflops > 0 ? tflops * 1e12 : std::numeric_limits<double>::infinity();
}

double WeightFlops(const PlanDevice& device, WeightDtype dtype) {
  if (dtype == WeightDtype::kFp8 && device.fp8_tflops > 0) return Flops(device.fp8_tflops);
  const bool int8 = dtype == WeightDtype::kInt8 || dtype == WeightDtype::kInt4;
  return Flops(int8 && device.int8_tops > 0 ? device.int8_tops : device.bf16_tflops);
}

}  // namespace

Roofline::Roofline(const Qwen3Config& config, const BytesByKind& weights, WeightDtype dtype,
                   const PlanDevice& device, int num_devices, double hop_seconds)
    : config_(config),
      num_devices_(num_devices),
      hop_seconds_(hop_seconds),
      bytes_(weights),
      bandwidth_(device.bandwidth_tbs * 1e12),
      bf16_flops_(Flops(device.bf16_tflops)),
      weight_flops_(WeightFlops(device, dtype)),
      // It stays BF16 in an FP8 checkpoint, and is quantized with the rest otherwise.
      head_flops_(dtype == WeightDtype::kFp8 ? bf16_flops_ : weight_flops_) {}

double Roofline::DistinctExperts(int64_t tokens) const {
  const double all = config_.num_experts;
  if (all == 0) return 0;
  return all * (1 - std::pow(1 - config_.num_experts_per_tok / all, static_cast<double>(tokens)));
}

Roofline::Step Roofline::DecodeStep(double batch, double context) const {
  const double layers = config_.num_hidden_layers;
  return {.tokens = batch,
          .kv_bytes = batch * context * 2 * config_.num_key_value_heads * config_.head_dim *
                      kKvBytes * layers,
          // Scores and their use: a multiply-add each for every number of every key and value.
          .attention_flops =
              4 * batch * context * config_.num_attention_heads * config_.head_dim * layers,
          .logit_rows = batch};
}

double Roofline::AttentionSide(const Step& step) const {
  const double layers = config_.num_hidden_layers;
  const double sparse = config_.NumSparseLayers();
  const double dense = layers - sparse;
  const auto attention_bytes = static_cast<double>(bytes_.attention);
  const double attention_flops = 2 * step.tokens * AttentionParameters(config_);
  double seconds = 0;
  if (sparse > 0) {  // the gate reads what the attention wrote: counted with it
    seconds += std::max(
        (attention_bytes * sparse / layers + static_cast<double>(bytes_.gates)) / bandwidth_,
        sparse * (attention_flops + 2 * step.tokens * GateParameters(config_)) / weight_flops_);
  }
  if (dense > 0) {
    seconds += std::max(attention_bytes * dense / layers / bandwidth_,
                        dense * attention_flops / weight_flops_);
    seconds += std::max(static_cast<double>(bytes_.dense_mlp) / bandwidth_,
                        dense * 2 * step.tokens * DenseParameters(config_) / weight_flops_);
  }
  return seconds + std::max(step.kv_bytes / bandwidth_, step.attention_flops / bf16_flops_);
}

double Roofline::ExpertSide(double tokens) const {
  const double sparse = config_.NumSparseLayers();
  if (sparse == 0) return 0;
  const double read = DistinctExperts(static_cast<int64_t>(tokens)) *
                      static_cast<double>(bytes_.one_expert) / bandwidth_;
  const double compute =
      2 * tokens * config_.num_experts_per_tok * ExpertParameters(config_) / weight_flops_;
  return sparse * std::max(read, compute);
}

double Roofline::LmHead(const Step& step) const {
  const double parameters = static_cast<double>(config_.vocab_size) * config_.hidden_size;
  return std::max(static_cast<double>(bytes_.lm_head) / bandwidth_,
                  2 * step.logit_rows * parameters / head_flops_);
}

double Roofline::Hops() const {
  return num_devices_ > 1 ? 2 * hop_seconds_ * config_.NumSparseLayers() : 0;
}

double Roofline::DecodeSeconds(int64_t batch, int64_t context) const {
  const Step step = DecodeStep(static_cast<double>(batch), static_cast<double>(context));
  return (AttentionSide(step) + ExpertSide(step.tokens) + LmHead(step)) / num_devices_ + Hops();
}

double Roofline::DecodeSecondsAsLaidOut(int64_t batch, int64_t context) const {
  const int64_t share = (batch + num_devices_ - 1) / num_devices_;
  const Step step = DecodeStep(static_cast<double>(share), static_cast<double>(context));
  return AttentionSide(step) + ExpertSide(static_cast<double>(batch)) / num_devices_ +
         LmHead(step) + Hops();
}

double Roofline::PrefillSeconds(int64_t tokens) const {
  const auto count = static_cast<double>(tokens);
  Step step = DecodeStep(count, 0);
  // Written once and read at least once; token t looks at t tokens.
  step.kv_bytes = static_cast<double>(KvBytesPerToken(config_)) * count;
  step.attention_flops = 4 * (count * (count + 1) / 2) * config_.num_attention_heads *
                         config_.head_dim * config_.num_hidden_layers;
  step.logit_rows = 1;
  return (AttentionSide(step) + ExpertSide(count) + LmHead(step)) / num_devices_ + Hops();
}

double Roofline::PrefillTokensPerSecond() const {
  const double layers = config_.num_hidden_layers;
  const double sparse = config_.NumSparseLayers();
  const double active =
      layers * AttentionParameters(config_) + (layers - sparse) * DenseParameters(config_) +
      sparse * (GateParameters(config_) + config_.num_experts_per_tok * ExpertParameters(config_));
  return num_devices_ * weight_flops_ / (2 * active);
}

double WireBytesPerStep(const Qwen3Config& config, const std::vector<int>& experts_of,
                        int64_t batch) {
  const auto num_devices = static_cast<double>(experts_of.size());
  if (num_devices < 2 || config.num_experts == 0) return 0;
  double devices_hit = 0;  // of a token: those with at least one of its experts
  for (const int held : experts_of) {
    double none = 1;  // C(E - held, k) / C(E, k)
    for (int i = 0; i < config.num_experts_per_tok; ++i) {
      none *= std::max(0.0, static_cast<double>(config.num_experts - held - i)) /
              (config.num_experts - i);
    }
    devices_hit += 1 - none;
  }
  const double elsewhere = (num_devices - 1) / num_devices;
  const double rows = (devices_hit + config.num_experts_per_tok) * elsewhere;
  return static_cast<double>(batch) * config.NumSparseLayers() * rows * 2.0 * config.hidden_size;
}

}  // namespace conclave
