#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/check.h"

namespace conclave {

// A directory of its own, gone with the test. ctest runs tests in parallel processes, so that a
// fixed name under testing::TempDir() is a race.
class TempDir {
 public:
  TempDir() : path_(std::filesystem::temp_directory_path() / "conclave_XXXXXX") {
    CHECK(mkdtemp(path_.data()) != nullptr) << path_;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  // Writes the file and returns its path. Removed first: file systems flush a file that is cut to
  // nothing and written anew, which costs milliseconds.
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::error_code ignored;
    std::filesystem::remove(File(name), ignored);
    std::ofstream(File(name), std::ios::binary) << bytes;
    return File(name);
  }

 private:
  std::string path_;
};

}  // namespace conclave
