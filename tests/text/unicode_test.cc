// UTF-8, normalisation and the split pattern, piece by piece.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/text/text_test_data.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/unicode_properties.h"
#include "text/utf8.h"

namespace conclave {
namespace {

using testing::ElementsAre;

std::string Utf8(const std::vector<char32_t>& code_points) {
  std::string text;
  for (const char32_t c : code_points) AppendUtf8(c, &text);
  return text;
}

TEST(Utf8Test, EveryCodePointComesBack) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = Utf8({c});
    const CodePoint decoded = DecodeValidUtf8(text);
    ASSERT_EQ(decoded.value, c);
    ASSERT_EQ(static_cast<size_t>(decoded.num_bytes), text.size());
    ASSERT_EQ(ValidUtf8Prefix(text), text.size());
  }
}

TEST(Utf8Test, FindsTheFirstBadByte) {
  const std::string long_ascii(21, 'x');
  for (const std::string bad :
       {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xE4\xB8", "\xFF"}) {
    EXPECT_EQ(ValidUtf8Prefix(bad), 0u);
    EXPECT_EQ(ValidUtf8Prefix(long_ascii + bad), 21u);
    EXPECT_EQ(ValidUtf8Prefix(long_ascii + "\xE4\xB8\xAD" + bad + "y"), 24u);
  }
}

std::string Repaired(const std::vector<std::string>& chunks) {
  Utf8Repairer repairer;
  std::string out;
  for (const std::string& chunk : chunks) repairer.Append(chunk, &out);
  repairer.Flush(&out);
  return out;
}

// One U+FFFD per maximal subpart: the table of the Unicode Standard, 3.9 (U+FFFD substitution).
TEST(Utf8Test, RepairsAsTheStandardSays) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(Repaired({"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"}),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repaired({"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"}),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repaired({"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"}),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Repaired({"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"}), r + r + r + r + "A");
}

TEST(Utf8Test, RepairDoesNotDependOnTheChunks) {
  std::mt19937 random(5);
  const std::string alphabet = "a\x80\xBF\x9F\xC3\xE4\xB8\xAD\xED\xA0\xF0\x9F\x98\x80\xF4\x90\xFF";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (size_t i = random() % 24; i > 0; --i) bytes += alphabet[random() % alphabet.size()];
    const std::string whole = Repaired({bytes});
    EXPECT_EQ(Repaired(RandomChunks(bytes, 3, &random)), whole);
    EXPECT_EQ(ValidUtf8Prefix(whole), whole.size());
    if (ValidUtf8Prefix(bytes) == bytes.size()) {
      EXPECT_EQ(whole, bytes);
    }
  }
}

std::string Nfc(const std::string& text) {
  std::string scratch = "left from before";
  return std::string(NormalizeNfc(text, &scratch));
}

TEST(NormalizerTest, ComposesAndOrders) {
  EXPECT_EQ(Nfc("plain"), "plain");
  EXPECT_EQ(Nfc(""), "");
  EXPECT_EQ(Nfc(Utf8({'e', 0x301})), Utf8({0xE9}));
  EXPECT_EQ(Nfc(Utf8({'x', 'e', 0x301, 'y'})), Utf8({'x', 0xE9, 'y'}));
  EXPECT_EQ(Nfc(Utf8({0x301, 'a'})), Utf8({0x301, 'a'})) << "a mark at the start stays";
  EXPECT_EQ(Nfc(Utf8({'a', 0x301, 0x323})), Utf8({0x1EA1, 0x301})) << "the lower mark goes first";
  EXPECT_EQ(Nfc(Utf8({0x212B})), Utf8({0xC5})) << "Angstrom sign";
  EXPECT_EQ(Nfc(Utf8({0x958})), Utf8({0x915, 0x93C})) << "excluded from composition";
  EXPECT_EQ(Nfc(Utf8({0x1100, 0x1161, 0x11A8})), Utf8({0xAC01}));
  EXPECT_EQ(Nfc(Utf8({0xAC00, 0x11A8})), Utf8({0xAC01}));
  EXPECT_EQ(Nfc(Utf8({0x1112, 0x1175, 0x11C2})), Utf8({0xD7A3}));
  EXPECT_EQ(Nfc(Utf8({0xD7A3, 0x11A8})), Utf8({0xD7A3, 0x11A8})) << "has its final already";
  EXPECT_EQ(Nfc(Utf8({'<', 0x338})), Utf8({0x226E}));
}

TEST(NormalizerTest, UsesTheDataOfUnicode9) {
  // U+07FD has combining class 220 since Unicode 11; here it is a starter and blocks.
  const std::string text = Utf8({'e', 0x7FD, 0x301});
  EXPECT_EQ(Nfc(text), text);
  // U+11935 U+11930 compose since Unicode 13.
  EXPECT_EQ(Nfc(Utf8({0x11935, 0x11930})), Utf8({0x11935, 0x11930}));
}

