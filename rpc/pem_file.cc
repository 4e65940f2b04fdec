#include "rpc/pem_file.h"

#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace conclave {

absl::StatusOr<std::string> ReadPemFile(const std::string& path) {
  constexpr size_t kMaxBytes = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  // Reading to the end sets eof and fail; a directory or an unreadable file sets bad.
  if (!file.eof() || file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " cannot be read, want a PEM file of at most ", kMaxBytes, " bytes"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

}  // namespace conclave
