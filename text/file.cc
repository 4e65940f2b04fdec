#include "text/file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"

namespace conclave {

absl::StatusOr<std::string> ReadCheckpointText(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (file == nullptr && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (file == nullptr) {
    return errors::BadCheckpoint(path, "", std::strerror(errno), "a readable file");
  }
  std::string text;
  char buffer[1 << 16];
  while (const size_t num_read = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    text.append(buffer, num_read);
    if (text.size() > limits::kMaxJsonFileBytes) {
      return errors::BadCheckpoint(path, "", "a larger file",
                                   absl::StrCat("at most ", limits::kMaxJsonFileBytes, " bytes"));
    }
  }
  if (std::ferror(file.get()) != 0) {  // a folder, for one
    return errors::BadCheckpoint(path, "", std::strerror(errno), "a readable file");
  }
  return text;
}

}  // namespace conclave
