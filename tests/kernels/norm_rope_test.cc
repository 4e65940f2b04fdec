#include "kernels/norm_rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

struct Result {
  std::vector<BFloat16> q, k, v;
};

struct Problem {
  Problem(int64_t tokens, int num_heads, int num_kv_heads, int dim, uint64_t seed)
      : num_tokens(tokens),
        heads(num_heads),
        kv_heads(num_kv_heads),
        head_dim(dim),
        qkv(RandomNormal(tokens * (num_heads + 2 * num_kv_heads) * dim, seed, 2)),
        q_norm(RandomNormal(dim, seed + 1)),
        k_norm(RandomNormal(dim, seed + 2)),
        rope(MakeRopeTable({.head_dim = dim, .max_positions = 1000})) {
    for (int64_t t = 0; t < tokens; ++t) {
      positions.push_back(static_cast<int32_t>((t * 37 + 5) % 1000));
      slots.push_back(tokens - 1 - t);
    }
  }

  NormRopeArgs Args(Result* result) const {
    const int64_t num_blocks = num_tokens / 16 + 1;
    result->q.assign(num_tokens * heads * head_dim, BFloat16{});
    result->k.assign(num_blocks * 16 * kv_heads * head_dim, BFloat16{});
    result->v = result->k;
    return {.qkv = qkv.data(),
            .q_norm = q_norm.data(),
            .k_norm = k_norm.data(),
            .rope = &rope,
            .positions = positions.data(),
            .slot_mapping = slots.data(),
            .q = result->q.data(),
            .kv_cache = {.k = result->k.data(),
                         .v = result->v.data(),
                         .num_blocks = num_blocks,
                         .num_key_value_heads = kv_heads,
                         .block_tokens = 16,
                         .head_dim = head_dim},
            .num_tokens = num_tokens,
            .num_attention_heads = heads};
  }

  int64_t num_tokens;
  int heads, kv_heads, head_dim;
  std::vector<float> qkv, q_norm, k_norm;
  RopeTable rope;
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
};

TEST(NormRopeReferenceTest, HandWorked) {
  // One query and one KV head of 2: q = (3, 4), k = (0, 5), v = (7, -1.5); weights 1 and 2. At
  // position 1 the one pair turns by 1 radian.
  Problem problem(1, 1, 1, 2, 1);
  problem.qkv = {3, 4, 0, 5, 7, -1.5f};
  problem.q_norm = {1, 2};
  problem.k_norm = {1, 1};
  problem.positions = {1};
  problem.slots = {3};
  Result result;
  NormRopeArgs args = problem.Args(&result);
  args.rms_norm_eps = 0;
  ASSERT_OK(NormRopeReference(args));
  // q: root mean square sqrt(12.5), normed (0.848528, 2.262742); turned by 1:
  // 0.848528 * 0.540302 - 2.262742 * 0.841471 = -1.445569; 2.262742 * 0.540302 + 0.848528 *
  // 0.841471 = 1.936576. k: (0, 1.414214) turns into (-1.190020, 0.764103).
  EXPECT_EQ(result.q[0], ToBFloat16(-1.445569f));
  EXPECT_EQ(result.q[1], ToBFloat16(1.936576f));
  // The only pair of the key lies with those of the other 15 tokens; slot 3's value is the odd one
  // of the second pair of tokens, which starts at 2 * 2.
  EXPECT_EQ(result.k[3 * 2], ToBFloat16(-1.190020f));
  EXPECT_EQ(result.k[3 * 2 + 1], ToBFloat16(0.764103f));
  EXPECT_EQ(ToFloat(result.v[4 + 1]), 7);
  EXPECT_EQ(ToFloat(result.v[4 + 3]), -1.5f);
}

TEST(NormRopeTest, MatchesReferenceForEveryHeadSize) {
  for (const int head_dim : {2, 6, 16, 30, 32, 34, 64, 128, 256}) {
    for (const int64_t tokens : {0, 1, 35}) {
      const Problem problem(tokens, 4, 2, head_dim, head_dim);
      Result expected;
      ASSERT_OK(NormRopeReference(problem.Args(&expected)));
      for (const CpuIsa isa : TestIsas()) {
        Result alone;
        ASSERT_OK(NormRope(problem.Args(&alone), {.isa = isa}));
        // Values reach about 10; 2^-20 of that is where a rotation cancels. Else one step of BF16.
        EXPECT_TRUE(NearBf16(alone.q, expected.q, 1e-5f)) << Name(isa) << " " << head_dim;
        EXPECT_TRUE(NearBf16(alone.k, expected.k, 1e-5f)) << Name(isa) << " " << head_dim;
        EXPECT_TRUE(SameBits(alone.v, expected.v)) << Name(isa) << " " << head_dim;
        ThreadPool pool(3);
        Result threaded;
        ASSERT_OK(NormRope(problem.Args(&threaded), {.isa = isa, .pool = &pool}));
        EXPECT_TRUE(SameBits(threaded.q, alone.q));
        EXPECT_TRUE(SameBits(threaded.k, alone.k));
        EXPECT_TRUE(SameBits(threaded.v, alone.v));
      }
    }
  }
}

