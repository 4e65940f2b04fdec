#include "kernels/cuda/fill.h"

#include <cmath>

#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using CudaFillTest = CudaTest;

TEST_F(CudaFillTest, ValuesAreFiniteSeededAndOfTheWantedSize) {
  const int64_t count = 10007;
  BFloat16* const values = Empty<BFloat16>(count);
  ASSERT_OK(FillRandomBf16(values, count, 0.02f, 5, stream()));
  const std::vector<BFloat16> first = Download(values, count);
  double sum = 0, squares = 0;
  for (const BFloat16 value : first) {
    sum += ToFloat(value);
    squares += double{ToFloat(value)} * ToFloat(value);
  }
  // The mean of 10,007 values is 0 with a deviation of 0.02 / 100: five of them.
  EXPECT_NEAR(sum / count, 0, 1e-3);
  EXPECT_NEAR(std::sqrt(squares / count), 0.02, 1e-3);
  ASSERT_OK(FillRandomBf16(values, count, 0.02f, 5, stream()));
  EXPECT_TRUE(SameBits(Download(values, count), first));
  ASSERT_OK(FillRandomBf16(values, count, 0.02f, 6, stream()));
  EXPECT_FALSE(SameBits(Download(values, count), first));

  uint8_t* const bytes = Empty<uint8_t>(count);
  ASSERT_OK(FillRandomFp8(bytes, count, 5, stream()));
  for (const uint8_t byte : Download(bytes, count)) ASSERT_LT(byte & 0x7f, 0x40);
}

TEST_F(CudaFillTest, RefusesBadArguments) {
  EXPECT_THAT(FillRandomBf16(nullptr, 1, 1, 1, stream()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(FillRandomFp8(nullptr, -1, 1, stream()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(FillRandomFp8(nullptr, 0, 1, stream()));
}

}  // namespace
}  // namespace conclave::cuda
