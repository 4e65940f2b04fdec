#include <string>

#include "model/safetensors.h"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kIndex[] = "model.safetensors.index.json";

std::string Part(const std::string& tensor, const std::string& data) {
  return SafetensorsBytes({{tensor, DType::kU8, {static_cast<int64_t>(data.size())}, data}});
}

TEST(CheckpointTest, OpensASingleFile) {
  TempDir dir;
  dir.Write("model.safetensors", Part("w", "abc"));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path()));
  EXPECT_THAT(checkpoint->names(), ElementsAre("w"));
  EXPECT_EQ(checkpoint->total_bytes(), 3u);
  EXPECT_EQ(checkpoint->PartOf("w"), dir.File("model.safetensors"));
  EXPECT_EQ(checkpoint->Find("w")->data[2], 'c');
  EXPECT_FALSE(checkpoint->Contains("v"));
  EXPECT_THAT(checkpoint->Find("v"),
              StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr(dir.path()), HasSubstr("tensor v"))));
}

TEST(CheckpointTest, OpensTheIndexedParts) {
  TempDir dir;
  dir.Write("p1.safetensors", Part("w", "abc"));
  dir.Write("p2.safetensors",
            SafetensorsBytes({{"v", DType::kU8, {1}, "d"}, {"unlisted", DType::kU8, {1}, "e"}}));
  dir.Write(kIndex, R"({"metadata": {"total_size": 4},
                        "weight_map": {"w": "p1.safetensors", "v": "p2.safetensors"}})");
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path()));
  EXPECT_THAT(checkpoint->names(), ElementsAre("v", "w"));
  EXPECT_EQ(checkpoint->total_bytes(), 4u);
  EXPECT_EQ(checkpoint->parts().size(), 2u);
  EXPECT_EQ(checkpoint->PartOf("v"), dir.File("p2.safetensors"));
  EXPECT_EQ(checkpoint->Find("v")->data[0], 'd');
}

TEST(CheckpointTest, EmptyDirectoryIsNotFound) {
  TempDir dir;
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kNotFound, AllOf(HasSubstr(dir.path()), HasSubstr(kIndex))));
}

TEST(CheckpointTest, NamesAMissingPart) {
  TempDir dir;
  dir.Write(kIndex, R"({"weight_map": {"w": "gone.safetensors"}})");
  EXPECT_THAT(
      Checkpoint::Open(dir.path()),
      StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr(dir.File("gone.safetensors")),
                                            HasSubstr("tensor w"), HasSubstr("no such part"))));
}

TEST(CheckpointTest, NamesATensorThatThePartLacks) {
  TempDir dir;
  dir.Write("p1.safetensors", Part("w", "abc"));
  dir.Write(kIndex, R"({"weight_map": {"w": "p1.safetensors", "v": "p1.safetensors"}})");
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kDataLoss,
                       AllOf(HasSubstr(dir.File("p1.safetensors")), HasSubstr("tensor v"))));
}

TEST(CheckpointTest, ABadPartFailsTheWhole) {
  TempDir dir;
  dir.Write("p1.safetensors", "short");
  dir.Write(kIndex, R"({"weight_map": {"w": "p1.safetensors"}})");
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kDataLoss, HasSubstr(dir.File("p1.safetensors"))));
  dir.Write("model.safetensors", "short");  // has precedence over the index
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kDataLoss, HasSubstr(dir.File("model.safetensors"))));
}

TEST(CheckpointTest, RefusesABadIndex) {
  for (const char* index :
       {"", "[]", "{", "{}", R"({"weight_map": 3})", R"({"weight_map": {}})",
        R"({"weight_map": {"w": 3}})", R"({"weight_map": {"w": ""}})",
        R"({"weight_map": {"w": "../p1.safetensors"}})", R"({"weight_map": {"w": "/etc/passwd"}})",
        R"({"weight_map": {"w": ".."}})"}) {
    TempDir dir;
    dir.Write(kIndex, index);
    EXPECT_THAT(Checkpoint::Open(dir.path()), StatusIs(StatusCode::kDataLoss, HasSubstr(kIndex)))
        << index;
  }
}

}  // namespace
}  // namespace conclave
