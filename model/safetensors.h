#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// Element types of the safetensors format that fill whole bytes.
enum class DType {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
};

absl::string_view DTypeName(DType dtype);  // the format's word: "BF16", "F8_E4M3"
size_t DTypeSize(DType dtype);             // bytes of one element
std::optional<DType> DTypeFromName(absl::string_view name);

// "[2048, 768]", as error messages print a shape.
std::string ShapeString(const std::vector<int64_t>& shape);

// One tensor inside a mapped file; valid while the file it came from is.
struct TensorView {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;     // row-major, C order
  const uint8_t* data = nullptr;  // little-endian elements, not necessarily aligned
  size_t bytes = 0;
};

// One .safetensors file, mapped read-only: 8 bytes of header length, a JSON header, the data.
// Opening touches the header alone; the data is read from disk page by page when it is used.
// The file must not be shortened while it is mapped (the kernel answers with SIGBUS).
class SafetensorsFile {
 public:
  // NotFound if there is no such file. DataLoss, naming file and tensor, unless every tensor's
  // bytes lie inside the file, have the length that dtype and shape say, and together cover the
  // data without hole or overlap.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const TensorView* Find(absl::string_view name) const;  // null if absent
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Hints to the kernel: kRandom stops it from reading ahead around each small access.
  enum class Access { kNormal, kRandom };
  void Advise(Access access) const;

 private:
  SafetensorsFile(std::string path, const uint8_t* base, size_t size)
      : path_(std::move(path)), base_(base), size_(size) {}
  absl::Status ParseHeader();

  const std::string path_;
  const uint8_t* const base_;  // mapping of the whole file
  const size_t size_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Every part of a model: model.safetensors alone, or the parts that
// model.safetensors.index.json lists. Thread-safe once open.
class Checkpoint {
 public:
  // NotFound if the directory holds neither. DataLoss if the index or a part is bad, or if a
  // part or a tensor that the index names is missing. Tensors that it does not name are ignored.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& model_dir);

  // DataLoss naming the directory and the tensor if there is no such tensor.
  absl::StatusOr<TensorView> Find(absl::string_view name) const;
  bool Contains(absl::string_view name) const;

  // Path of the part that holds the tensor; the directory for a tensor that no part holds.
  const std::string& PartOf(absl::string_view name) const;

  const std::string& model_dir() const { return model_dir_; }
  const std::vector<std::string>& names() const { return names_; }  // sorted
  size_t total_bytes() const { return total_bytes_; }               // of all tensors
  const std::vector<std::unique_ptr<SafetensorsFile>>& parts() const { return parts_; }

 private:
  explicit Checkpoint(std::string model_dir) : model_dir_(std::move(model_dir)) {}
  absl::Status OpenSinglePart(const std::string& path);
  absl::Status OpenIndexedParts(const std::string& index_path);

  const std::string model_dir_;
  std::vector<std::unique_ptr<SafetensorsFile>> parts_;
  std::map<std::string, const SafetensorsFile*, std::less<>> part_of_;
  std::vector<std::string> names_;
  size_t total_bytes_ = 0;
};

}  // namespace conclave
