#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/bfloat16.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "rpc/buffer_pool.h"

namespace conclave {

// ExpertDispatch and ExpertCombine on the wire without copying their tensor. A frame is the plain
// protobuf serialisation: the fields of the header, then field 15, the tensor, as
//   0x7a (field 15, length-delimited) | varint length | bytes
// so that it can be written as header slice + tensor slices, and read back by finding where field
// 15 lies in the slices that were received. Any protobuf implementation reads and writes the same.

// A slice of memory that `owner` keeps alive until gRPC has sent it.
grpc::Slice BorrowSlice(std::shared_ptr<const void> owner, const void* data, size_t bytes);

// `header` has no tensor; the tensor is the slices' bytes one after another.
grpc::ByteBuffer EncodeFrame(const v1::ExpertDispatch& header,
                             const std::vector<grpc::Slice>& tensor);
grpc::ByteBuffer EncodeFrame(const v1::ExpertCombine& header,
                             const std::vector<grpc::Slice>& tensor);

// The tensor of a received frame: a range of the slices it came in. Moves, never copies; pointers
// into it survive a move and end with it.
class TensorBytes {
 public:
  TensorBytes() = default;
  // `bytes` bytes of the slices, from byte `offset` of the first one on.
  TensorBytes(std::vector<grpc::Slice> slices, size_t offset, size_t bytes)
      : slices_(std::move(slices)), offset_(offset), bytes_(bytes) {}
  // All of them in `buffer` already.
  TensorBytes(std::shared_ptr<uint8_t> buffer, size_t bytes)
      : bytes_(bytes), gathered_(std::move(buffer)) {}
  TensorBytes(TensorBytes&&) = default;
  TensorBytes& operator=(TensorBytes&&) = default;
  TensorBytes(const TensorBytes&) = delete;
  TensorBytes& operator=(const TensorBytes&) = delete;

  size_t size() const { return bytes_; }

  // The tensor as BF16 in one piece: inside the received slice if it lies in one, at an even
  // address; otherwise copied, once, into a buffer of `pool`. Requires an even size().
  const BFloat16* Rows(BufferPool& pool);

  // Copies bytes [offset, offset + bytes), which must lie inside, to `out`.
  void CopyTo(size_t offset, size_t bytes, void* out) const;

 private:
  std::vector<grpc::Slice> slices_;
  size_t offset_ = 0;  // of the tensor's first byte in slices_[0]
  size_t bytes_ = 0;
  std::shared_ptr<uint8_t> gathered_;  // all of the tensor, if it was copied
};

struct DispatchFrame {
  v1::ExpertDispatch header;  // hidden_states is empty
  TensorBytes hidden_states;
};
struct CombineFrame {
  v1::ExpertCombine header;  // expert_rows is empty
  TensorBytes expert_rows;
};

// InvalidArgument for every sequence of bytes that is no serialisation of the message. Checks
// nothing about the fields' values.
absl::StatusOr<DispatchFrame> DecodeDispatch(const grpc::ByteBuffer& frame);
absl::StatusOr<CombineFrame> DecodeCombine(const grpc::ByteBuffer& frame);

}  // namespace conclave
