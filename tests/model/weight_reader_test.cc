#include "model/weight_reader.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

// A one-file checkpoint that lives as long as the test.
class WeightReaderTest : public testing::Test {
 protected:
  const Checkpoint& Open(const std::vector<TestTensor>& tensors) {
    dir_.Write("model.safetensors", SafetensorsBytes(tensors));
    auto checkpoint = Checkpoint::Open(dir_.path());
    EXPECT_OK(checkpoint);
    checkpoint_ = *std::move(checkpoint);
    return *checkpoint_;
  }

  TempDir dir_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

std::vector<uint16_t> Bits(const MatrixSource& matrix) {
  std::vector<uint16_t> bits;
  for (int64_t i = 0; i < matrix.rows() * matrix.cols(); ++i) bits.push_back(matrix.data()[i].bits);
  return bits;
}

TEST(HalfTest, HandWorkedValues) {
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0xc000), -2.0f);
  EXPECT_EQ(HalfToFloat(0x3555), 0.333251953125f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0x83ff), -0x3ffp-24f);
  EXPECT_EQ(HalfToFloat(0x0400), 0x1p-14f);
  EXPECT_EQ(HalfToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(HalfToFloat(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(HalfToFloat(0x7e00)));
}

TEST_F(WeightReaderTest, MapsBf16WithoutACopy) {
  const Checkpoint& checkpoint =
      Open({{"w", DType::kBF16, {2, 3}, BytesOf<uint16_t>({1, 2, 3, 4, 5, 0x7fc1})}});
  ASSERT_OK_AND_ASSIGN(MatrixSource matrix, ReadMatrix(checkpoint, "w", 2, 3));
  EXPECT_TRUE(matrix.mapped());
  EXPECT_EQ(reinterpret_cast<const uint8_t*>(matrix.data()), checkpoint.Find("w")->data);
  EXPECT_EQ(matrix.row(1)[0].bits, 4);
  const MatrixSource moved = std::move(matrix);
  EXPECT_EQ(Bits(moved), (std::vector<uint16_t>{1, 2, 3, 4, 5, 0x7fc1}));
}

TEST_F(WeightReaderTest, CopiesBf16ThatIsNotAligned) {
  const Checkpoint& checkpoint =
      Open({{"odd", DType::kU8, {1}, "x"}, {"w", DType::kBF16, {1, 2}, BytesOf<uint16_t>({7, 8})}});
  ASSERT_OK_AND_ASSIGN(const MatrixSource matrix, ReadMatrix(checkpoint, "w", 1, 2));
  EXPECT_FALSE(matrix.mapped());
  EXPECT_EQ(Bits(matrix), (std::vector<uint16_t>{7, 8}));
}

TEST_F(WeightReaderTest, RoundsF32ToNearestEven) {
  const Checkpoint& checkpoint = Open({{"w",
                                        DType::kF32,
                                        {2, 3},
                                        BytesOf<uint32_t>({0x3f800000,  // 1
                                                           0x3f808000,  // half way: down to even
                                                           0x3f818000,  // half way: up to even
                                                           0x3f808001,  // just past half: up
                                                           0xc0490fdb,  // -pi
                                                           0x7f7fffff})}});  // rounds to infinity
  ASSERT_OK_AND_ASSIGN(const MatrixSource matrix, ReadMatrix(checkpoint, "w", 2, 3));
  EXPECT_EQ(Bits(matrix), (std::vector<uint16_t>{0x3f80, 0x3f80, 0x3f82, 0x3f81, 0xc049, 0x7f80}));
}

TEST_F(WeightReaderTest, ConvertsF16) {
  const Checkpoint& checkpoint =
      Open({{"w",
             DType::kF16,
             {1, 5},
             BytesOf<uint16_t>({0x3c00,       // 1
                                0x3c08,       // 1 + 2^-7: exact
                                0x3c04,       // 1 + 2^-8: half way, down to even
                                0x0001,       // 2^-24: subnormal there, normal here
                                0x7bff})}});  // 65504 rounds to 65536
  ASSERT_OK_AND_ASSIGN(const MatrixSource matrix, ReadMatrix(checkpoint, "w", 1, 5));
  EXPECT_EQ(Bits(matrix), (std::vector<uint16_t>{0x3f80, 0x3f81, 0x3f80, 0x3380, 0x4780}));
}

// 129 x 130: two by two blocks, the last ones one row high and two columns wide.
TEST_F(WeightReaderTest, ScalesFp8BlocksWithRaggedEdges) {
  std::string data(129 * 130, '\x38');  // 1.0
  data[0] = '\x3c';                     // 1.5
  data[128 * 130 + 129] = '\x7e';       // 448
  for (const DType scale_dtype : {DType::kF32, DType::kBF16}) {
    const std::string scales = scale_dtype == DType::kF32
                                   ? BytesOf<float>({2, 3, 0.5f, 0.0078125f})
                                   : BytesOf<uint16_t>({0x4000, 0x4040, 0x3f00, 0x3c00});
    const Checkpoint& checkpoint = Open(
        {{"w", DType::kF8E4M3, {129, 130}, data}, {"w_scale_inv", scale_dtype, {2, 2}, scales}});
    ASSERT_OK_AND_ASSIGN(const MatrixSource matrix, ReadMatrix(checkpoint, "w", 129, 130));
    EXPECT_FALSE(matrix.mapped());
    EXPECT_EQ(ToFloat(matrix.row(0)[0]), 3.0f);  // 1.5 * 2
    EXPECT_EQ(ToFloat(matrix.row(0)[1]), 2.0f);
    EXPECT_EQ(ToFloat(matrix.row(127)[127]), 2.0f);
    EXPECT_EQ(ToFloat(matrix.row(127)[128]), 3.0f);
    EXPECT_EQ(ToFloat(matrix.row(128)[127]), 0.5f);
    EXPECT_EQ(ToFloat(matrix.row(128)[128]), 0.0078125f);
    EXPECT_EQ(ToFloat(matrix.row(128)[129]), 3.5f);  // 448 / 128
  }
}

TEST_F(WeightReaderTest, RoundsAnFp8ProductOnce) {
  // 1.125 * (1 + 2^-7) = 1.1337890625 = 1 + 17.125 / 128, nearest 1 + 17/128 = 0x3f91.
  const Checkpoint& checkpoint =
      Open({{"w", DType::kF8E4M3, {1, 1}, "\x39"},
            {"w_scale_inv", DType::kF32, {1, 1}, BytesOf<float>({1.0078125f})}});
  EXPECT_EQ(Bits(*ReadMatrix(checkpoint, "w", 1, 1)), std::vector<uint16_t>{0x3f91});
}

TEST_F(WeightReaderTest, ReadRowsGivesTheSameRows) {
  const std::string f32 = BytesOf<float>({1, 2, 3, 4, 5, 6});
  std::string fp8(300 * 2, '\0');
  for (size_t i = 0; i < fp8.size(); ++i) fp8[i] = static_cast<char>(i % 0x7f);
  const Checkpoint& checkpoint =
      Open({{"f32", DType::kF32, {3, 2}, f32},
            {"fp8", DType::kF8E4M3, {300, 2}, fp8},
            {"fp8_scale_inv", DType::kF32, {3, 1}, BytesOf<float>({1, 0.3f, 7})}});
  BFloat16 two_rows[4];
  EXPECT_OK(ReadRows(checkpoint, "f32", 3, 2, 1, 3, two_rows));
  EXPECT_EQ(ToFloat(two_rows[0]), 3.0f);
  EXPECT_EQ(ToFloat(two_rows[3]), 6.0f);
  EXPECT_OK(ReadRows(checkpoint, "f32", 3, 2, 2, 2, nullptr));
  ASSERT_OK_AND_ASSIGN(const MatrixSource whole, ReadMatrix(checkpoint, "fp8", 300, 2));
  for (int64_t row = 0; row < 298; row += 2) {
    ASSERT_OK(ReadRows(checkpoint, "fp8", 300, 2, row, row + 2, two_rows));
    for (int i = 0; i < 4; ++i) EXPECT_EQ(two_rows[i], whole.row(row)[i]) << row;
  }
}

TEST_F(WeightReaderTest, ReadsVectors) {
  const Checkpoint& checkpoint = Open({{"bf16", DType::kBF16, {2}, BytesOf<uint16_t>({3, 4})},
                                       {"f32", DType::kF32, {1}, BytesOf<float>({1})},
                                       {"fp8", DType::kF8E4M3, {1}, "x"}});
  EXPECT_EQ((*ReadVector(checkpoint, "bf16", 2))[1].bits, 4);
  EXPECT_EQ((*ReadVector(checkpoint, "f32", 1))[0].bits, 0x3f80);
  EXPECT_THAT(
      ReadVector(checkpoint, "fp8", 1),
      StatusIs(StatusCode::kDataLoss, HasSubstr("found F8_E4M3 [1], want BF16, F16 or F32 [1]")));
  EXPECT_THAT(ReadVector(checkpoint, "bf16", 3), StatusIs(StatusCode::kDataLoss));
}

TEST_F(WeightReaderTest, NamesTensorFoundAndWanted) {
  const Checkpoint& checkpoint = Open({{"w", DType::kBF16, {1, 2}, BytesOf<uint16_t>({7, 8})},
                                       {"i", DType::kI32, {1, 1}, BytesOf<int32_t>({7})},
                                       {"q", DType::kF8E4M3, {1, 1}, "x"},
                                       {"r", DType::kF8E4M3, {1, 1}, "x"},
                                       {"r_scale_inv", DType::kF32, {1, 2}, BytesOf<float>({1, 1})},
                                       {"s", DType::kF8E4M3, {1, 1}, "x"},
                                       {"s_scale_inv", DType::kU8, {1, 1}, "x"}});
  EXPECT_THAT(
      ReadMatrix(checkpoint, "w", 2, 1),
      StatusIs(StatusCode::kDataLoss,
               AllOf(HasSubstr(dir_.File("model.safetensors")), HasSubstr("tensor w"),
                     HasSubstr("found BF16 [1, 2], want BF16, F16, F32 or F8_E4M3 [2, 1]"))));
  EXPECT_THAT(ReadMatrix(checkpoint, "gone", 2, 1),
              StatusIs(StatusCode::kDataLoss, HasSubstr("tensor gone: found no such tensor")));
  EXPECT_THAT(ReadMatrix(checkpoint, "i", 1, 1),
              StatusIs(StatusCode::kDataLoss, HasSubstr("found I32 [1, 1]")));
  EXPECT_THAT(
      ReadMatrix(checkpoint, "q", 1, 1),
      StatusIs(StatusCode::kDataLoss, HasSubstr("tensor q_scale_inv: found no such tensor")));
  EXPECT_THAT(
      ReadMatrix(checkpoint, "r", 1, 1),
      StatusIs(StatusCode::kDataLoss,
               HasSubstr("tensor r_scale_inv: found F32 [1, 2], want F32, BF16 or F16 [1, 1]")));
  EXPECT_THAT(ReadMatrix(checkpoint, "s", 1, 1),
              StatusIs(StatusCode::kDataLoss, HasSubstr("tensor s_scale_inv: found U8 [1, 1]")));
  for (const char* name : {"q", "r", "s"}) {
    BFloat16 out;
    EXPECT_THAT(ReadRows(checkpoint, name, 1, 1, 0, 1, &out), StatusIs(StatusCode::kDataLoss));
    EXPECT_THAT(CheckWeight(checkpoint, name, {1, 1}), StatusIs(StatusCode::kDataLoss));
  }
  EXPECT_OK(CheckWeight(checkpoint, "w", {1, 2}));
}

}  // namespace
}  // namespace conclave
