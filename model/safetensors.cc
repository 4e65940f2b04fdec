#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "model/safetensors_header.h"

namespace conclave {
namespace {

struct DTypeInfo {
  DType dtype;
  const char* name;
  size_t size;
};

constexpr DTypeInfo kDTypes[] = {
    {DType::kBool, "BOOL", 1},      {DType::kU8, "U8", 1},          {DType::kI8, "I8", 1},
    {DType::kF8E4M3, "F8_E4M3", 1}, {DType::kF8E5M2, "F8_E5M2", 1}, {DType::kF8E8M0, "F8_E8M0", 1},
    {DType::kI16, "I16", 2},        {DType::kU16, "U16", 2},        {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},      {DType::kI32, "I32", 4},        {DType::kU32, "U32", 4},
    {DType::kF32, "F32", 4},        {DType::kI64, "I64", 8},        {DType::kU64, "U64", 8},
    {DType::kF64, "F64", 8},
};

const DTypeInfo& InfoOf(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }

absl::Status SystemError(const std::string& path, absl::string_view action) {
  const int error = errno;
  const std::string message =
      absl::StrCat("cannot ", action, " ", path, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::InternalError(message);
}

}  // namespace

absl::string_view DTypeName(DType dtype) { return InfoOf(dtype).name; }

size_t DTypeSize(DType dtype) { return InfoOf(dtype).size; }

std::optional<DType> DTypeFromName(absl::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (name == info.name) return info.dtype;
  }
  return std::nullopt;
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open");
  struct stat info;
  if (fstat(fd, &info) != 0) {
    const absl::Status status = SystemError(path, "stat");
    close(fd);
    return status;
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (!S_ISREG(info.st_mode) || size < 8) {
    close(fd);
    return errors::BadCheckpoint(path, "", absl::StrCat(size, " bytes"),
                                 "a file with 8 bytes of header length");
  }
  void* base = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const absl::Status status = base == MAP_FAILED ? SystemError(path, "map") : absl::OkStatus();
  close(fd);  // the mapping keeps the file
  RETURN_IF_ERROR(status);
  std::unique_ptr<SafetensorsFile> file(
      new SafetensorsFile(path, static_cast<const uint8_t*>(base), size));
  RETURN_IF_ERROR(file->ParseHeader());
  return file;
}

SafetensorsFile::~SafetensorsFile() { munmap(const_cast<uint8_t*>(base_), size_); }

absl::Status SafetensorsFile::ParseHeader() {
  uint64_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) header_bytes |= static_cast<uint64_t>(base_[i]) << (8 * i);
  if (header_bytes > limits::kMaxSafetensorsHeaderBytes || header_bytes > size_ - 8) {
    return errors::BadCheckpoint(
        path_, "", absl::StrCat("header length ", header_bytes, " in a file of ", size_, " bytes"),
        absl::StrCat("at most ", limits::kMaxSafetensorsHeaderBytes, " and inside the file"));
  }
  const uint8_t* data = base_ + 8 + header_bytes;
  ASSIGN_OR_RETURN(SafetensorsHeader header,
                   ParseSafetensorsHeader(
                       absl::string_view(reinterpret_cast<const char*>(base_ + 8), header_bytes),
                       size_ - 8 - header_bytes, path_));
  for (SafetensorsEntry& entry : header.entries) {
    TensorView view;
    view.name = entry.name;
    view.dtype = entry.dtype;
    view.shape = std::move(entry.shape);
    view.data = data + entry.begin;
    view.bytes = entry.end - entry.begin;
    tensors_.emplace(std::move(entry.name), std::move(view));
  }
  metadata_ = std::move(header.metadata);
  return absl::OkStatus();
}

const TensorView* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

void SafetensorsFile::Advise(Access access) const {
  // Only a hint: what the kernel answers changes nothing here.
  (void)madvise(const_cast<uint8_t*>(base_), size_,
                access == Access::kRandom ? MADV_RANDOM : MADV_NORMAL);
}

}  // namespace conclave
