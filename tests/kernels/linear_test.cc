#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/aligned_vector.h"
#include "kernels/swiglu.h"
#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

struct Problem {
  Problem(int64_t rows, int64_t out, int64_t in, uint64_t seed,
          WeightDtype dtype = WeightDtype::kBf16)
      : num_rows(rows),
        input(RandomBf16(rows * in, seed)),
        matrix(RandomMatrix(dtype, out, in, seed + 1, 0.1f)) {}

  std::vector<float> Run(const Device& device, int64_t first_row, int64_t rows) const {
    std::vector<float> output(rows * matrix.out_features(), 7.0f);
    EXPECT_OK(Linear({.input = input.data() + first_row * matrix.in_features(),
                      .weight = &matrix,
                      .output = output.data(),
                      .num_rows = rows},
                     device));
    return output;
  }

  int64_t num_rows;
  std::vector<BFloat16> input;
  PackedMatrix matrix;
};

std::vector<BFloat16> Magnitudes(std::vector<BFloat16> values) {
  for (BFloat16& value : values) value.bits &= 0x7fff;
  return values;
}

TEST(LinearReferenceTest, HandWorkedInt8) {
  // Weights (127, -64) with scale 1; the row (2, -1) has scale 2 / 127 and codes 127 and -64 (-63.5
  // ties to even): 127 * 127 + 64 * 64 = 20225, times 2 / 127.
  const PackedMatrix matrix = Pack(ToBFloat16(std::vector<float>{127, -64}), 2, WeightDtype::kInt8);
  const std::vector<BFloat16> input = ToBFloat16(std::vector<float>{2, -1});
  float output = 0;
  ASSERT_OK(LinearReference(
      {.input = input.data(), .weight = &matrix, .output = &output, .num_rows = 1}));
  EXPECT_EQ(output, 20225.0f * (2.0f / 127.0f));
}

TEST(LinearReferenceTest, HandWorked) {
  // [1 2 3; 4 5 6] times (1, 0.5, -1) and (2, 0, 1).
  const std::vector<BFloat16> weights = ToBFloat16(std::vector<float>{1, 2, 3, 4, 5, 6});
  const std::vector<BFloat16> input = ToBFloat16(std::vector<float>{1, 0.5, -1, 2, 0, 1});
  const PackedMatrix matrix = Pack(weights, 3);
  std::vector<float> output(4);
  LinearArgs args{.input = input.data(), .weight = &matrix, .output = output.data(), .num_rows = 2};
  ASSERT_OK(LinearReference(args));
  EXPECT_THAT(output, ElementsAre(-1, 0.5, 5, 14));
  args.accumulate = true;
  ASSERT_OK(LinearReference(args));
  EXPECT_THAT(output, ElementsAre(-2, 1, 10, 28));
}

// Products of a shape that the sweeps still try: the reference takes a nanosecond or two for each.
constexpr int64_t kMostWork = 600'000;

constexpr int64_t kEdgeRows[] = {0, 1, 2, 5, 6, 7, 15, 16, 17, 32, 33, 49, 97, 257};

std::string Describe(CpuIsa isa, WeightDtype dtype, int64_t rows, int64_t out, int64_t in) {
  return absl::StrCat(CpuIsaName(isa), ", ", WeightDtypeName(dtype), ", rows ", rows, ", [", out,
                      ", ", in, "]");
}

