#include "kernels/cuda/attention.h"

#include <algorithm>
#include <numeric>

#include "kernels/attention.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

constexpr int kBlock = 16;

struct Shape {
  int heads, kv_heads, head_dim;
};

// One sequence of a step: `num_tokens` new ones at the end of `length`.
struct Request {
  int32_t length, num_tokens;
};

class CudaAttentionTest : public CudaTest {
 protected:
  // A paged cache whose blocks are dealt out in random order. Slots that no position uses hold NaN:
  // reading one spoils the result.
  void MakeCache(const Shape& shape, const std::vector<Request>& requests, uint64_t salt) {
    shape_ = shape;
    requests_ = requests;
    int64_t num_blocks = 3;  // unused ones too
    for (const Request& request : requests) num_blocks += (request.length + kBlock - 1) / kBlock;
    std::vector<int32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 generator(FreshSeed(salt));
    std::shuffle(order.begin(), order.end(), generator);
    const int64_t cache_size = num_blocks * shape.kv_heads * kBlock * shape.head_dim;
    k_.assign(cache_size, ToBFloat16(NAN));
    v_ = k_;
    std::vector<BFloat16> device_k = k_, device_v = k_;
    layer_ = {.k = k_.data(),
              .v = v_.data(),
              .num_blocks = num_blocks,
              .num_key_value_heads = shape.kv_heads,
              .block_tokens = kBlock,
              .head_dim = shape.head_dim};
    tables_.clear();
    int64_t num_rows = 0;
    std::normal_distribution<float> normal;
    size_t next = 0;
    for (const Request& request : requests) {
      std::vector<int32_t> table;
      for (int i = 0; i < request.length; i += kBlock) table.push_back(order[next++]);
      for (int p = 0; p < request.length; ++p) {
        const int64_t slot = int64_t{table[p / kBlock]} * kBlock + p % kBlock;
        for (int h = 0; h < shape.kv_heads; ++h) {
          for (int i = 0; i < shape.head_dim; ++i) {
            const BFloat16 key = ToBFloat16(normal(generator));
            const BFloat16 value = ToBFloat16(normal(generator));
            const int64_t at =
                ((slot / kBlock * shape.kv_heads + h) * kBlock + slot % kBlock) * shape.head_dim +
                i;
            device_k[at] = k_[layer_.KeyIndex(slot, h, i)] = key;
            device_v[at] = v_[layer_.ValueIndex(slot, h, i)] = value;
          }
        }
      }
      tables_.push_back(table);
      num_rows += request.num_tokens;
    }
    device_layer_ = {.k = Upload(device_k),
                     .v = Upload(device_v),
                     .num_key_value_heads = shape.kv_heads,
                     .block_tokens = kBlock,
                     .head_dim = shape.head_dim};
    q_ = RandomBf16(num_rows * shape.heads * shape.head_dim, FreshSeed(salt + 1));
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

  std::vector<BFloat16> Reference() const {
    std::vector<BFloat16> output(q_.size());
    std::vector<AttentionSequence> sequences;
    int64_t row = 0;
    for (size_t i = 0; i < requests_.size(); ++i) {
      sequences.push_back({.first_row = row,
                           .num_tokens = requests_[i].num_tokens,
                           .first_position = requests_[i].length - requests_[i].num_tokens,
                           .block_table = tables_[i].data()});
      row += requests_[i].num_tokens;
    }
    EXPECT_OK(AttentionReference({.q = q_.data(),
                                  .kv_cache = layer_,
                                  .sequences = sequences,
                                  .output = output.data(),
                                  .num_attention_heads = shape_.heads,
                                  .scale = scale()}));
    return output;
  }

  // The new tokens of every request in pieces of at most `chunk`, each piece a call of its own.
  std::vector<BFloat16> Attend(bool decode, int32_t chunk) {
    BFloat16* const output = Empty<BFloat16>(q_.size());
    const BFloat16* const q = Upload(q_);
    std::vector<int32_t> flat;
    std::vector<int32_t> begins;
    for (const std::vector<int32_t>& table : tables_) {
      begins.push_back(static_cast<int32_t>(flat.size()));
      flat.insert(flat.end(), table.begin(), table.end());
    }
    const int32_t* const tables = Upload(flat);
    int32_t most = 0;
    for (const Request& request : requests_) most = std::max(most, request.num_tokens);
    for (int32_t begin = 0; begin < most; begin += chunk) {
      std::vector<DeviceAttentionSequence> sequences;
      DeviceAttentionArgs args;
      int32_t row = 0, segments = 0;
      for (size_t i = 0; i < requests_.size(); ++i) {
        const Request& request = requests_[i];
        // A request that is done takes part with no tokens, as padding does.
        const int32_t count = std::clamp(request.num_tokens - begin, 0, chunk);
        const int32_t first = request.length - request.num_tokens + begin;
        sequences.push_back({row + begin, count, first, begins[i], segments});
        segments += NumAttentionSegments(first + count);
        args.max_tokens = std::max(args.max_tokens, count);
        args.max_context = std::max(args.max_context, first + count);
        row += request.num_tokens;
      }
      args.q = q;
      args.kv_cache = device_layer_;
      args.sequences = Upload(sequences);
      args.block_tables = tables;
      args.num_sequences = static_cast<int>(sequences.size());
      args.output = output;
      args.num_attention_heads = shape_.heads;
      args.scale = scale();
      args.workspace =
          Empty<float>(DecodeWorkspaceFloats(segments, shape_.kv_heads, shape_.head_dim));
      EXPECT_OK(decode ? AttentionDecode(args, stream()) : AttentionPrefill(args, stream()));
      EXPECT_OK(stream().Synchronize());
    }
    return Download(output, q_.size());
  }

  // A weight is rounded to BF16, at most 2^-9 of it, and so are the terms of the mix, whose values
  // are below 5: 5 * 2^-9 = 0.01 if all err one way; random, and averaged over the positions seen.
  static constexpr float kSlack = 0.01f;

  Shape shape_;
  std::vector<Request> requests_;
  std::vector<BFloat16> k_, v_, q_;
  std::vector<std::vector<int32_t>> tables_;
  KvCacheLayer layer_;
  DeviceKvCacheLayer device_layer_;
};

TEST_F(CudaAttentionTest, DecodeMatchesReference) {
  for (const Shape& shape :
       {Shape{1, 1, 64}, Shape{8, 2, 128}, Shape{16, 1, 64}, Shape{6, 2, 32}, Shape{5, 5, 128}}) {
    // Lengths around a block, a tile of 64 and a segment of 256.
    MakeCache(shape, {{1, 1}, {16, 1}, {17, 1}, {64, 1}, {65, 1}, {256, 1}, {257, 1}, {300, 1}},
              shape.heads);
    EXPECT_TRUE(NearBf16(Attend(true, 1), Reference(), kSlack)) << shape.head_dim;
  }
}

TEST_F(CudaAttentionTest, PrefillMatchesReference) {
  for (const Shape& shape :
       {Shape{1, 1, 64}, Shape{4, 1, 128}, Shape{16, 1, 64}, Shape{6, 2, 32}}) {
    // From the start, from inside a block, over a segment's edge, and padding.
    MakeCache(shape, {{70, 70}, {40, 29}, {270, 20}, {9, 0}, {1, 1}}, shape.heads + 50);
    EXPECT_TRUE(NearBf16(Attend(false, 1000), Reference(), kSlack)) << shape.head_dim;
  }
}

TEST_F(CudaAttentionTest, WholeChunkedAndOneByOneAgreeToTheBit) {
  for (const Shape& shape : {Shape{4, 2, 64}, Shape{2, 1, 128}, Shape{6, 2, 32}}) {
    // The first request crosses two edges of segments in its new tokens.
    MakeCache(shape, {{540, 300}, {30, 30}}, 99);
    const std::vector<BFloat16> whole = Attend(false, 1000);
    for (const int32_t chunk : {7, 64, 100}) {
      EXPECT_TRUE(SameBits(Attend(false, chunk), whole)) << shape.head_dim << ", " << chunk;
    }
    const int group = shape.heads / shape.kv_heads;
    for (const int32_t chunk : {1, kDecodeRows / group}) {
      EXPECT_TRUE(SameBits(Attend(true, chunk), whole)) << shape.head_dim << ", decode " << chunk;
    }
  }
}

TEST_F(CudaAttentionTest, LongContextMatchesReference) {
  MakeCache({2, 1, 64}, {{32768, 1}, {5000, 3}}, 7);
  const std::vector<BFloat16> decoded = Attend(true, 3);
  EXPECT_TRUE(NearBf16(decoded, Reference(), kSlack));
  MakeCache({2, 1, 64}, {{3000, 5}}, 8);
  EXPECT_TRUE(SameBits(Attend(false, 5), Attend(true, 5)));
}

TEST_F(CudaAttentionTest, LargeScoresDoNotOverflow) {
  MakeCache({2, 1, 64}, {{300, 3}}, 11);
  q_ = RandomBf16(static_cast<int64_t>(q_.size()), FreshSeed(12), 1000);  // scores of thousands
  // Products of a score add up in size to 64 * 1000 / 8 = 8,000, so that it may be off by 64 *
  // 2^-24 of it, 0.03, and a weight next to a tie by 3 %; of values below 4.
  EXPECT_TRUE(NearBf16(Attend(false, 3), Reference(), 0.12f));
  EXPECT_TRUE(NearBf16(Attend(true, 3), Reference(), 0.12f));
}

TEST_F(CudaAttentionTest, RefusesBadArguments) {
  MakeCache({2, 1, 64}, {{10, 1}}, 1);
  DeviceAttentionArgs good;
  good.kv_cache = device_layer_;
  good.num_sequences = 1;
  good.max_tokens = 1;
  good.max_context = 10;
  good.num_attention_heads = 2;
  const auto expect = [&](auto change, const char* text) {
    DeviceAttentionArgs bad = good;
    change(bad);
    EXPECT_THAT(AttentionDecode(bad, stream()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
    EXPECT_THAT(AttentionPrefill(bad, stream()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  };
  expect([](DeviceAttentionArgs& a) { a.kv_cache.head_dim = 96; }, "head_dim is 96");
  expect([](DeviceAttentionArgs& a) { a.kv_cache.block_tokens = 8; }, "block_tokens is 8");
  expect([](DeviceAttentionArgs& a) { a.num_attention_heads = 17; },
         "query heads per key-value head is 17, want 1..16");
  expect([](DeviceAttentionArgs& a) { a.max_context = 0; }, "max_context is 0");
  expect([](DeviceAttentionArgs&) {}, "q is null");
}

}  // namespace
}  // namespace conclave::cuda
