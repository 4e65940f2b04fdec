#include "rpc/expert_frame.h"

#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr uint32_t kTensorField = 15;
static_assert(v1::ExpertDispatch::kHiddenStatesFieldNumber == kTensorField);
static_assert(v1::ExpertCombine::kExpertRowsFieldNumber == kTensorField);

// Wire types of protobuf's encoding; 6 and 7 do not exist.
enum WireType : uint32_t {
  kVarint = 0,
  kFixed64 = 1,
  kLengthDelimited = 2,
  kStartGroup = 3,
  kEndGroup = 4,
  kFixed32 = 5,
};
constexpr uint8_t kTensorTag = (kTensorField << 3) | kLengthDelimited;
static_assert(kTensorField < 16, "the tag must be one byte");
constexpr int kMaxGroupDepth = 100;  // protobuf's own limit
constexpr int kMaxTagBytes = 5;      // and its limits for the varints of tags and lengths
constexpr int kMaxVarintBytes = 10;

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed expert frame: ", what));
}

// Position in the slices of a frame.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) remaining_ += slice.size();
    SkipEmptySlices();
  }

  size_t remaining() const { return remaining_; }
  size_t slice() const { return slice_; }
  size_t offset() const { return offset_; }

  // Moves `bytes` on, which must be there; what is passed is appended to `copy` unless null.
  void Advance(size_t bytes, std::string* copy) {
    CHECK_LE(bytes, remaining_);
    remaining_ -= bytes;
    while (bytes > 0) {
      const size_t here = std::min(bytes, slices_[slice_].size() - offset_);
      if (copy != nullptr) {
        copy->append(reinterpret_cast<const char*>(slices_[slice_].begin()) + offset_, here);
      }
      offset_ += here;
      bytes -= here;
      SkipEmptySlices();
    }
  }

  // Reads a varint of at most `max_bytes` and appends its bytes to `copy`.
  absl::StatusOr<uint64_t> Varint(int max_bytes, std::string* copy) {
    uint64_t value = 0;
    for (int i = 0; i < max_bytes; ++i) {
      if (remaining_ == 0) return Malformed("it ends inside a varint");
      const uint8_t byte = slices_[slice_].begin()[offset_];
      Advance(1, copy);
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if ((byte & 0x80) == 0) return value;
    }
    return Malformed("a varint is too long");
  }

 private:
  void SkipEmptySlices() {
    while (slice_ < slices_.size() && offset_ == slices_[slice_].size()) {
      ++slice_;
      offset_ = 0;
    }
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t offset_ = 0;  // in slices_[slice_]
  size_t remaining_ = 0;
};

struct TensorRange {
  size_t first_slice = 0;
  size_t offset = 0;
  size_t bytes = 0;
};

absl::StatusOr<size_t> ReadLength(Cursor* cursor, std::string* copy) {
  ASSIGN_OR_RETURN(const uint64_t length, cursor->Varint(kMaxTagBytes, copy));
  if (length > cursor->remaining()) {
    return Malformed(
        absl::StrCat("a field has ", length, " bytes, ", cursor->remaining(), " are left"));
  }
  return static_cast<size_t>(length);
}

// Copies the value of a field to `header`. `depth` counts the groups that are open.
absl::Status CopyValue(uint32_t wire_type, Cursor* cursor, int* depth, std::string* header) {
  size_t bytes = 0;
  switch (wire_type) {
    case kVarint:
      return cursor->Varint(kMaxVarintBytes, header).status();
    case kFixed64:
      bytes = 8;
      break;
    case kFixed32:
      bytes = 4;
      break;
    case kLengthDelimited: {
      ASSIGN_OR_RETURN(bytes, ReadLength(cursor, header));
      break;
    }
    case kStartGroup:
      return ++*depth > kMaxGroupDepth ? Malformed("groups are too deep") : absl::OkStatus();
    case kEndGroup:
      return --*depth < 0 ? Malformed("a group ends that never began") : absl::OkStatus();
    default:
      return Malformed(absl::StrCat("wire type is ", wire_type, ", want 0..5"));
  }
  if (bytes > cursor->remaining()) return Malformed("it ends inside a field");
  cursor->Advance(bytes, header);
  return absl::OkStatus();
}

// Splits a frame into the bytes of its header (every field but the tensor, in the order they came)
// and the range of its tensor; of several tensors the last counts, as protobuf has it.
absl::Status SplitFrame(const std::vector<grpc::Slice>& slices, std::string* header,
                        TensorRange* tensor) {
  Cursor cursor(slices);
  int depth = 0;
  while (cursor.remaining() > 0) {
    const size_t header_bytes = header->size();
    ASSIGN_OR_RETURN(const uint64_t tag, cursor.Varint(kMaxTagBytes, header));
    if (depth > 0 || tag != kTensorTag) {
      RETURN_IF_ERROR(CopyValue(tag & 7, &cursor, &depth, header));
      continue;
    }
    ASSIGN_OR_RETURN(const size_t bytes, ReadLength(&cursor, nullptr));
    header->resize(header_bytes);  // takes the tag out again
    *tensor = TensorRange{cursor.slice(), cursor.offset(), bytes};
    cursor.Advance(bytes, nullptr);
  }
  return depth == 0 ? absl::OkStatus() : Malformed("it ends inside a group");
}

