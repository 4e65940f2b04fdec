#include "kernels/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr int kBlock = 16;

struct Shape {
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 32;
};

// Sequences of given lengths in one paged cache whose blocks are dealt out in random order. Slots
// that no position uses hold NaN: reading one spoils the result.
struct Cache {
  Cache(const Shape& s, const std::vector<int64_t>& lengths, uint64_t seed) : shape(s) {
    int64_t num_blocks = 3;  // unused ones too
    for (const int64_t length : lengths) num_blocks += (length + kBlock - 1) / kBlock;
    std::vector<int32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 generator(seed);
    std::shuffle(order.begin(), order.end(), generator);
    k.assign(num_blocks * shape.kv_heads * kBlock * shape.head_dim, ToBFloat16(NAN));
    v = k;
    layer = {.k = k.data(),
             .v = v.data(),
             .num_blocks = num_blocks,
             .num_key_value_heads = shape.kv_heads,
             .block_tokens = kBlock,
             .head_dim = shape.head_dim};
    size_t next = 0;
    for (const int64_t length : lengths) {
      tables.emplace_back();
      for (int64_t i = 0; i < length; i += kBlock) tables.back().push_back(order[next++]);
      for (int64_t p = 0; p < length; ++p) FillSlot(tables.back(), p, generator);
    }
  }

  void FillSlot(const std::vector<int32_t>& table, int64_t p, std::mt19937_64& generator) {
    std::normal_distribution<float> normal;
    for (int h = 0; h < shape.kv_heads; ++h) {
      const int64_t slot = int64_t{table[p / kBlock]} * kBlock + p % kBlock;
      for (int i = 0; i < shape.head_dim; ++i) {
        k[layer.KeyIndex(slot, h, i)] = ToBFloat16(normal(generator));
        v[layer.ValueIndex(slot, h, i)] = ToBFloat16(normal(generator));
      }
    }
  }

  Shape shape;
  std::vector<BFloat16> k, v;
  std::vector<std::vector<int32_t>> tables;
  KvCacheLayer layer;
};

// Queries of one row per token of every sequence.
std::vector<BFloat16> Queries(const Shape& shape, int64_t rows, uint64_t seed) {
  return RandomBf16(rows * shape.heads * shape.head_dim, seed);
}

std::vector<BFloat16> Attend(const Cache& cache, const std::vector<BFloat16>& q,
                             const std::vector<AttentionSequence>& sequences,
                             const Device* device) {
  std::vector<BFloat16> output(q.size(), ToBFloat16(99));
  const AttentionArgs args{.q = q.data(),
                           .kv_cache = cache.layer,
                           .sequences = sequences,
                           .output = output.data(),
                           .num_attention_heads = cache.shape.heads,
                           .scale = 1 / std::sqrt(static_cast<float>(cache.shape.head_dim))};
  EXPECT_OK(device == nullptr ? AttentionReference(args) : Attention(args, *device));
  return output;
}

TEST(AttentionReferenceTest, HandWorked) {
  // head_dim 2, scale 1/sqrt 2. Position 0: k = (0, 0), v = (1, 10); 1: k = (sqrt 2, 0),
  // v = (3, 30). q = (ln 3, 5): scores 0 and ln 3 (about), weights 1/4 and 3/4.
  Cache cache({.heads = 1, .kv_heads = 1, .head_dim = 2}, {2}, 1);
  // A block of head_dim 2 has one line of key pairs; its first values are those of tokens 0 and 1,
  // interleaved.
  const int64_t block = int64_t{cache.tables[0][0]} * kBlock * 2;
  const float k[] = {0, 0, std::sqrt(2.0f), 0}, v[] = {1, 3, 10, 30};
  for (int i = 0; i < 4; ++i) {
    cache.k[block + i] = ToBFloat16(k[i]);
    cache.v[block + i] = ToBFloat16(v[i]);
  }
  const std::vector<BFloat16> q =
      ToBFloat16(std::vector<float>{7, 7, std::log(3.0f), 5});  // of positions 0 and 1
  const std::vector<BFloat16> output =
      Attend(cache, q, {{.num_tokens = 2, .block_table = cache.tables[0].data()}}, nullptr);
  EXPECT_EQ(ToFloat(output[0]), 1);  // position 0 sees itself alone
  EXPECT_EQ(ToFloat(output[1]), 10);
  // 1/4 * 1 + 3/4 * 3 = 2.5 and 25; k and q are rounded to BF16, 2^-9 of the score.
  EXPECT_NEAR(ToFloat(output[2]), 2.5, 0.02);
  EXPECT_NEAR(ToFloat(output[3]), 25, 0.2);
}

