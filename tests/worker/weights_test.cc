#include "worker/weights.h"

#include <gmock/gmock.h>

#include "expert_shard/weight_loader.h"
#include "model/memory_plan.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

WorkerWeights Load(TestModel& model, WeightDtype dtype) {
  ThreadPool pool(2);
  auto weights =
      LoadWorkerWeights(model.checkpoint(), model.config(), dtype, &pool, [](int, int) {});
  CHECK(weights.ok()) << weights.status();
  return *std::move(weights);
}

int64_t BytesOf(const WorkerWeights& weights) {
  size_t bytes = weights.lm_head.bytes() + weights.norm.size() * sizeof(float) +
                 static_cast<size_t>(weights.embed_tokens->rows() * weights.embed_tokens->cols()) *
                     sizeof(BFloat16);
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedMatrix* matrix :
         {&layer.qkv_proj, &layer.o_proj, &layer.gate, &layer.gate_up_proj, &layer.down_proj}) {
      bytes += matrix->bytes();
    }
    bytes += (layer.input_layernorm.size() + layer.post_attention_layernorm.size() +
              layer.q_norm.size() + layer.k_norm.size()) *
             sizeof(float);
  }
  return static_cast<int64_t>(bytes);
}

TEST(WorkerWeightsTest, QuantizesAllButTheGateAndEmbedding) {
  TestModel model(TinyMoeConfig());
  const WorkerWeights weights = Load(model, WeightDtype::kInt4);
  for (const LayerWeights& layer : weights.layers) {
    EXPECT_EQ(layer.qkv_proj.dtype(), WeightDtype::kInt4);
    EXPECT_EQ(layer.o_proj.dtype(), WeightDtype::kInt4);
    EXPECT_EQ(layer.gate.dtype(), WeightDtype::kBf16);
  }
  EXPECT_EQ(weights.lm_head.dtype(), WeightDtype::kInt8) << "in no less than 8 bits";
}

TEST(WorkerWeightsTest, AnFp8CheckpointKeepsItsBf16Parts) {
  Qwen3Config config = TinyMoeConfig();
  config.quantization = WeightQuantization::kFp8Block128;
  TestModel model(config);
  const WorkerWeights weights = Load(model, WeightDtype::kFp8);
  EXPECT_EQ(weights.layers[0].qkv_proj.dtype(), WeightDtype::kFp8);
  EXPECT_EQ(weights.layers[0].gate.dtype(), WeightDtype::kBf16);
  EXPECT_EQ(weights.lm_head.dtype(), WeightDtype::kBf16);
}

TEST(WorkerWeightsTest, TakeWhatThePlanSays) {
  for (Qwen3Config config : {TinyMoeConfig(), TinyDenseConfig()}) {
    for (const bool tied : {false, true}) {
      config.tie_word_embeddings = tied;
      TestModel model(config);
      for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kInt8, WeightDtype::kInt4}) {
        // Stacked matrices (q, k and v) are padded once together, not once each: the plan may say
        // up to two panels of 16 rows more a layer, of at most 64 inputs and 4 bytes.
        const int64_t planned = PackedWeightBytes(config, dtype).Worker();
        const int64_t taken = BytesOf(Load(model, dtype));
        EXPECT_GE(planned, taken) << WeightDtypeName(dtype);
        EXPECT_LE(planned - taken, config.num_hidden_layers * 2 * 16 * 64 * 4);
      }
    }
  }
}

}  // namespace
}  // namespace conclave