TEST(LinearTest, MatchesReferenceAroundTileEdges) {
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kFp8}) {
    for (const int64_t rows : kEdgeRows) {
      for (const int64_t out : {1, 16, 17, 33, 65, 112}) {
        for (const int64_t in : {1, 2, 31, 64, 129, 513}) {
          if (rows * out * in > kMostWork) continue;
          const Problem problem(rows, out, in, rows * 10007 + out * 101 + in, dtype);
          std::vector<float> expected(rows * out), magnitudes(rows * out);
          const std::vector<BFloat16> absolute = Magnitudes(problem.input);
          ASSERT_OK(LinearReference({.input = problem.input.data(),
                                     .weight = &problem.matrix,
                                     .output = expected.data(),
                                     .num_rows = rows}));
          for (int64_t i = 0; i < rows * out; ++i) {
            for (int64_t k = 0; k < in; ++k) {
              magnitudes[i] +=
                  std::fabs(ToFloat(absolute[i / out * in + k]) * problem.matrix.Value(i % out, k));
            }
          }
          for (const CpuIsa isa : TestIsas()) {
            const std::vector<float> actual = problem.Run({.isa = isa}, 0, rows);
            for (int64_t i = 0; i < rows * out; ++i) {
              // Each of `in` additions rounds by 2^-24 of a partial sum, which is at most the sum
              // of magnitudes; on both sides.
              ASSERT_NEAR(actual[i], expected[i],
                          2 * static_cast<double>(in) * 0x1p-24 * magnitudes[i])
                  << Describe(isa, dtype, rows, out, in) << " at " << i;
            }
          }
        }
      }
    }
  }
}

TEST(LinearTest, IntegerProductsAreTheReferencesBits) {
  for (const WeightDtype dtype : {WeightDtype::kInt8, WeightDtype::kInt4}) {
    for (const int64_t rows : kEdgeRows) {
      for (const int64_t out : {1, 16, 17, 33, 65, 112}) {
        for (const int64_t in : {1, 31, 64, 257, 513, 1400}) {
          if (rows * out * in > kMostWork) continue;
          const Problem problem(rows, out, in, rows * 10007 + out * 101 + in, dtype);
          std::vector<float> expected(rows * out);
          ASSERT_OK(LinearReference({.input = problem.input.data(),
                                     .weight = &problem.matrix,
                                     .output = expected.data(),
                                     .num_rows = rows}));
          for (const CpuIsa isa : TestIsas()) {
            ASSERT_TRUE(SameBits(problem.Run({.isa = isa}, 0, rows), expected))
                << Describe(isa, dtype, rows, out, in);
          }
        }
      }
    }
  }
}

// The rounding of int8 weights and inputs moves a product by about 1 %.
TEST(LinearTest, QuantizedProductsAreNearTheExactOnes) {
  const int64_t rows = 7, out = 48, in = 1024;
  const std::vector<BFloat16> weights = RandomBf16(out * in, 3, 0.1f);
  Problem problem(rows, out, in, 2);
  problem.matrix = Pack(weights, in);
  const std::vector<float> exact = problem.Run({}, 0, rows);
  for (const auto& [dtype, bound] :
       {std::pair{WeightDtype::kInt8, 0.015}, {WeightDtype::kInt4, 0.12}}) {
    problem.matrix = Pack(weights, in, dtype);
    const std::vector<float> quantized = problem.Run({}, 0, rows);
    double error = 0, size = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error += std::pow(quantized[i] - exact[i], 2);
      size += std::pow(exact[i], 2);
    }
    EXPECT_LT(std::sqrt(error / size), bound) << WeightDtypeName(dtype);
    EXPECT_GT(error, 0) << WeightDtypeName(dtype);
  }
}

TEST(LinearTest, Fp8GivesTheBitsOfTheWidenedMatrix) {
  for (const auto& [out, in] : {std::pair{1, 1}, {40, 33}, {144, 300}, {130, 1024}}) {
    const Fp8Matrix fp8(out, in, 17, 0.1f);
    const PackedMatrix kept = fp8.Packed(), widened = Pack(fp8.Widened(), in);
    const std::vector<BFloat16> input = RandomBf16(70 * in, 18);
    for (const CpuIsa isa : TestIsas()) {
      for (const int64_t rows : {1, 16, 70}) {
        std::vector<float> actual(rows * out), expected(rows * out);
        for (const auto& [matrix, output] : {std::pair{&kept, &actual}, {&widened, &expected}}) {
          ASSERT_OK(Linear(
              {.input = input.data(), .weight = matrix, .output = output->data(), .num_rows = rows},
              {.isa = isa}));
        }
        EXPECT_TRUE(SameBits(actual, expected)) << Describe(isa, WeightDtype::kFp8, rows, out, in);
      }
    }
  }
}

