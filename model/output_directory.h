#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A new directory that is filled file by file. Unless Keep() is called, the destructor removes
// what was written, so that a failure leaves nothing that looks like a model.
// Errors of every method: ResourceExhausted if the disk is full, PermissionDenied, Internal.
class OutputDirectory {
 public:
  explicit OutputDirectory(std::string dir);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  // Makes the directory, parents too. AlreadyExists if it is there and not empty;
  // ResourceExhausted if the file system has less than bytes_wanted free.
  absl::Status Make(size_t bytes_wanted);

  // One file at a time: Open, Append as often as wanted, Close.
  absl::Status Open(const std::string& name);
  absl::Status Append(const void* data, size_t size);
  absl::Status Close();
  absl::Status WriteFile(const std::string& name, absl::string_view text);

  void Keep() { keep_ = true; }

 private:
  absl::Status Error(absl::string_view action, const std::string& path) const;

  const std::string dir_;
  bool made_ = false;  // by us, rather than found empty
  bool keep_ = false;
  int fd_ = -1;
  std::string path_;                // of the open file
  std::vector<std::string> paths_;  // of every file so far
};

}  // namespace conclave
