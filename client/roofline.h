#pragma once

#include <cstdint>
#include <vector>

#include "client/plan_device.h"
#include "common/weight_dtype.h"
#include "model/memory_plan.h"
#include "model/qwen3_config.h"

namespace conclave {

// The least time a step can take on given devices: each phase of a layer reads its bytes at the
// memory's full bandwidth and does its multiply-adds at the full rate, whichever takes longer, and
// phases follow one another. No launch gaps, no activations, no imbalance between experts.
//
// Experts: each token picks num_experts_per_tok of them evenly and independently, so that a batch
// of B reads E * (1 - (1 - k / E)^B) of E. KV is BF16, and attention's own products are. Weights
// are multiplied as what they are kept in where the device can, else as BF16.
class Roofline {
 public:
  // weights: one copy, as the device keeps it. hop_seconds: one way between attention and experts,
  // twice a sparse layer; none on one device.
  Roofline(const Qwen3Config& config, const BytesByKind& weights, WeightDtype dtype,
           const PlanDevice& device, int num_devices, double hop_seconds);

  // One token of each of `batch` sequences, each with `context` tokens of KV; all bytes and all
  // arithmetic divided evenly over the devices: what they could do at best, however arranged.
  double DecodeSeconds(int64_t batch, int64_t context) const;
  // The same as Conclave arranges it: experts divided over the devices; each device's worker reads
  // all attention weights and the LM head, for its share of the sequences.
  double DecodeSecondsAsLaidOut(int64_t batch, int64_t context) const;

  // A prompt of `tokens`, its first token out; everything divided evenly.
  double PrefillSeconds(int64_t tokens) const;
  // Tokens a second of prompts so long and so many that only the weights' multiply-adds count.
  double PrefillTokensPerSecond() const;

  double DistinctExperts(int64_t tokens) const;

 private:
  struct Step {
    double tokens = 0, kv_bytes = 0, attention_flops = 0, logit_rows = 0;
  };
  Step DecodeStep(double batch, double context) const;
  double AttentionSide(const Step& step) const;  // of all layers, on one device
  double ExpertSide(double tokens) const;
  double LmHead(const Step& step) const;
  double Hops() const;

  const Qwen3Config config_;
  const int num_devices_;
  const double hop_seconds_;
  const BytesByKind bytes_;
  const double bandwidth_;  // bytes/s
  // FLOP/s of attention, of products with most weights, and with the LM head.
  const double bf16_flops_, weight_flops_, head_flops_;
};

// Bytes of hidden states that one decode step of `batch` tokens sends between devices, both ways:
// a BF16 row to each other device that holds one of the token's experts, and a BF16 row back for
// each expert. experts_of: experts of each device; with one device nothing is sent. Sequences are
// spread evenly over the devices' workers. Ids and headers, under one percent, are not counted.
double WireBytesPerStep(const Qwen3Config& config, const std::vector<int>& experts_of,
                        int64_t batch);

}  // namespace conclave