// in_features 5000 is more than one pass over the inputs, 530 rows more than one block of rows.
TEST(LinearTest, ARowDoesNotDependOnBatchThreadsOrTile) {
  for (const WeightDtype dtype : kTestDtypes) {
    for (const auto& [out, in] : {std::pair{24, 5000}, {528, 300}}) {
      const Problem problem(530, out, in, 5, dtype);
      for (const CpuIsa isa : TestIsas()) {
        std::vector<float> alone;
        for (int64_t row = 0; row < problem.num_rows; ++row) {
          const std::vector<float> one = problem.Run({.isa = isa}, row, 1);
          alone.insert(alone.end(), one.begin(), one.end());
        }
        for (const int threads : {1, 3}) {
          ThreadPool pool(threads);
          const Device device{.isa = isa, .pool = &pool};
          for (const int64_t rows : {2, 3, 5, 8, 17, 47, 96, 530}) {
            const std::vector<float> batch = problem.Run(device, 530 - rows, rows);
            EXPECT_TRUE(SameBits(batch, std::vector<float>(alone.end() - rows * out, alone.end())))
                << Describe(isa, dtype, rows, out, in) << ", threads " << threads;
          }
        }
      }
    }
  }
}

// 600 rows of 528 sums are more than a mebibyte, which go past the caches; added to zeros they do
// not, and must be the same.
TEST(LinearTest, RowsPastTheCachesAreTheSame) {
  const int64_t rows = 600, out = 528, in = 64;
  const Problem problem(rows, out, in, 8);
  for (const CpuIsa isa : TestIsas()) {
    ThreadPool pool(3);
    AlignedVector<float> streamed(rows * out, 7.0f), added(rows * out, 0.0f);
    LinearArgs args{.input = problem.input.data(),
                    .weight = &problem.matrix,
                    .output = streamed.data(),
                    .num_rows = rows};
    ASSERT_OK(Linear(args, {.isa = isa, .pool = &pool}));
    args.output = added.data();
    args.accumulate = true;
    ASSERT_OK(Linear(args, {.isa = isa, .pool = &pool}));
    EXPECT_TRUE(std::equal(streamed.begin(), streamed.end(), added.begin())) << CpuIsaName(isa);
  }
}

// Half sizes of 24 and 1 put a gate's and an up's row into one panel.
TEST(LinearSwiGluTest, IsSwiGluOfLinear) {
  for (const WeightDtype dtype : kTestDtypes) {
    for (const int64_t size : {1, 16, 24, 48, 208}) {
      const Problem problem(70, 2 * size, 300, size, dtype);
      for (const CpuIsa isa : TestIsas()) {
        ThreadPool pool(3);
        const Device device{.isa = isa, .pool = &pool};
        for (const int64_t rows : {0, 1, 16, 70}) {
          const std::vector<float> gate_up = problem.Run(device, 0, rows);
          std::vector<BFloat16> expected(rows * size), actual(rows * size);
          ASSERT_OK(SwiGlu({.gate_up = gate_up.data(),
                            .output = expected.data(),
                            .num_rows = rows,
                            .intermediate_size = size},
                           device));
          ASSERT_OK(LinearSwiGlu({.input = problem.input.data(),
                                  .gate_up_proj = &problem.matrix,
                                  .output = actual.data(),
                                  .num_rows = rows},
                                 device));
          for (int64_t i = 0; i < rows * size; ++i) {
            ASSERT_EQ(actual[i].bits, expected[i].bits)
                << Describe(isa, dtype, rows, 2 * size, 300) << " at " << i;
          }
        }
      }
    }
  }
}