TEST(AttentionTest, MatchesReference) {
  for (const Shape& shape : {Shape{1, 1, 2}, Shape{4, 2, 32}, Shape{6, 2, 34}, Shape{16, 8, 128},
                             Shape{16, 1, 64}, Shape{5, 5, 256}, Shape{32, 1, 16}}) {
    // Decode at a block's last and first slot, a short prefill, one that starts inside a block.
    const Cache cache(shape, {16, 17, 5, 40, 70}, 3);
    std::vector<AttentionSequence> sequences = {
        {.first_row = 0, .num_tokens = 1, .first_position = 15},
        {.first_row = 1, .num_tokens = 1, .first_position = 16},
        {.first_row = 2, .num_tokens = 5, .first_position = 0},
        {.first_row = 7, .num_tokens = 0, .first_position = 0},
        {.first_row = 7, .num_tokens = 61, .first_position = 9}};
    for (int i = 0; i < 5; ++i) sequences[i].block_table = cache.tables[i].data();
    const std::vector<BFloat16> q = Queries(shape, 68, 4);
    const std::vector<BFloat16> expected = Attend(cache, q, sequences, nullptr);
    for (const CpuIsa isa : TestIsas()) {
      const Device alone{.isa = isa};
      const std::vector<BFloat16> actual = Attend(cache, q, sequences, &alone);
      // Scores are off by at most head_dim * 2^-24 of sum |q k| / sqrt(head_dim) < 256 * 2^-24 *
      // 20 = 3e-4, so are the weights; values are below 5. One step of BF16 comes on top.
      EXPECT_TRUE(NearBf16(actual, expected, 2e-3f))
          << Name(isa) << " " << shape.heads << "/" << shape.kv_heads << " x " << shape.head_dim;
      for (const int threads : {2, 3}) {
        ThreadPool pool(threads);
        const Device device{.isa = isa, .pool = &pool};
        EXPECT_TRUE(SameBits(Attend(cache, q, sequences, &device), actual)) << Name(isa);
      }
    }
  }
}

// 1100 positions: past the first 1024, where two parts of the softmax are merged.
TEST(AttentionTest, WholeChunkedAndOneByOneAgreeToTheBit) {
  const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64};
  const int64_t length = 1100;
  const Cache cache(shape, {length}, 5);
  const int32_t* const table = cache.tables[0].data();
  const std::vector<BFloat16> q = Queries(shape, length, 6);
  for (const CpuIsa isa : TestIsas()) {
    const Device alone{.isa = isa};
    const std::vector<BFloat16> whole =
        Attend(cache, q, {{.num_tokens = length, .block_table = table}}, &alone);
    for (const int64_t chunk : {1, 7, 64, 1000}) {
      ThreadPool pool(static_cast<int>(chunk % 3) + 1);
      const Device device{.isa = isa, .pool = &pool};
      std::vector<BFloat16> pieces;
      // One by one only where it matters: around the edge at 1024.
      const int64_t first = chunk == 1 ? 1000 : 0;
      pieces.assign(whole.begin(), whole.begin() + first * shape.heads * shape.head_dim);
      for (int64_t p = first; p < length; p += chunk) {
        const int64_t n = std::min(chunk, length - p);
        const int64_t row = shape.heads * shape.head_dim;
        const std::vector<BFloat16> part(q.begin() + p * row, q.begin() + (p + n) * row);
        const std::vector<BFloat16> out = Attend(
            cache, part, {{.num_tokens = n, .first_position = p, .block_table = table}}, &device);
        pieces.insert(pieces.end(), out.begin(), out.end());
      }
      EXPECT_TRUE(SameBits(pieces, whole)) << Name(isa) << " chunks of " << chunk;
    }
  }
}

