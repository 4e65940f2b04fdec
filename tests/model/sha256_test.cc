#include "model/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace conclave {
namespace {

std::string DigestOf(const std::string& text) {
  Sha256 sha;
  sha.Update(text);
  return sha.HexDigest();
}

// The examples published with FIPS 180.
TEST(Sha256Test, PublishedExamples) {
  EXPECT_EQ(DigestOf(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(DigestOf("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(DigestOf("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(DigestOf(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesMakeNoDifference) {
  const std::string text(300, 'x');
  for (size_t piece = 1; piece < 130; ++piece) {
    Sha256 sha;
    for (size_t at = 0; at < text.size(); at += piece) sha.Update(text.substr(at, piece));
    ASSERT_EQ(sha.HexDigest(), DigestOf(text)) << piece;
  }
}

}  // namespace
}  // namespace conclave
