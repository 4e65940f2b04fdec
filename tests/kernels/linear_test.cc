#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

struct Problem {
  Problem(int64_t rows, int64_t out, int64_t in, uint64_t seed)
      : num_rows(rows),
        input(RandomBf16(rows * in, seed)),
        weights(RandomBf16(out * in, seed + 1, 0.1f)),
        matrix(Pack(weights, in)) {}

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
  std::vector<BFloat16> input, weights;
  PackedMatrix matrix;
};

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

TEST(LinearTest, MatchesReferenceAroundTileEdges) {
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 97}) {
    for (const int64_t out : {1, 15, 16, 17, 33, 64, 65, 112, 128}) {
      for (const int64_t in : {1, 2, 31, 64, 513}) {
        const Problem problem(rows, out, in, rows * 10007 + out * 101 + in);
        std::vector<float> expected(rows * out);
        ASSERT_OK(LinearReference({.input = problem.input.data(),
                                   .weight = &problem.matrix,
                                   .output = expected.data(),
                                   .num_rows = rows}));
        for (const CpuIsa isa : TestIsas()) {
          const std::vector<float> actual = problem.Run({.isa = isa}, 0, rows);
          for (int64_t i = 0; i < rows * out; ++i) {
            // Each of `in` additions rounds by 2^-24 of a partial sum, which is at most the sum of
            // magnitudes; on both sides.
            double magnitudes = 0;
            for (int64_t k = 0; k < in; ++k) {
              magnitudes += std::fabs(ToFloat(problem.input[i / out * in + k]) *
                                      ToFloat(problem.weights[i % out * in + k]));
            }
            ASSERT_NEAR(actual[i], expected[i], 2 * static_cast<double>(in) * 0x1p-24 * magnitudes)
                << Name(isa) << " rows " << rows << " out " << out << " in " << in << " at " << i;
          }
        }
      }
    }
  }
}

// in_features 5000 is more than one pass over the inputs, 200 rows more than one block of rows.
TEST(LinearTest, ARowDoesNotDependOnBatchThreadsOrTile) {
  for (const auto& [out, in] : {std::pair{40, 5000}, {528, 300}}) {
    const Problem problem(200, out, in, 5);
    for (const CpuIsa isa : TestIsas()) {
      std::vector<float> alone;
      for (int64_t row = 0; row < problem.num_rows; ++row) {
        const std::vector<float> one = problem.Run({.isa = isa}, row, 1);
        alone.insert(alone.end(), one.begin(), one.end());
      }
      for (const int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        const Device device{.isa = isa, .pool = &pool};
        for (const int64_t rows : {1, 2, 3, 5, 7, 8, 17, 96, 200}) {
          const std::vector<float> batch = problem.Run(device, 200 - rows, rows);
          EXPECT_TRUE(SameBits(batch, std::vector<float>(alone.end() - rows * out, alone.end())))
              << Name(isa) << " " << threads << " threads, " << rows << " rows";
        }
      }
    }
  }
}

TEST(LinearTest, AccumulateAddsTheFinishedSum) {
  const Problem problem(9, 50, 70, 11);
  for (const CpuIsa isa : TestIsas()) {
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

TEST(LinearTest, AnInfiniteInputReachesItsOwnRowOnly) {
  Problem problem(3, 20, 33, 13);
  for (const CpuIsa isa : TestIsas()) {
    const std::vector<float> before = problem.Run({.isa = isa}, 0, 3);
    Problem infinite(3, 20, 33, 13);
    infinite.input[33] = ToBFloat16(INFINITY);
    const std::vector<float> after = infinite.Run({.isa = isa}, 0, 3);
    for (int o = 0; o < 20; ++o) {
      EXPECT_EQ(after[o], before[o]);
      EXPECT_FALSE(std::isfinite(after[20 + o]));
      EXPECT_EQ(after[40 + o], before[40 + o]);
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
