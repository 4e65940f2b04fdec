#include "model/safetensors.h"

#include <memory>
#include <string>
#include <vector>

#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(DTypeTest, NamesReadBack) {
  for (int i = 0; i <= static_cast<int>(DType::kF64); ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype) << DTypeName(dtype);
  }
  EXPECT_EQ(DTypeFromName("F4"), std::nullopt);
  EXPECT_EQ(DTypeSize(DType::kBF16), 2u);
  EXPECT_EQ(DTypeSize(DType::kF8E4M3), 1u);
  EXPECT_EQ(DTypeSize(DType::kF64), 8u);
}

TEST(SafetensorsFileTest, ReadsWhatWasWritten) {
  TempDir dir;
  const std::string path = dir.Write(
      "a.safetensors", SafetensorsBytes({{"b", DType::kF32, {2, 1}, BytesOf<float>({1.5f, -2.0f})},
                                         {"a", DType::kU8, {3}, "xyz"},
                                         {"scalar", DType::kF64, {}, BytesOf<double>({4.0})},
                                         {"empty", DType::kBF16, {0, 7}, ""}}));
  ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(path));
  EXPECT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  const TensorView* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF32);
  EXPECT_THAT(b->shape, ElementsAre(2, 1));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b->data), b->bytes),
            BytesOf<float>({1.5f, -2.0f}));
  const TensorView* a = file->Find("a");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(a->data), a->bytes), "xyz");
  EXPECT_EQ(file->Find("scalar")->bytes, 8u);
  EXPECT_EQ(file->Find("empty")->bytes, 0u);
  EXPECT_EQ(file->Find("c"), nullptr);
  file->Advise(SafetensorsFile::Access::kRandom);
  EXPECT_EQ(a->data[0], 'x');
}

TEST(SafetensorsFileTest, MissingFileIsNotFound) {
  EXPECT_THAT(SafetensorsFile::Open("/nonexistent/x.safetensors"),
              StatusIs(StatusCode::kNotFound, HasSubstr("/nonexistent/x.safetensors")));
}

TEST(SafetensorsFileTest, ADirectoryIsNoFile) {
  TempDir dir;
  EXPECT_THAT(SafetensorsFile::Open(dir.path()), StatusIs(StatusCode::kDataLoss));
}

struct BadFile {
  const char* what;
  std::string bytes;
  std::string message;
};

std::string OneTensor(const std::string& fields) { return "{\"w\":{" + fields + "}}"; }

const std::string kGood = R"("dtype":"BF16","shape":[2,2],"data_offsets":[0,8])";
const std::string kData(8, '\1');

