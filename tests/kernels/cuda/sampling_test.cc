#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// One row to draw, as the host takes it.
struct Row {
  SamplingParams params;
  uint64_t position = 0;
  TokenCounts counts;
  std::vector<std::pair<uint32_t, float>> bias;
};

class CudaSamplingTest : public CudaTest {
 protected:
  struct Drawn {
    std::vector<uint32_t> ids;
    std::vector<int32_t> failures;
  };

  Drawn DrawOnDevice(const std::vector<float>& logits, int64_t vocab_size, int64_t num_ids,
                     const std::vector<Row>& rows) {
    std::vector<SamplerRow> sampler_rows;
    std::vector<SamplerCount> counts;
    std::vector<SamplerBias> biases;
    for (const Row& row : rows) {
      absl::StatusOr<SamplerRow> made = MakeSamplerRow(row.params, row.position, num_ids);
      EXPECT_OK(made);
      made->first_count = static_cast<int32_t>(counts.size());
      for (const auto& [id, count] : row.counts.output) counts.push_back({id, count});
      for (const auto& [id, count] : row.counts.prompt) {
        if (!row.counts.output.contains(id)) counts.push_back({id, 0});
      }
      made->num_counts = static_cast<int32_t>(counts.size()) - made->first_count;
      made->first_bias = static_cast<int32_t>(biases.size());
      for (const auto& [id, bias] : row.bias) biases.push_back({id, bias});
      made->num_biases = static_cast<int32_t>(biases.size()) - made->first_bias;
      sampler_rows.push_back(*made);
    }
    DeviceSampleArgs args{.logits = Upload(logits),
                          .rows = Upload(sampler_rows),
                          .counts = Upload(counts),
                          .biases = Upload(biases),
                          .ids = Empty<uint32_t>(rows.size()),
                          .failures = Empty<int32_t>(rows.size()),
                          .num_rows = static_cast<int>(rows.size()),
                          .vocab_size = vocab_size,
                          .num_ids = num_ids};
    EXPECT_OK(cuda::Sample(args, stream()));
    return {Download(args.ids, rows.size()), Download(args.failures, rows.size())};
  }

  void ExpectAsHost(const std::vector<float>& logits, int64_t vocab_size, int64_t num_ids,
                    const std::vector<Row>& rows) {
    const Drawn drawn = DrawOnDevice(logits, vocab_size, num_ids, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<float> scratch(logits.begin() + i * vocab_size,
                                 logits.begin() + (i + 1) * vocab_size);
      const absl::StatusOr<SampleResult> expected =
          conclave::Sample({.logits = scratch.data(),
                            .vocab_size = vocab_size,
                            .num_ids = num_ids,
                            .params = &rows[i].params,
                            .counts = &rows[i].counts,
                            .logit_bias = rows[i].bias,
                            .position = rows[i].position});
      ASSERT_OK(expected);
      EXPECT_EQ(drawn.failures[i], 0);
      EXPECT_EQ(drawn.ids[i], expected->id) << "row " << i << " of " << num_ids << " ids";
    }
  }
};

TEST_F(CudaSamplingTest, DrawsWhatTheHostDraws) {
  const std::vector<SamplingParams> kinds = {
      {.temperature = 0},
      {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f},
      {.temperature = 0.7f, .top_k = 20, .top_p = 0.8f, .min_p = 0.05f},
      {.temperature = 1},
      {.temperature = 1.3f, .top_p = 0.9f},
      {.temperature = 1, .min_p = 0.1f},
      {.temperature = 2, .top_k = 1},
      {.temperature = 0.5f, .top_k = 700, .top_p = 0.99f}};
  // Around a warp and a thread block, and past it; padding behind the ids.
  for (const int64_t num_ids : {1, 2, 31, 33, 1000, 1023, 1025, 5000}) {
    const int64_t vocab_size = num_ids + 7;
    std::vector<Row> rows;
    for (uint64_t i = 0; i < 2 * kinds.size(); ++i) {
      Row row{kinds[i % kinds.size()], FreshSeed(i) % 100000, {}, {}};
      row.params.seed = FreshSeed(i + 100);
      rows.push_back(row);
    }
    const auto size = static_cast<int64_t>(rows.size()) * vocab_size;
    std::vector<float> logits = RandomNormal(size, FreshSeed(num_ids), 3);
    for (int64_t i = 0; i < size; i += 2) logits[i] = std::round(logits[i]);  // ties
    for (int64_t i = 0; i < size; ++i) {
      if (i % vocab_size >= num_ids) logits[i] = NAN;  // padding is not looked at
    }
    ExpectAsHost(logits, vocab_size, num_ids, rows);
  }
}