TEST(AttentionTest, LongContextsMatchReferenceAndIgnoreBatchAndThreads) {
  const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 128};
  const Cache cache(shape, {3000, 1024, 1025, 20}, 7);
  std::vector<AttentionSequence> sequences;
  const std::vector<int64_t> lengths = {3000, 1024, 1025, 20};
  for (int i = 0; i < 4; ++i) {
    sequences.push_back({.first_row = i,
                         .num_tokens = 1,
                         .first_position = lengths[i] - 1,
                         .block_table = cache.tables[i].data()});
  }
  const std::vector<BFloat16> q = Queries(shape, 4, 8);
  const std::vector<BFloat16> expected = Attend(cache, q, sequences, nullptr);
  const int64_t row = shape.heads * shape.head_dim;
  for (const CpuIsa isa : TestIsas()) {
    const Device alone{.isa = isa};
    const std::vector<BFloat16> batch = Attend(cache, q, sequences, &alone);
    // Values average out to about 0.1; 3000 weights of error 3e-4 relative do not add up to 1e-3.
    EXPECT_TRUE(NearBf16(batch, expected, 1e-3f)) << Name(isa);
    for (const int threads : {1, 2, 3, 8}) {
      ThreadPool pool(threads);
      const Device device{.isa = isa, .pool = &pool};
      EXPECT_TRUE(SameBits(Attend(cache, q, sequences, &device), batch)) << Name(isa);
      for (int i = 0; i < 4; ++i) {  // alone, the segments are spread over the threads
        AttentionSequence one = sequences[i];
        one.first_row = 0;
        const std::vector<BFloat16> one_q(q.begin() + i * row, q.begin() + (i + 1) * row);
        EXPECT_TRUE(
            SameBits(Attend(cache, one_q, {one}, &device),
                     std::vector<BFloat16>(batch.begin() + i * row, batch.begin() + (i + 1) * row)))
            << Name(isa) << " " << threads << " threads, sequence " << i;
      }
    }
  }
}

TEST(AttentionTest, LargeScoresDoNotOverflow) {
  const Shape shape{.heads = 1, .kv_heads = 1, .head_dim = 16};
  const Cache cache(shape, {50}, 9);
  const std::vector<BFloat16> q = RandomBf16(16, 10, 1000);  // scores of some thousands
  for (const CpuIsa isa : TestIsas()) {
    const Device device{.isa = isa};
    const std::vector<AttentionSequence> sequence = {
        {.num_tokens = 1, .first_position = 49, .block_table = cache.tables[0].data()}};
    EXPECT_TRUE(
        NearBf16(Attend(cache, q, sequence, &device), Attend(cache, q, sequence, nullptr), 2e-2f))
        << Name(isa);
  }
}

TEST(AttentionTest, RefusesBadArguments) {
  const Cache cache({}, {20}, 1);
  const std::vector<BFloat16> q = Queries(cache.shape, 20, 2);
  std::vector<BFloat16> output(q.size());
  std::vector<AttentionSequence> sequences = {
      {.num_tokens = 20, .block_table = cache.tables[0].data()}};
  const AttentionArgs good{.q = q.data(),
                           .kv_cache = cache.layer,
                           .sequences = sequences,
                           .output = output.data(),
                           .num_attention_heads = 4,
                           .scale = 1};
  EXPECT_OK(Attention(good, {}));
  auto expect = [&](auto change, const char* text) {
    AttentionArgs bad = good;
    change(bad);
    EXPECT_THAT(Attention(bad, {}), StatusIs(kInvalid, HasSubstr(text)));
    EXPECT_THAT(AttentionReference(bad), StatusIs(kInvalid, HasSubstr(text)));
  };
  expect([](AttentionArgs& a) { a.q = nullptr; }, "q is null");
  expect([](AttentionArgs& a) { a.output = nullptr; }, "output is null");
  expect([](AttentionArgs& a) { a.kv_cache.v = nullptr; }, "kv_cache.v is null");
  expect([](AttentionArgs& a) { a.kv_cache.block_tokens = 32; }, "block_tokens is 32");
  expect([](AttentionArgs& a) { a.num_attention_heads = 3; }, "num_attention_heads is 3");
  expect([](AttentionArgs& a) { a.num_attention_heads = 128; },
         "query heads per key-value head is 64");
  const std::vector<int32_t> wrong = {0, 99};
  std::vector<AttentionSequence> changed = sequences;
  changed[0].block_table = wrong.data();
  expect([&](AttentionArgs& a) { a.sequences = changed; }, "block_table entry is 99, want 0..4");
  changed[0].block_table = nullptr;
  expect([&](AttentionArgs& a) { a.sequences = changed; }, "block_table is null");
  changed[0].first_position = -1;
  expect([&](AttentionArgs& a) { a.sequences = changed; }, "first_position is -1");
  changed[0].num_tokens = -1;
  expect([&](AttentionArgs& a) { a.sequences = changed; }, "num_tokens is -1");
  EXPECT_OK(Attention({.kv_cache = cache.layer, .num_attention_heads = 4}, {}));
}

}  // namespace
}  // namespace conclave