// The definition, without short cuts: decompose all, order all, compose all.
std::vector<char32_t> PlainNfc(const std::vector<char32_t>& text) {
  const UnicodeProperties& unicode = UnicodeProperties::Get();
  const auto ccc = [&](char32_t c) { return unicode.Of(c).combining_class(); };
  std::vector<char32_t> all, out;
  for (const char32_t c : text) {
    const auto parts = unicode.Decomposition(c);
    if (parts.empty()) all.push_back(c);
    all.insert(all.end(), parts.begin(), parts.end());
  }
  for (size_t pass = 0; pass < all.size(); ++pass) {  // bubble sort within runs of marks
    for (size_t i = 1; i < all.size(); ++i) {
      if (ccc(all[i]) != 0 && ccc(all[i - 1]) > ccc(all[i])) std::swap(all[i], all[i - 1]);
    }
  }
  for (const char32_t c : all) {
    size_t starter = out.size();
    while (starter > 0 && ccc(out[starter - 1]) != 0) --starter;
    const bool blocked = starter == 0 || (starter != out.size() && ccc(out.back()) >= ccc(c));
    const char32_t composed = blocked ? 0 : unicode.Composition(out[starter - 1], c);
    if (composed != 0) {
      out[starter - 1] = composed;
    } else {
      out.push_back(c);
    }
  }
  return out;
}

TEST(NormalizerTest, EqualsTheDefinitionOnRandomText) {
  const UnicodeProperties& unicode = UnicodeProperties::Get();
  std::vector<char32_t> interesting = {'a', 'e', 'o', ' ', 0x1EA1, 0x4E2D};
  for (char32_t c = 0; c < 0x30000; ++c) {
    const bool is_hangul = (c >= 0x1100 && c < 0x1200) || (c >= 0xAC00 && c < 0xD7A4);
    const CharProperties properties = unicode.Of(c);
    if (!is_hangul && (properties.nfc_suspect() || properties.combining_class() != 0 ||
                       !unicode.Decomposition(c).empty())) {
      interesting.push_back(c);
    }
  }
  ASSERT_GT(interesting.size(), 2000u);
  std::mt19937 random(9);
  for (int round = 0; round < 20000; ++round) {
    std::vector<char32_t> text;
    for (size_t i = 1 + random() % 12; i > 0; --i) {
      text.push_back(random() % 3 == 0 ? interesting[random() % 6]
                                       : interesting[random() % interesting.size()]);
    }
    const std::string normal = Nfc(Utf8(text));
    ASSERT_EQ(normal, Utf8(PlainNfc(text))) << Utf8(text);
    ASSERT_EQ(Nfc(normal), normal) << "normalising twice changes nothing";
  }
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  for (absl::string_view rest = text; !rest.empty(); rest.remove_prefix(parts.back().size())) {
    const size_t length = PretokenLength(UnicodeProperties::Get(), rest);
    parts.emplace_back(rest.substr(0, length));
  }
  return parts;
}

TEST(PretokenizerTest, SplitsAsThePatternDoes) {
  EXPECT_THAT(Split("Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(Split("I'm don't you'LL 'The 'Some"),
              ElementsAre("I", "'m", " don", "'t", " you", "'LL", " '", "The", " '", "Some"));
  EXPECT_THAT(Split("'The'Some"), ElementsAre("'T", "he", "'S", "ome"));
  EXPECT_THAT(Split("a'\xC5\xBF'x'r"), ElementsAre("a", "'\xC5\xBF", "'x", "'r"));
  EXPECT_THAT(Split("it\xE2\x80\x99s"), ElementsAre("it", "\xE2\x80\x99s"));
  EXPECT_THAT(Split("12 3\xC2\xBD"), ElementsAre("1", "2", " ", "3", "\xC2\xBD"));
  EXPECT_THAT(Split("f(x) != 0;\r\n\ty"),
              ElementsAre("f", "(x", ")", " !=", " ", "0", ";\r\n", "\ty"));
  EXPECT_THAT(Split("a  b   1"), ElementsAre("a", " ", " b", "  ", " ", "1"));
  EXPECT_THAT(Split("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(Split("a \t"), ElementsAre("a", " \t"));
  EXPECT_THAT(Split("\n"), ElementsAre("\n"));
  EXPECT_THAT(Split(" !"), ElementsAre(" !"));
  EXPECT_THAT(Split("\t!"), ElementsAre("\t", "!"));
  EXPECT_THAT(Split("\xC2\xA0\xE3\x80\x80x"), ElementsAre("\xC2\xA0", "\xE3\x80\x80x"));
  // A vowel sign is no letter, but may lead the letters after it.
  EXPECT_THAT(Split("\xE0\xB8\x97\xE0\xB8\xB5\xE0\xB9\x88"),
              ElementsAre("\xE0\xB8\x97", "\xE0\xB8\xB5\xE0\xB9\x88"));
  EXPECT_THAT(Split(std::string("a\0b", 3)), ElementsAre("a", std::string("\0b", 2)));
}

}  // namespace
}  // namespace conclave
