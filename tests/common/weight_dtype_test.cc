#include "common/weight_dtype.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

TEST(WeightDtypeTest, NamesParseBack) {
  for (const WeightDtype dtype :
       {WeightDtype::kBf16, WeightDtype::kInt8, WeightDtype::kInt4, WeightDtype::kFp8}) {
    ASSERT_OK_AND_ASSIGN(const WeightDtype parsed, ParseWeightDtype(WeightDtypeName(dtype)));
    EXPECT_EQ(parsed, dtype);
  }
}

TEST(WeightDtypeTest, UnknownWordIsAnError) {
  EXPECT_THAT(ParseWeightDtype("q8_0"), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 testing::HasSubstr("\"q8_0\", want \"bf16\"")));
}

TEST(WeightDtypeTest, BytesCountScalesAndPadding) {
  // 17 outputs are two panels of 16.
  EXPECT_EQ(WeightBytes(WeightDtype::kBf16, 17, 3), 2u * 16 * 4 * 2);
  EXPECT_EQ(WeightBytes(WeightDtype::kInt8, 17, 257), 2u * 16 * 2 * (4 + 256));
  EXPECT_EQ(WeightBytes(WeightDtype::kInt4, 17, 65), 2u * 16 * 2 * (4 + 32));
  EXPECT_EQ(WeightBytes(WeightDtype::kFp8, 17, 129), 2u * 16 * 2 * (4 + 128));
  EXPECT_EQ(WeightBytes(WeightDtype::kInt8, 0, 100), 0u);
}

}  // namespace
}  // namespace conclave
