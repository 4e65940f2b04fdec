#include "text/json_text.h"

#include <gtest/gtest.h>

#include "common/limits.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(JsonTextTest, KeepsOrderAndSpelling) {
  ASSERT_OK_AND_ASSIGN(
      const JsonValue value,
      ParseJson(" {\"b\" : [ 1.50 , -0 , 1E400, 12345678901234567890123 ],\r\n\t\"a\":{} } "));
  EXPECT_EQ(ToJson(value), "{\"b\": [1.5, 0, Infinity, 12345678901234567890123], \"a\": {}}");
  EXPECT_EQ(ToJson(value, NumberSpelling::kAsWritten),
            "{\"b\": [1.50, -0, 1E400, 12345678901234567890123], \"a\": {}}");
}

TEST(JsonTextTest, ReadsEveryKind) {
  ASSERT_OK_AND_ASSIGN(
      const JsonValue value,
      ParseJson("{\"s\":\"\\u00e9\\ud83d\\ude00\\n\\/\",\"t\":true,\"n\":null,\"a\":[1],\"x\":2}"));
  EXPECT_EQ(value.Find("s")->string_value(), "\xC3\xA9\xF0\x9F\x98\x80\n/");
  EXPECT_TRUE(value.Find("t")->bool_value());
  EXPECT_TRUE(value.Find("n")->is_null());
  EXPECT_EQ(value.Find("a")->items().size(), 1u);
  EXPECT_EQ(value.Find("x")->number_spelling(), "2");
  EXPECT_EQ(value.Find("y"), nullptr);
  // The wrong kind is empty, not a crash.
  EXPECT_EQ(value.Find("t")->string_value(), "");
  EXPECT_EQ(value.Find("s")->number_spelling(), "");
  EXPECT_EQ(value.Find("x")->string_value(), "");
  EXPECT_EQ(value.Find("x")->Find("z"), nullptr);
}

TEST(JsonTextTest, OfEqualKeysTheLastValueTakesTheFirstPlace) {
  ASSERT_OK_AND_ASSIGN(const JsonValue value, ParseJson("{\"b\":1,\"a\":2,\"b\":3}"));
  EXPECT_EQ(ToJson(value), "{\"b\": 3, \"a\": 2}");
}

TEST(JsonTextTest, RefusesWhatIsNoJson) {
  for (const char* text : {"",
                           " ",
                           "nul",
                           "tru e",
                           "[1,]",
                           "[1 2]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{a:1}",
                           "{\"a\":1,}",
                           "{'a':1}",
                           "01",
                           "1.",
                           ".5",
                           "-",
                           "1e",
                           "1e+",
                           "+1",
                           "NaN",
                           "Infinity",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\n\"",
                           "\"\t\"",
                           "[1",
                           "{\"a\":1",
                           "1 1",
                           "[]]",
                           "\xEF\xBB\xBF{}",
                           "\"\\u-123\"",
                           "\"\\"}) {
    EXPECT_THAT(ParseJson(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bad JSON at byte")))
        << text;
  }
  EXPECT_THAT(ParseJson("\"\xFF\""),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UTF-8 at byte 1")));
}

TEST(JsonTextTest, ErrorsShowWholeCharacters) {
  EXPECT_THAT(ParseJson("[\xE4\xB8\xAD]"), StatusIs(absl::StatusCode::kInvalidArgument,
                                                    HasSubstr("found '\xE4\xB8\xAD', want")));
}

TEST(JsonTextTest, NestingHasABound) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_OK(ParseJson(nested(256)));
  EXPECT_THAT(ParseJson(nested(300)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 256 levels")));
  EXPECT_THAT(ParseJson(std::string(1000000, '[')), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(JsonTextTest, BoundsTheNumberOfValues) {
  const auto list = [](int size) {
    std::string text = "[0";
    for (int i = 1; i < size; ++i) text += ",0";
    return text + "]";
  };
  EXPECT_OK(ParseJson(list(limits::kMaxJsonValues - 1)));  // the list itself is one
  EXPECT_THAT(ParseJson(list(limits::kMaxJsonValues)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 1048576 values")));
}

// Writing and reading again gives the same text: nothing is lost on the way.
TEST(JsonTextTest, ReadsWhatItWrites) {
  for (const char* text : {"[0.1, -2.5e-07, 1e+16, 123]", "{\"\": \"\\u001f\\\\\\\"\"}",
                           "[[], {}, [null, false, true]]", "\"\xC2\x80\xE2\x80\xA8\""}) {
    ASSERT_OK_AND_ASSIGN(const JsonValue value, ParseJson(text));
    EXPECT_EQ(ToJson(value), text);
    EXPECT_EQ(ToJson(value, NumberSpelling::kAsWritten), text);
  }
}

}  // namespace
}  // namespace conclave