TEST_F(CudaSamplingTest, PenaltiesBiasAndMask) {
  const int64_t num_ids = 300;
  std::vector<Row> rows;
  for (uint64_t i = 0; i < 24; ++i) {
    Row row;
    row.params = {.temperature = i % 3 == 0 ? 0.0f : 1.0f,
                  .top_k = i % 2 == 0 ? 10 : 0,
                  .presence_penalty = 0.7f,
                  .frequency_penalty = 0.3f,
                  .repetition_penalty = i % 4 == 0 ? 1.0f : 1.4f,
                  .seed = FreshSeed(i)};
    row.position = i;
    std::mt19937_64 generator(FreshSeed(i + 40));
    for (int k = 0; k < 40; ++k) {
      // Ids past the vocabulary may be in a prompt; they are padding.
      ++row.counts.output[static_cast<uint32_t>(generator() % 310)];
      ++row.counts.prompt[static_cast<uint32_t>(generator() % 310)];
    }
    // The first half of the ids is forbidden, three are favoured.
    for (uint32_t id = 0; id < 150; ++id) row.bias.emplace_back(id, kForbidden);
    for (uint32_t id = 200; id < 203; ++id) row.bias.emplace_back(id, 1.5f);
    rows.push_back(row);
  }
  const auto size = static_cast<int64_t>(rows.size()) * num_ids;
  ExpectAsHost(RandomNormal(size, FreshSeed(1), 2), num_ids, num_ids, rows);
}

TEST_F(CudaSamplingTest, FailuresOfARowAreItsOwn) {
  std::vector<Row> rows(4);
  for (uint32_t id = 0; id < 4; ++id) rows[2].bias.emplace_back(id, kForbidden);
  rows[3].params.repetition_penalty = 10;
  rows[3].counts.output[1] = 1;
  const std::vector<float> logits = {1, 2, 3, 4, 1, NAN, 3, 4, 1, 2, 3, 4, 1, -3e38f, 3, 4};
  const Drawn drawn = DrawOnDevice(logits, 4, 4, rows);
  EXPECT_EQ(drawn.failures[0], static_cast<int32_t>(SampleFailure::kNone));
  EXPECT_EQ(drawn.failures[1], static_cast<int32_t>(SampleFailure::kNotFinite));
  EXPECT_EQ(drawn.failures[2], static_cast<int32_t>(SampleFailure::kAllForbidden));
  // -3e38 * 10 is -infinity: that id is out, as on the host.
  EXPECT_EQ(drawn.failures[3], static_cast<int32_t>(SampleFailure::kNone));
  EXPECT_NE(drawn.ids[3], 1u);
  EXPECT_THAT(ToStatus(SampleFailure::kNotFinite), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(ToStatus(SampleFailure::kAllForbidden),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("forbids every id")));
  EXPECT_OK(ToStatus(SampleFailure::kNone));
}

TEST_F(CudaSamplingTest, LeavesToTheHostWhatItCannotDraw) {
  const absl::StatusCode unimplemented = absl::StatusCode::kUnimplemented;
  EXPECT_THAT(MakeSamplerRow({.logprob = true}, 0, 5000), StatusIs(unimplemented));
  EXPECT_THAT(MakeSamplerRow({.top_k = 1025}, 0, 5000), StatusIs(unimplemented));
  EXPECT_OK(MakeSamplerRow({.top_k = 1025}, 0, 1025));  // all of them
  EXPECT_THAT(cuda::Sample({.num_rows = 1, .vocab_size = 3, .num_ids = 4}, stream()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("vocab_size is 3")));
}

}  // namespace
}  // namespace conclave::cuda
