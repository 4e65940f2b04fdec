#include "model/output_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave {

namespace fs = std::filesystem;

OutputDirectory::OutputDirectory(std::string dir) : dir_(std::move(dir)) {}

OutputDirectory::~OutputDirectory() {
  if (fd_ >= 0) close(fd_);
  if (keep_) return;
  for (const std::string& path : paths_) unlink(path.c_str());
  if (made_) rmdir(dir_.c_str());
}

absl::Status OutputDirectory::Error(absl::string_view action, const std::string& path) const {
  const int error = errno;
  const std::string message =
      absl::StrCat("cannot ", action, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status OutputDirectory::Make(size_t bytes_wanted) {
  std::error_code error;
  made_ = fs::create_directories(dir_, error);
  if (error) {
    errno = error.value();
    return Error("make directory", dir_);
  }
  const bool empty = fs::is_empty(dir_, error);
  if (!error && !empty) {
    return absl::AlreadyExistsError(absl::StrCat(dir_, " is not empty, want a new directory"));
  }
  const fs::space_info space = fs::space(dir_, error);
  if (!error && space.available < bytes_wanted) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "free space of ", dir_, " is ", space.available, " bytes, want ", bytes_wanted));
  }
  return absl::OkStatus();
}

absl::Status OutputDirectory::Open(const std::string& name) {
  path_ = absl::StrCat(dir_, "/", name);
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) return Error("create", path_);
  paths_.push_back(path_);
  return absl::OkStatus();
}

absl::Status OutputDirectory::Append(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = write(fd_, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Error("write", path_);
    bytes += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status OutputDirectory::Close() {
  const int result = close(std::exchange(fd_, -1));
  return result == 0 ? absl::OkStatus() : Error("close", path_);
}

absl::Status OutputDirectory::WriteFile(const std::string& name, absl::string_view text) {
  RETURN_IF_ERROR(Open(name));
  RETURN_IF_ERROR(Append(text.data(), text.size()));
  return Close();
}

}  // namespace conclave
