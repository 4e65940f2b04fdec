#include "model/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

constexpr size_t kMaxDimensions = 8;
constexpr char kMetadataName[] = "__metadata__";

// Text of the file as messages show it: printable and short.
std::string Shown(absl::string_view text) {
  constexpr size_t kMaxShown = 200;
  return absl::StrCat(absl::CHexEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "..." : "");
}

// Takes exactly the format's JSON, {"name": {"dtype": "..", "shape": [..], "data_offsets": [b, e]},
// "__metadata__": {"key": "text"}}, and stops at the first thing that is anything else, so that a
// hostile header costs no more memory than its own length.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& error() const { return error_; }
  const std::string& tensor() const { return entry_.name; }
  SafetensorsHeader TakeHeader() { return std::move(header_); }

  bool null() override { return Fail("null"); }
  bool boolean(bool) override { return Fail("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Fail(absl::StrCat("the number ", Shown(text)));
  }
  bool binary(binary_t&) override { return Fail("binary data"); }
  bool number_integer(number_integer_t number) override {
    return Fail(absl::StrCat("the negative number ", number));
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (place_ == Place::kShape) {
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          entry_.shape.size() == kMaxDimensions) {
        return Fail("a dimension too large, or more than 8 of them");
      }
      entry_.shape.push_back(static_cast<int64_t>(number));
      return true;
    }
    if (place_ == Place::kOffsets && offsets_.size() < 2) {
      offsets_.push_back(number);
      return true;
    }
    return Fail(absl::StrCat("the number ", number));
  }

  bool string(string_t& text) override {
    if (place_ == Place::kMetadata) {
      header_.metadata[key_] = text;
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype")
      return Fail(absl::StrCat("\"", Shown(text), "\""));
    const std::optional<DType> dtype = DTypeFromName(text);
    if (!dtype.has_value()) return Fail(absl::StrCat("dtype ", Shown(text)));
    entry_.dtype = *dtype;
    seen_.insert(key_);
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) return Fail("an object");
    place_ = entry_.name == kMetadataName ? Place::kMetadata : Place::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::kRoot) {
      entry_ = SafetensorsEntry{name, DType::kBF16, {}, 0, 0};
      offsets_.clear();
      seen_.clear();
      if (!names_.insert(name).second) return Fail("its name twice");
      return true;
    }
    if (seen_.count(name) > 0) return Fail(absl::StrCat("\"", Shown(name), "\" twice"));
    key_ = name;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor) return Fail("an array");
    if (key_ != "shape" && key_ != "data_offsets") return Fail("an array");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    seen_.insert(key_);
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (seen_.size() != 3) return Fail("not all of dtype, shape and data_offsets");
      if (offsets_.size() != 2) return Fail("data_offsets without begin and end");
      entry_.begin = offsets_[0];
      entry_.end = offsets_[1];
      header_.entries.push_back(entry_);
    }
    place_ = place_ == Place::kRoot ? Place::kEnd : Place::kRoot;
    entry_.name.clear();
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    return Fail(absl::StrCat("no JSON at byte ", position));
  }

 private:
  enum class Place { kStart, kRoot, kTensor, kShape, kOffsets, kMetadata, kEnd };

  bool Fail(std::string found) {
    if (error_.empty()) error_ = std::move(found);
    return false;
  }

  SafetensorsHeader header_;
  std::string error_;
  Place place_ = Place::kStart;
  SafetensorsEntry entry_;  // the tensor being read
  std::string key_;         // its field being read
  std::set<std::string> seen_;
  std::vector<uint64_t> offsets_;
  std::set<std::string> names_;
};

// Bytes that shape and dtype take; nullopt if that is more than 64 bits count.
std::optional<uint64_t> TensorBytes(const SafetensorsEntry& entry) {
  uint64_t bytes = DTypeSize(entry.dtype);
  for (const int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

absl::Status CheckOffsets(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes,
                          const std::string& path) {
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    const std::string found = absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "]");
    if (entry.begin > entry.end || entry.end > data_bytes) {
      return errors::BadCheckpoint(path, Shown(entry.name), found,
                                   absl::StrCat("offsets within ", data_bytes, " bytes of data"));
    }
    const std::optional<uint64_t> bytes = TensorBytes(entry);
    if (bytes != entry.end - entry.begin) {
      return errors::BadCheckpoint(
          path, Shown(entry.name), found,
          absl::StrCat(bytes.has_value() ? absl::StrCat(*bytes) : "less than 2^64",
                       " bytes, as shape ", ShapeString(entry.shape), " of ",
                       DTypeName(entry.dtype), " takes"));
    }
    if (entry.begin != covered) {
      return errors::BadCheckpoint(
          path, Shown(entry.name), found,
          absl::StrCat("begin at ", covered, ", where the tensor before it ends"));
    }
    covered = entry.end;
  }
  if (covered == data_bytes) return absl::OkStatus();
  return errors::BadCheckpoint(path, "", absl::StrCat(data_bytes, " bytes of data"),
                               absl::StrCat(covered, ", where the last tensor ends"));
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t data_bytes,
                                                         const std::string& path) {
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler) || !handler.error().empty()) {
    return errors::BadCheckpoint(path, Shown(handler.tensor()), handler.error(),
                                 "a safetensors header");
  }
  SafetensorsHeader header = handler.TakeHeader();
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  RETURN_IF_ERROR(CheckOffsets(header.entries, data_bytes, path));
  return header;
}

std::string FormatSafetensorsHeader(std::vector<SafetensorsEntry>& entries) {
  nlohmann::json json = {{kMetadataName, {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (SafetensorsEntry& entry : entries) {
    entry.begin = offset;
    entry.end = offset += TensorBytes(entry).value_or(0);
    json[entry.name] = {{"dtype", std::string(DTypeName(entry.dtype))},
                        {"shape", entry.shape},
                        {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string header(8, '\0');
  for (int i = 0; i < 8; ++i) header[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return header + text;
}

}  // namespace conclave