std::vector<BadFile> BadFiles() {
  const std::string two =
      R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"v":{"dtype":"U8",)";
  return {
      {"empty", "", "0 bytes"},
      {"cut length", "\x10\0\0", "found "},
      {"header past the end", LengthBytes(100) + "{}", "header length 100 in a file of 10 bytes"},
      {"header length of 2^63", LengthBytes(uint64_t{1} << 63) + "{}", "header length"},
      {"header length of 2^64 - 8", LengthBytes(~uint64_t{7}) + "{}", "header length"},
      {"truncated data", RawFile(OneTensor(kGood), "1234567"), "within 7 bytes of data"},
      {"trailing data", RawFile(OneTensor(kGood), kData + "x"), "found 9 bytes of data, want 8"},
      {"no json", RawFile("hello", ""), "no JSON at byte"},
      {"empty header", RawFile("", ""), "no JSON"},
      {"cut json", RawFile("{\"w\":{", ""), "no JSON"},
      {"json and more", RawFile(OneTensor(kGood) + "}", kData), "no JSON"},
      {"invalid UTF-8", RawFile("{\"\xff\":{" + kGood + "}}", kData), "no JSON"},
      {"a list", RawFile("[]", ""), "an array"},
      {"a number", RawFile("7", ""), "the number 7"},
      {"null tensor", RawFile("{\"w\":null}", ""), "tensor w: found null"},
      {"unknown dtype", RawFile(OneTensor(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])"), "x"),
       "tensor w: found dtype F4"},
      {"dtype a number", RawFile(OneTensor(R"("dtype":3)"), ""), "the number 3"},
      {"no dtype", RawFile(OneTensor(R"("shape":[4],"data_offsets":[0,8])"), kData), "not all of"},
      {"unknown field", RawFile(OneTensor(kGood + R"(,"x":"y")"), kData), "found \"y\""},
      {"field twice", RawFile(OneTensor(kGood + R"(,"shape":[2,2])"), kData), "\"shape\" twice"},
      {"one offset", RawFile(OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0])"), kData),
       "data_offsets without begin and end"},
      {"three offsets",
       RawFile(OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8,8])"), kData),
       "the number 8"},
      {"negative dimension",
       RawFile(OneTensor(R"("dtype":"U8","shape":[-8],"data_offsets":[0,8])"), kData),
       "the negative number -8"},
      {"fractional dimension",
       RawFile(OneTensor(R"("dtype":"U8","shape":[8.0],"data_offsets":[0,8])"), kData),
       "the number 8.0"},
      {"nested dimension",
       RawFile(OneTensor(R"("dtype":"U8","shape":[[8]],"data_offsets":[0,8])"), kData), "an array"},
      {"huge dimension",
       RawFile(OneTensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8])"),
               kData),
       "a dimension too large"},
      {"product overflows to 8",  // (2^61 + 1) * 8 = 2^64 + 8
       RawFile(OneTensor(R"("dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8])"),
               kData),
       "less than 2^64"},
      {"nine dimensions",
       RawFile(OneTensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,8])"),
               kData),
       "more than 8"},
      {"length is not shape times dtype",
       RawFile(OneTensor(R"("dtype":"BF16","shape":[2,3],"data_offsets":[0,8])"), kData),
       "found data_offsets [0, 8], want 12 bytes, as shape [2, 3] of BF16 takes"},
      {"end before begin",
       RawFile(OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[8,4])"), kData), "[8, 4]"},
      {"offset past the end",
       RawFile(OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[8,16])"), kData),
       "within 8 bytes of data"},
      {"hole", RawFile(two + R"("shape":[3],"data_offsets":[5,8]}})", kData),
       "tensor v: found data_offsets [5, 8], want begin at 4"},
      {"overlap", RawFile(two + R"("shape":[5],"data_offsets":[3,8]}})", kData),
       "tensor v: found data_offsets [3, 8], want begin at 4"},
      {"same bytes twice", RawFile(two + R"("shape":[4],"data_offsets":[0,4]}})", kData.substr(4)),
       "want begin at 4"},
      {"name twice", RawFile("{\"w\":{" + kGood + "},\"w\":{" + kGood + "}}", kData),
       "tensor w: found its name twice"},
      {"metadata not text", RawFile(R"({"__metadata__":{"a":1}})", ""), "the number 1"},
      {"metadata nested", RawFile(R"({"__metadata__":{"a":{}}})", ""), "an object"},
      {"deep nesting", RawFile(std::string(1 << 20, '['), ""), "an array"},
  };
}

TEST(SafetensorsFileTest, NamesWhatIsWrongWithABadFile) {
  TempDir dir;
  for (const BadFile& bad : BadFiles()) {
    const std::string path = dir.Write("bad.safetensors", bad.bytes);
    EXPECT_THAT(SafetensorsFile::Open(path),
                StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr(path), HasSubstr(bad.message))))
        << bad.what;
  }
}

TEST(SafetensorsFileTest, AHostileNameMakesNoLongMessage) {
  TempDir dir;
  const std::string path =
      dir.Write("bad.safetensors", RawFile("{\"" + std::string(1 << 20, 'n') + "\":null}", ""));
  const auto file = SafetensorsFile::Open(path);
  EXPECT_THAT(file, StatusIs(StatusCode::kDataLoss));
  EXPECT_LT(file.status().message().size(), 1000u);
}

}  // namespace
}  // namespace conclave