TEST(LinearSwiGluTest, ReferenceHandWorked) {
  // gate = 2, up = 3 for the input 1: silu(2) = 2 / (1 + e^-2) = 1.761594, times 3 is 5.284782,
  // which rounds to 5.28125 in BF16.
  const PackedMatrix matrix = Pack(ToBFloat16(std::vector<float>{2, 3}), 1);
  const std::vector<BFloat16> input = ToBFloat16(std::vector<float>{1});
  BFloat16 output;
  ASSERT_OK(LinearSwiGluReference(
      {.input = input.data(), .gate_up_proj = &matrix, .output = &output, .num_rows = 1}));
  EXPECT_EQ(ToFloat(output), 5.28125f);
}

TEST(LinearSwiGluTest, RejectsOddMatrices) {
  const PackedMatrix matrix = Pack(ToBFloat16(std::vector<float>{2, 3, 4}), 1);
  BFloat16 value;
  const LinearSwiGluArgs args{
      .input = &value, .gate_up_proj = &matrix, .output = &value, .num_rows = 1};
  EXPECT_THAT(LinearSwiGlu(args, {}),
              StatusIs(kInvalid, HasSubstr("gate_up_proj.out_features is 3, want even")));
  EXPECT_THAT(LinearSwiGlu({.num_rows = 1}, {}), StatusIs(kInvalid, HasSubstr("gate_up_proj")));
}

TEST(LinearTest, AccumulateAddsTheFinishedSum) {
  for (const CpuIsa isa : TestIsas()) {
    for (const WeightDtype dtype : kTestDtypes) {
      const Problem problem(9, 50, 70, 11, dtype);
      const std::vector<float> product = problem.Run({.isa = isa}, 0, 9);
      std::vector<float> expected = RandomNormal(9 * 50, 12), residual = expected;
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += product[i];
      ASSERT_OK(Linear({.input = problem.input.data(),
                        .weight = &problem.matrix,
                        .output = residual.data(),
                        .num_rows = 9,
                        .accumulate = true},
                       {.isa = isa}));
      EXPECT_TRUE(SameBits(residual, expected)) << Name(isa);
    }
  }
}

TEST(LinearTest, AnInfiniteInputReachesItsOwnRowOnly) {
  for (const CpuIsa isa : TestIsas()) {
    for (const WeightDtype dtype : kTestDtypes) {
      const Problem problem(3, 20, 33, 13, dtype);
      const std::vector<float> before = problem.Run({.isa = isa}, 0, 3);
      Problem infinite(3, 20, 33, 13, dtype);
      infinite.input[33] = ToBFloat16(INFINITY);
      const std::vector<float> after = infinite.Run({.isa = isa}, 0, 3);
      for (int o = 0; o < 20; ++o) {
        EXPECT_EQ(after[o], before[o]);
        EXPECT_FALSE(std::isfinite(after[20 + o]));
        EXPECT_EQ(after[40 + o], before[40 + o]);
      }
    }
  }
}

TEST(LinearTest, RefusesBadArguments) {
  const Problem problem(1, 4, 4, 1);
  std::vector<float> output(4);
  const LinearArgs good{.input = problem.input.data(),
                        .weight = &problem.matrix,
                        .output = output.data(),
                        .num_rows = 1};
  for (auto run : {+[](const LinearArgs& args) { return Linear(args, {}); },
                   +[](const LinearArgs& args) { return LinearReference(args); }}) {
    EXPECT_OK(run(good));
    LinearArgs bad = good;
    bad.input = nullptr;
    EXPECT_THAT(run(bad), StatusIs(kInvalid, HasSubstr("input is null")));
    bad = good;
    bad.weight = nullptr;
    EXPECT_THAT(run(bad), StatusIs(kInvalid, HasSubstr("weight is null")));
    bad = good;
    bad.output = nullptr;
    EXPECT_THAT(run(bad), StatusIs(kInvalid, HasSubstr("output is null")));
    bad = good;
    bad.num_rows = -1;
    EXPECT_THAT(run(bad), StatusIs(kInvalid, HasSubstr("num_rows is -1, want at least 0")));
  }
}

}  // namespace
}  // namespace conclave
