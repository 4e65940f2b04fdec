#include "rpc/expert_frame.h"

#include <cstring>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

v1::ExpertDispatch MakeHeader(int num_pairs) {
  v1::ExpertDispatch header;
  header.set_sequence(1u << 20);
  header.set_layer(7);
  header.set_placement_epoch(~uint64_t{0});
  header.set_num_rows(300);
  for (int i = 0; i < num_pairs; ++i) {
    header.add_pair_rows(static_cast<uint32_t>(i * 37 % 300));
    header.add_pair_experts(static_cast<uint32_t>(i / 3));
  }
  header.set_deadline_ms(30'000);
  return header;
}

std::string MakeTensor(size_t bytes) {
  std::string tensor(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) tensor[i] = static_cast<char>(i * 31 + i / 256);
  return tensor;
}

// Cuts `bytes` into slices of `piece` bytes, an empty one before each.
grpc::ByteBuffer InPieces(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    slices.emplace_back();
    slices.emplace_back(bytes.substr(at, piece));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

std::string TensorOf(const TensorBytes& tensor) {
  std::string bytes(tensor.size(), '\0');
  tensor.CopyTo(0, tensor.size(), bytes.data());
  return bytes;
}

TEST(ExpertFrame, WritesWhatProtobufWrites) {
  for (const size_t bytes : {0, 2, 126, 128, 16'384, 100'002}) {
    v1::ExpertDispatch header = MakeHeader(20);
    const std::string tensor = MakeTensor(bytes);
    const size_t half = bytes / 2;
    const std::string frame = Flatten(EncodeFrame(
        header, {grpc::Slice(tensor.substr(0, half)), grpc::Slice(tensor.substr(half))}));
    header.set_hidden_states(tensor);
    EXPECT_TRUE(frame == header.SerializeAsString()) << bytes;
  }
}

TEST(ExpertFrame, ReadsWhatProtobufWrote) {
  v1::ExpertDispatch message = MakeHeader(20);
  const std::string tensor = MakeTensor(10'000);
  message.set_hidden_states(tensor);
  const std::string bytes = message.SerializeAsString();
  message.clear_hidden_states();
  for (const size_t piece :
       {size_t{1}, size_t{2}, size_t{7}, size_t{100}, size_t{4096}, bytes.size()}) {
    ASSERT_OK_AND_ASSIGN(DispatchFrame frame, DecodeDispatch(InPieces(bytes, piece)));
    EXPECT_EQ(frame.header.SerializeAsString(), message.SerializeAsString());
    EXPECT_TRUE(TensorOf(frame.hidden_states) == tensor) << "pieces of " << piece;
    BufferPool pool(1 << 20);
    const BFloat16* rows = frame.hidden_states.Rows(pool);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(rows) % alignof(BFloat16), 0u);
    EXPECT_EQ(std::memcmp(rows, tensor.data(), tensor.size()), 0) << "pieces of " << piece;
    EXPECT_TRUE(TensorOf(frame.hidden_states) == tensor) << "after Rows, pieces of " << piece;
    std::string part(100, '\0');
    frame.hidden_states.CopyTo(333, part.size(), part.data());
    EXPECT_EQ(part, tensor.substr(333, 100));
  }
}

TEST(ExpertFrame, CombineRoundTrip) {
  v1::ExpertCombine header;
  header.set_sequence(3);
  header.set_first_pair(5);
  header.set_num_pairs(2);
  header.set_compute_us(77);
  const std::string tensor = MakeTensor(64);
  ASSERT_OK_AND_ASSIGN(const CombineFrame frame,
                       DecodeCombine(EncodeFrame(header, {grpc::Slice(tensor)})));
  EXPECT_EQ(frame.header.SerializeAsString(), header.SerializeAsString());
  EXPECT_EQ(TensorOf(frame.expert_rows), tensor);

  header.Clear();
  header.set_status_code(9);
  header.set_status_message("placement_epoch is 1, want 2");
  ASSERT_OK_AND_ASSIGN(const CombineFrame error, DecodeCombine(EncodeFrame(header, {})));
  EXPECT_EQ(error.header.status_message(), header.status_message());
  EXPECT_EQ(error.expert_rows.size(), 0u);
}

TEST(ExpertFrame, BorrowsTheTensor) {
  auto owner = std::make_shared<std::vector<uint8_t>>(10'000, 5);
  const std::weak_ptr<std::vector<uint8_t>> watch = owner;
  const uint8_t* data = owner->data();
  {
    const grpc::ByteBuffer frame =
        EncodeFrame(v1::ExpertCombine(), {BorrowSlice(std::move(owner), data, 10'000)});
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(frame.Dump(&slices).ok());
    EXPECT_EQ(slices.back().begin(), data) << "copied";
    EXPECT_FALSE(watch.expired());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(ExpertFrame, RowsPointIntoTheReceivedSlice) {
  v1::ExpertDispatch message = MakeHeader(1);
  message.set_hidden_states(MakeTensor(4096));
  const std::string bytes = message.SerializeAsString();
  auto memory = std::make_shared<std::vector<uint8_t>>(bytes.size() + 1);
  // At one of two neighbouring addresses the tensor is even.
  int pointed = 0;
  for (size_t shift = 0; shift < 2; ++shift) {
    uint8_t* start = memory->data() + shift;
    std::memcpy(start, bytes.data(), bytes.size());
    const grpc::Slice slice = BorrowSlice(memory, start, bytes.size());
    ASSERT_OK_AND_ASSIGN(DispatchFrame frame, DecodeDispatch(grpc::ByteBuffer(&slice, 1)));
    BufferPool pool(1 << 20);
    const auto* rows = reinterpret_cast<const uint8_t*>(frame.hidden_states.Rows(pool));
    if (rows >= start && rows < start + bytes.size()) ++pointed;
    EXPECT_EQ(std::memcmp(rows, message.hidden_states().data(), 4096), 0);
  }
  EXPECT_EQ(pointed, 1);
}

TEST(ExpertFrame, FieldsInAnyOrderAndRepeated) {
  v1::ExpertDispatch first, second;
  first.set_hidden_states("first tensor");
  first.add_pair_rows(1);
  second.set_layer(9);
  second.set_hidden_states("second");
  second.add_pair_rows(2);
  v1::ExpertDispatch tail;
  tail.set_sequence(4);
  // An unknown group with a field 15 inside, which is the group's and no tensor.
  const std::string group = "\xa3\x06\x7a\x03zzz\xa4\x06";
  const std::string bytes = absl::StrCat(first.SerializeAsString(), group,
                                         second.SerializeAsString(), tail.SerializeAsString());
  v1::ExpertDispatch plain;
  ASSERT_TRUE(plain.ParseFromString(bytes));
  ASSERT_OK_AND_ASSIGN(const DispatchFrame frame, DecodeDispatch(InPieces(bytes, 3)));
  EXPECT_EQ(TensorOf(frame.hidden_states), plain.hidden_states());
  EXPECT_EQ(frame.header.sequence(), 4u);
  EXPECT_EQ(frame.header.layer(), 9u);
  EXPECT_EQ(frame.header.pair_rows_size(), 2);
}

TEST(ExpertFrame, RefusesWhatIsNoMessage) {
  const std::vector<std::string> bad = {
      std::string("\x7a", 1),  // a tensor without a length
      std::string("\x7a\x05"
                  "abc",
                  5),                              // shorter than its length
      std::string("\x7a\xff\xff\xff\xff\x0f", 6),  // 4 GiB
      std::string("\x08", 1),                      // a varint that is not there
      std::string("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12),  // too long a varint
      std::string("\x00", 1),                                               // field 0
      std::string("\x0e", 1),                                               // wire type 6
      std::string("\x0c", 1),                                               // the end of no group
      std::string("\x0b", 1),                               // a group without an end
      std::string("\x0b\x14", 2),                           // a group with another's end
      std::string(101, '\x0b') + std::string(101, '\x0c'),  // too deep
  };
  for (const std::string& bytes : bad) {
    EXPECT_FALSE(v1::ExpertDispatch().ParseFromString(bytes)) << "the test's own mistake";
    EXPECT_THAT(DecodeDispatch(InPieces(bytes, 2)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("frame")));
  }
  v1::ExpertCombine combine;
  combine.set_status_message("ab");
  std::string bytes = combine.SerializeAsString();
  bytes.back() = '\xff';  // no UTF-8
  EXPECT_THAT(DecodeCombine(InPieces(bytes, 2)), StatusIs(absl::StatusCode::kInvalidArgument));
}

// Whatever protobuf makes of some bytes, we make of them too.
void ExpectAgreement(const std::string& bytes, size_t piece) {
  v1::ExpertDispatch plain;
  const bool parses = plain.ParseFromString(bytes);
  absl::StatusOr<DispatchFrame> frame = DecodeDispatch(InPieces(bytes, piece));
  ASSERT_EQ(frame.ok(), parses) << frame.status() << " " << testing::PrintToString(bytes);
  if (!parses) {
    EXPECT_THAT(frame, StatusIs(absl::StatusCode::kInvalidArgument));
    return;
  }
  EXPECT_EQ(TensorOf(frame->hidden_states), plain.hidden_states());
  plain.clear_hidden_states();
  EXPECT_EQ(frame->header.SerializeAsString(), plain.SerializeAsString());
}

TEST(ExpertFrame, AgreesWithProtobufOnMutatedFrames) {
  std::mt19937 random(20261107);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  v1::ExpertDispatch message = MakeHeader(6);
  message.set_hidden_states(MakeTensor(40));
  const std::string valid = message.SerializeAsString();
  for (int round = 0; round < 60'000; ++round) {
    std::string bytes = valid;
    for (size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
      const size_t at = below(bytes.size());
      switch (below(5)) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 2:
          bytes.resize(at);
          break;
        case 3:
          bytes.insert(at, 1 + below(3), static_cast<char>(random()));
          break;
        default:
          bytes.insert(at, valid.substr(below(valid.size()), below(20)));
      }
    }
    ExpectAgreement(bytes, 1 + below(60));
    if (HasFatalFailure()) return;
  }
}

TEST(ExpertFrame, AgreesWithProtobufOnNoise) {
  std::mt19937 random(4);
  for (int round = 0; round < 60'000; ++round) {
    std::string bytes(random() % 24, '\0');
    // Mostly tags and small lengths, so that some of it parses.
    for (char& byte : bytes)
      byte = static_cast<char>(random() % 4 == 0 ? random() : random() % 128);
    ExpectAgreement(bytes, 1 + random() % 8);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace conclave