absl::Status DecodeFrame(const grpc::ByteBuffer& frame, google::protobuf::MessageLite* header,
                         TensorBytes* tensor) {
  std::vector<grpc::Slice> slices;
  if (!frame.Dump(&slices).ok()) return Malformed("it cannot be read");
  std::string header_bytes;
  TensorRange range;
  RETURN_IF_ERROR(SplitFrame(slices, &header_bytes, &range));
  if (!header->ParseFromString(header_bytes)) return Malformed("the header does not parse");
  if (range.bytes == 0) return absl::OkStatus();
  // Only the slices that hold the tensor are kept.
  size_t end = range.first_slice;
  for (size_t covered = 0; covered < range.offset + range.bytes; ++end) {
    covered += slices[end].size();
  }
  slices.erase(slices.begin() + static_cast<ptrdiff_t>(end), slices.end());
  slices.erase(slices.begin(), slices.begin() + static_cast<ptrdiff_t>(range.first_slice));
  *tensor = TensorBytes(std::move(slices), range.offset, range.bytes);
  return absl::OkStatus();
}

grpc::ByteBuffer EncodeHeaderAndTensor(const google::protobuf::MessageLite& header,
                                       const std::vector<grpc::Slice>& tensor) {
  std::string bytes;
  CHECK(header.SerializeToString(&bytes)) << "the header passes 2 GiB";
  size_t tensor_bytes = 0;
  for (const grpc::Slice& slice : tensor) tensor_bytes += slice.size();
  std::vector<grpc::Slice> slices;
  slices.reserve(tensor.size() + 1);
  if (tensor_bytes > 0) {  // protobuf leaves out an empty field
    bytes.push_back(static_cast<char>(kTensorTag));
    size_t rest = tensor_bytes;
    for (; rest >= 0x80; rest >>= 7) bytes.push_back(static_cast<char>((rest & 0x7f) | 0x80));
    bytes.push_back(static_cast<char>(rest));
  }
  slices.emplace_back(bytes);
  slices.insert(slices.end(), tensor.begin(), tensor.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

grpc::Slice BorrowSlice(std::shared_ptr<const void> owner, const void* data, size_t bytes) {
  using Owner = std::shared_ptr<const void>;
  // gRPC's signature takes a pointer it could write through, but it never does.
  return grpc::Slice(
      const_cast<void*>(data), bytes, [](void* held) { delete static_cast<Owner*>(held); },
      new Owner(std::move(owner)));
}

grpc::ByteBuffer EncodeFrame(const v1::ExpertDispatch& header,
                             const std::vector<grpc::Slice>& tensor) {
  CHECK(header.hidden_states().empty()) << "the tensor goes beside the header";
  return EncodeHeaderAndTensor(header, tensor);
}

grpc::ByteBuffer EncodeFrame(const v1::ExpertCombine& header,
                             const std::vector<grpc::Slice>& tensor) {
  CHECK(header.expert_rows().empty()) << "the tensor goes beside the header";
  return EncodeHeaderAndTensor(header, tensor);
}

const BFloat16* TensorBytes::Rows(BufferPool& pool) {
  CHECK_EQ(bytes_ % sizeof(BFloat16), 0u);
  if (bytes_ == 0) return nullptr;
  if (gathered_ == nullptr) {
    const uint8_t* begin = slices_.front().begin() + offset_;
    const bool even = reinterpret_cast<uintptr_t>(begin) % alignof(BFloat16) == 0;
    if (even && offset_ + bytes_ <= slices_.front().size()) {
      return reinterpret_cast<const BFloat16*>(begin);
    }
    std::shared_ptr<uint8_t> buffer = pool.Take(bytes_);
    CopyTo(0, bytes_, buffer.get());
    gathered_ = std::move(buffer);
    slices_.clear();
  }
  return reinterpret_cast<const BFloat16*>(gathered_.get());
}

void TensorBytes::CopyTo(size_t offset, size_t bytes, void* out) const {
  CHECK_LE(offset, bytes_);
  CHECK_LE(bytes, bytes_ - offset);
  auto* to = static_cast<uint8_t*>(out);
  if (bytes == 0) return;
  if (gathered_ != nullptr) {
    std::memcpy(to, gathered_.get() + offset, bytes);
    return;
  }
  size_t skip = offset_ + offset;
  for (const grpc::Slice& slice : slices_) {
    if (skip >= slice.size()) {
      skip -= slice.size();
      continue;
    }
    const size_t here = std::min(bytes, slice.size() - skip);
    std::memcpy(to, slice.begin() + skip, here);
    to += here;
    bytes -= here;
    skip = 0;
    if (bytes == 0) return;
  }
}

absl::StatusOr<DispatchFrame> DecodeDispatch(const grpc::ByteBuffer& frame) {
  DispatchFrame decoded;
  RETURN_IF_ERROR(DecodeFrame(frame, &decoded.header, &decoded.hidden_states));
  return decoded;
}

absl::StatusOr<CombineFrame> DecodeCombine(const grpc::ByteBuffer& frame) {
  CombineFrame decoded;
  RETURN_IF_ERROR(DecodeFrame(frame, &decoded.header, &decoded.expert_rows));
  return decoded;
}

}  // namespace conclave
