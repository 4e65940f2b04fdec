#include "router/prefix_map.h"

#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;

std::vector<uint32_t> Prompt(size_t length, uint32_t first = 0) {
  std::vector<uint32_t> ids(length);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}
PrefixKeys Keys(size_t length, uint32_t first = 0) {
  return PrefixMap::KeysOf(Prompt(length, first));
}

TEST(PrefixMapTest, OneKeyForEachFullChunkAndAllBeforeIt) {
  EXPECT_EQ(Keys(63).size(), 0u);
  EXPECT_EQ(Keys(64).size(), 1u);
  EXPECT_EQ(Keys(200).size(), 3u);
  EXPECT_EQ(Keys(64)[0], Keys(200)[0]);
  std::vector<uint32_t> ids = Prompt(200);
  ids[3] = 99;
  const PrefixKeys other = PrefixMap::KeysOf(ids);
  for (int i = 0; i < 3; ++i) EXPECT_NE(other[i], Keys(200)[i]);
}

TEST(PrefixMapTest, KnowsHowMuchOfAPromptEachWorkerHas) {
  PrefixMap map(100);
  map.Record(Keys(200), 0);
  map.Record(Keys(70), 2);
  EXPECT_THAT(map.CommonTokens(Keys(500), 3), ElementsAre(192, 0, 64));
  EXPECT_THAT(map.CommonTokens(Keys(130), 3), ElementsAre(128, 0, 64));
  EXPECT_THAT(map.CommonTokens(Keys(500, 7), 3), ElementsAre(0, 0, 0));
}

TEST(PrefixMapTest, AWorkerThatIsLostHasNothing) {
  PrefixMap map(100);
  map.Record(Keys(200), 0);
  map.Record(Keys(200), 1);
  map.Forget(0);
  EXPECT_THAT(map.CommonTokens(Keys(200), 2), ElementsAre(0, 192));
  map.Record(Keys(130), 0);
  EXPECT_THAT(map.CommonTokens(Keys(200), 2), ElementsAre(128, 192));
}

TEST(PrefixMapTest, IsBoundedAndForgetsTheEndsOfOldPromptsFirst) {
  PrefixMap map(4);
  map.Record(Keys(192), 0);
  map.Record(Keys(128, 1000), 1);
  EXPECT_EQ(map.size(), 4u);
  EXPECT_THAT(map.CommonTokens(Keys(192), 2), ElementsAre(128, 0));
  map.Record(Keys(192), 0);  // used again: now the other's end goes
  EXPECT_EQ(map.size(), 4u);
  EXPECT_THAT(map.CommonTokens(Keys(128, 1000), 2), ElementsAre(0, 64));
}

}  // namespace
}  // namespace conclave