TEST(NormRopeTest, WritesSlotsOfItsHeadAndBlock) {
  // Token at slot 17 is offset 1 of block 1; KV head 1 of 2 lies after head 0's 16 tokens. Its
  // four values are the odd ones of the first pair of tokens, its key the second pair of each of
  // the two lines of 16 pairs.
  Problem problem(1, 2, 2, 4, 9);
  problem.slots = {17};
  Result result;
  NormRopeArgs args = problem.Args(&result);
  args.kv_cache.num_blocks = 2;
  result.k.assign(2 * 2 * 16 * 4, BFloat16{});
  result.v.assign(2 * 2 * 16 * 4, BFloat16{});
  args.kv_cache.k = result.k.data();
  args.kv_cache.v = result.v.data();
  ASSERT_OK(NormRope(args, {.isa = DetectCpuIsa()}));
  const float* const v_head[] = {problem.qkv.data() + (2 + 2) * 4,
                                 problem.qkv.data() + (2 + 2 + 1) * 4};
  std::vector<BFloat16> v(result.v.size());
  std::vector<bool> k_written(result.k.size());
  for (const int head : {0, 1}) {
    const size_t start = (1 * 2 + head) * 16 * 4;
    for (int i = 0; i < 4; ++i) v[start + 2 * i + 1] = ToBFloat16(v_head[head][i]);
    for (const size_t line : {0, 32}) {
      k_written[start + line + 2] = k_written[start + line + 3] = true;
    }
  }
  EXPECT_TRUE(SameBits(result.v, v));
  for (size_t i = 0; i < result.k.size(); ++i) {
    EXPECT_EQ(result.k[i].bits != 0, k_written[i]) << i;
  }
}

TEST(NormRopeTest, RefusesBadArguments) {
  Problem problem(2, 2, 1, 8, 1);
  Result result;
  const NormRopeArgs good = problem.Args(&result);
  const Device device;
  EXPECT_OK(NormRope(good, device));
  auto expect = [&](auto change, const char* text) {
    NormRopeArgs bad = good;
    change(bad);
    EXPECT_THAT(NormRope(bad, device), StatusIs(kInvalid, HasSubstr(text)));
    EXPECT_THAT(NormRopeReference(bad), StatusIs(kInvalid, HasSubstr(text)));
  };
  expect([](NormRopeArgs& a) { a.qkv = nullptr; }, "qkv is null");
  expect([](NormRopeArgs& a) { a.q_norm = nullptr; }, "q_norm is null");
  expect([](NormRopeArgs& a) { a.rope = nullptr; }, "rope is null");
  expect([](NormRopeArgs& a) { a.q = nullptr; }, "q is null");
  expect([](NormRopeArgs& a) { a.kv_cache.k = nullptr; }, "kv_cache.k is null");
  expect([](NormRopeArgs& a) { a.num_tokens = -1; }, "num_tokens is -1");
  expect([](NormRopeArgs& a) { a.num_attention_heads = 0; }, "num_attention_heads is 0");
  expect([](NormRopeArgs& a) { a.kv_cache.block_tokens = 15; }, "block_tokens is 15, want even");
  expect([](NormRopeArgs& a) { a.kv_cache.head_dim = 7; }, "head_dim is 7, want even");
  expect([](NormRopeArgs& a) { a.kv_cache.head_dim = 512; }, "head_dim is 512");
  expect([](NormRopeArgs& a) { a.kv_cache.head_dim = 16; }, "rope.head_dim is 8");
  const std::vector<int32_t> far = {0, 1000};
  expect([&](NormRopeArgs& a) { a.positions = far.data(); }, "position is 1000, want 0..999");
  const std::vector<int64_t> slots = {0, -1}, high = {0, 16};
  expect([&](NormRopeArgs& a) { a.slot_mapping = slots.data(); }, "slot_mapping entry is -1");
  expect([&](NormRopeArgs& a) { a.slot_mapping = high.data(); }, "slot_mapping entry is 16");
}

}  // namespace
}  // namespace conclave
