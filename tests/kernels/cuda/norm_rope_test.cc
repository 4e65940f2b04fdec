#include "kernels/cuda/norm_rope.h"

#include <algorithm>
#include <numeric>

#include "kernels/rope_table.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

constexpr int kBlock = 16;

struct Shape {
  int heads, kv_heads, head_dim;
  int64_t tokens;
};

class CudaNormRopeTest : public CudaTest {
 protected:
  void Compare(const Shape& shape, const RopeTable& rope, int32_t first_position) {
    const int64_t width = int64_t{shape.heads + 2 * shape.kv_heads} * shape.head_dim;
    const int64_t num_blocks = shape.tokens / kBlock + 2;
    const int64_t cache_size = num_blocks * shape.kv_heads * kBlock * shape.head_dim;
    const std::vector<float> qkv = RandomNormal(shape.tokens * width, FreshSeed(1), 2);
    const std::vector<float> q_norm = RandomNormal(shape.head_dim, FreshSeed(2));
    const std::vector<float> k_norm = RandomNormal(shape.head_dim, FreshSeed(3));
    std::vector<int32_t> positions(shape.tokens);
    std::iota(positions.begin(), positions.end(), first_position);
    std::vector<int64_t> slots(num_blocks * kBlock);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), std::mt19937_64(FreshSeed(4)));
    slots.resize(shape.tokens);
    // Slots that no token writes must stay as they are.
    const std::vector<BFloat16> before(cache_size, ToBFloat16(9));
    const DeviceNormRopeArgs args{.qkv = Upload(qkv),
                                  .q_norm = Upload(q_norm),
                                  .k_norm = Upload(k_norm),
                                  .rope_cos = Upload(rope.cos),
                                  .rope_sin = Upload(rope.sin),
                                  .positions = Upload(positions),
                                  .slot_mapping = Upload(slots),
                                  .q = Empty<BFloat16>(shape.tokens * shape.heads * shape.head_dim),
                                  .kv_cache = {.k = Upload(before),
                                               .v = Upload(before),
                                               .num_key_value_heads = shape.kv_heads,
                                               .block_tokens = kBlock,
                                               .head_dim = shape.head_dim},
                                  .num_tokens = shape.tokens,
                                  .num_attention_heads = shape.heads};
    ASSERT_OK(NormRope(args, stream()));

    // Keys are what the reference makes of them as queries with k_norm; values are rounded.
    const std::vector<BFloat16> q = Reference(qkv, q_norm, rope, positions, shape, 0, shape.heads);
    const std::vector<BFloat16> keys =
        Reference(qkv, k_norm, rope, positions, shape, shape.heads, shape.kv_heads);
    std::vector<BFloat16> k = before, v = before;
    for (int64_t token = 0; token < shape.tokens; ++token) {
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int64_t at =
            ((slots[token] / kBlock * shape.kv_heads + head) * kBlock + slots[token] % kBlock) *
            shape.head_dim;
        for (int i = 0; i < shape.head_dim; ++i) {
          k[at + i] = keys[(token * shape.kv_heads + head) * shape.head_dim + i];
          v[at + i] = ToBFloat16(
              qkv[token * width + (shape.heads + shape.kv_heads + head) * shape.head_dim + i]);
        }
      }
    }
    // Values below about 10 in sums that may be fused or ordered otherwise: 1e-5, and one rounding.
    EXPECT_TRUE(NearBf16(Download(args.q, q.size()), q, 1e-5f)) << shape.head_dim;
    EXPECT_TRUE(NearBf16(Download(args.kv_cache.k, k.size()), k, 1e-5f)) << shape.head_dim;
    EXPECT_TRUE(SameBits(Download(args.kv_cache.v, v.size()), v)) << shape.head_dim;
  }

  // Heads first_head .. first_head + heads - 1 of every token, as queries.
  static std::vector<BFloat16> Reference(const std::vector<float>& qkv,
                                         const std::vector<float>& weight, const RopeTable& rope,
                                         const std::vector<int32_t>& positions, const Shape& shape,
                                         int first_head, int heads) {
    const int64_t all_heads = shape.heads + 2 * shape.kv_heads;
    // Behind them a key and a value, which go to a slot that nobody reads.
    std::vector<float> padded;
    for (int64_t token = 0; token < shape.tokens; ++token) {
      const auto first = qkv.begin() + (token * all_heads + first_head) * shape.head_dim;
      padded.insert(padded.end(), first, first + int64_t{heads} * shape.head_dim);
      padded.insert(padded.end(), 2 * shape.head_dim, 1.0f);
    }
    const std::vector<int64_t> slots(shape.tokens, 0);
    std::vector<BFloat16> scratch(2 * kBlock * shape.head_dim);
    std::vector<BFloat16> q(shape.tokens * heads * shape.head_dim);
    EXPECT_OK(NormRopeReference({.qkv = padded.data(),
                                 .q_norm = weight.data(),
                                 .k_norm = weight.data(),
                                 .rope = &rope,
                                 .positions = positions.data(),
                                 .slot_mapping = slots.data(),
                                 .q = q.data(),
                                 .kv_cache = {.k = scratch.data(),
                                              .v = scratch.data() + kBlock * shape.head_dim,
                                              .num_blocks = 1,
                                              .num_key_value_heads = 1,
                                              .block_tokens = kBlock,
                                              .head_dim = shape.head_dim},
                                 .num_tokens = shape.tokens,
                                 .num_attention_heads = heads}));
    return q;
  }
};

TEST_F(CudaNormRopeTest, MatchesReference) {
  for (const Shape& shape : {Shape{1, 1, 2, 1}, Shape{4, 2, 32, 3}, Shape{6, 2, 34, 17},
                             Shape{32, 4, 128, 33}, Shape{5, 5, 256, 2}, Shape{3, 1, 64, 0}}) {
    Compare(shape, MakeRopeTable({.head_dim = shape.head_dim, .max_positions = 200}), 5);
  }
}

TEST_F(CudaNormRopeTest, LongAndYarnPositions) {
  RopeParams params{.head_dim = 128, .max_positions = 32768};
  Compare({4, 1, 128, 5}, MakeRopeTable(params), 32763);
  params.max_positions = 131072;
  params.yarn = YarnParams{.factor = 4, .original_max_position_embeddings = 32768};
  Compare({4, 1, 128, 5}, MakeRopeTable(params), 131067);
}

TEST_F(CudaNormRopeTest, RefusesBadArguments) {
  DeviceNormRopeArgs args{
      .kv_cache = {.num_key_value_heads = 1, .block_tokens = 16, .head_dim = 64},
      .num_tokens = 1,
      .num_attention_heads = 1};
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(NormRope(args, stream()), StatusIs(invalid, HasSubstr("qkv is null")));
  args.kv_cache.head_dim = 258;
  EXPECT_THAT(NormRope(args, stream()), StatusIs(invalid, HasSubstr("head_dim is 258")));
  args.kv_cache.head_dim = 63;
  EXPECT_THAT(NormRope(args, stream()), StatusIs(invalid, HasSubstr("head_dim is 63")));
  args.num_tokens = -1;
  EXPECT_THAT(NormRope(args, stream()), StatusIs(invalid, HasSubstr("num_tokens is -1")));
}

}  // namespace
}  // namespace conclave::cuda
