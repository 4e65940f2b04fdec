// The protocol of a link over NCCL, both ends in this process and a stand-in for NCCL between them.
#include "rpc/nccl_link.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/fp8_rows.h"
#include "tests/support/fake_nccl.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int kHiddenSize = 32;
constexpr size_t kFrameBytes = 4096;

std::vector<uint8_t> Bytes(size_t count, uint8_t first) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(first + i * 7 + i / 251);
  return bytes;
}

struct Taken {
  uint64_t sequence = 0;
  std::vector<uint8_t> tensor;
};

class NcclLinkTest : public testing::Test {
 protected:
  static NcclTransport::Options Options() {
    NcclTransport::Options options;
    options.frame_bytes = kFrameBytes;
    options.setup_timeout = kPatience;
    options.transfer_timeout = kPatience;
    return options;
  }

  // The shard of a test may differ from its worker.
  void Connect(NcclTransport::Options options = Options(), bool fp8 = false,
               const std::function<void(v1::NcclOffer&)>& spoil = nullptr) {
    worker_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), options);
    shard_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), options);
    absl::StatusOr<NcclOffering> offering = NcclOffering::Make(&*worker_transport_, kPeers, fp8);
    ASSERT_OK(offering);
    v1::NcclOffer offer = offering->offer();
    if (spoil != nullptr) spoil(offer);
    v1::NcclAnswer answer;
    ASSERT_OK_AND_ASSIGN(shard_,
                         AcceptNccl(offer, &*shard_transport_, kPeers, &shard_bell_, &answer));
    ASSERT_OK_AND_ASSIGN(worker_,
                         offering->Open(answer, &worker_bell_, [this](absl::Status status) {
                           ready_status_ = std::move(status);
                           ready_.Notify();
                         }));
  }

  absl::Status AwaitReady() {
    EXPECT_TRUE(ready_.WaitForNotificationWithTimeout(kPatience));
    return ready_status_;
  }

  static absl::Status Send(FrameLink& link, uint64_t sequence, absl::Span<const uint8_t> tensor) {
    v1::ExpertDispatch header;
    header.set_sequence(sequence);
    // In pieces, as rows are.
    const size_t first = tensor.size() / 3;
    return link.Send(header, {tensor.subspan(0, first), tensor.subspan(first)});
  }

  // Takes `count` frames, or what there is when the link fails.
  static absl::Status Take(FrameLink& link, Doorbell& bell, size_t count,
                           std::vector<Taken>* taken) {
    const absl::Time give_up = absl::Now() + kPatience;
    while (taken->size() < count) {
      const uint32_t rings = bell.rings();
      const absl::StatusOr<bool> polled =
          link.Poll(static_cast<int>(count - taken->size()),
                    [&](const std::string& header, absl::Span<const uint8_t> tensor) {
                      v1::ExpertDispatch dispatch;
                      EXPECT_TRUE(dispatch.ParseFromString(header));
                      taken->push_back({dispatch.sequence(), {tensor.begin(), tensor.end()}});
                      return absl::OkStatus();
                    });
      if (!polled.ok()) return polled.status();
      if (*polled) continue;
      if (absl::Now() >= give_up) return absl::DeadlineExceededError("the test's patience");
      bell.Wait(rings, give_up);
    }
    return absl::OkStatus();
  }
  absl::Status TakeError(FrameLink& link, Doorbell& bell) {
    std::vector<Taken> none;
    return Take(link, bell, 1, &none);
  }

  const NcclPeers kPeers{"fingerprint", 7, kHiddenSize};
  FakeNcclFabric fabric_;
  Doorbell worker_bell_, shard_bell_;
  absl::Status ready_status_;
  absl::Notification ready_;
  std::optional<NcclTransport> worker_transport_, shard_transport_;
  std::unique_ptr<FrameLink> worker_, shard_;
};

TEST_F(NcclLinkTest, CarriesFramesOfEverySizeBothWaysInOrder) {
  Connect();
  ASSERT_OK(AwaitReady());
  const std::vector<size_t> sizes = {
      0, 2, kFrameBytes - 1, kFrameBytes, kFrameBytes + 1, 0, 1, 5 * kFrameBytes, 100, 0, 100000};
  for (size_t i = 0; i < sizes.size(); ++i) {
    ASSERT_OK(Send(*worker_, i, Bytes(sizes[i], static_cast<uint8_t>(i))));
    ASSERT_OK(Send(*shard_, 100 + i, Bytes(sizes[i], static_cast<uint8_t>(50 + i))));
  }
  std::vector<Taken> to_shard, to_worker;
  ASSERT_OK(Take(*shard_, shard_bell_, sizes.size(), &to_shard));
  ASSERT_OK(Take(*worker_, worker_bell_, sizes.size(), &to_worker));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(to_shard[i].sequence, i);
    EXPECT_TRUE(to_shard[i].tensor == Bytes(sizes[i], static_cast<uint8_t>(i))) << i;
    EXPECT_EQ(to_worker[i].sequence, 100 + i);
    EXPECT_TRUE(to_worker[i].tensor == Bytes(sizes[i], static_cast<uint8_t>(50 + i))) << i;
  }
  int64_t transfers = 2;  // the hellos
  for (const size_t size : sizes) {
    transfers += 2 * static_cast<int64_t>((size + kFrameBytes - 1) / kFrameBytes);
  }
  EXPECT_EQ(fabric_.transfers(), transfers) << "a frame larger than a transfer goes in several";
}

TEST_F(NcclLinkTest, SendsNoMoreThanThePeerTakes) {
  NcclTransport::Options options = Options();
  options.frame_bytes = limits::kNcclFrameBytes;
  Connect(options);
  ASSERT_OK(AwaitReady());
  constexpr size_t kFrames = 14;  // 56 MiB, past the window
  const std::vector<uint8_t> tensor = Bytes(limits::kMaxExpertFrameBytes, 3);
  for (size_t i = 0; i < kFrames; ++i) ASSERT_OK(Send(*worker_, i, tensor));
  // Until the window is full.
  const absl::Time give_up = absl::Now() + kPatience;
  const int64_t window = limits::kNcclWindowBytes / limits::kMaxExpertFrameBytes - 1;
  while (fabric_.transfers() < 2 + window && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(fabric_.transfers(), 2 + window);
  EXPECT_EQ(worker_->num_waiting(), kFrames - static_cast<size_t>(window));
  std::vector<Taken> taken;
  ASSERT_OK(Take(*shard_, shard_bell_, kFrames, &taken));
  for (const Taken& frame : taken) EXPECT_TRUE(frame.tensor == tensor);
  EXPECT_EQ(worker_->num_waiting(), 0u);
}

TEST_F(NcclLinkTest, TheSmallerFramesOfBothSidesAreUsed) {
  worker_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), Options());
  NcclTransport::Options larger = Options();
  larger.frame_bytes = 4 * kFrameBytes;
  larger.num_frames = 9;
  shard_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), larger);
  ASSERT_OK_AND_ASSIGN(const NcclOffering offering,
                       NcclOffering::Make(&*worker_transport_, kPeers, false));
  v1::NcclAnswer answer;
  ASSERT_OK(AcceptNccl(offering.offer(), &*shard_transport_, kPeers, &shard_bell_, &answer));
  EXPECT_EQ(answer.frame_bytes(), kFrameBytes);
  EXPECT_EQ(answer.num_frames(), 2u);
}

TEST_F(NcclLinkTest, RowsOfDispatchesMayBeFp8) {
  Connect(Options(), /*fp8=*/true);
  ASSERT_OK(AwaitReady());
  constexpr size_t kRows = 300;
  std::vector<BFloat16> rows(kRows * kHiddenSize);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = ToBFloat16(static_cast<float>(static_cast<int>(i * 37 % 1001) - 500) * 0.013f);
  }
  const auto bytes = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(rows.data()),
                                         rows.size() * sizeof(BFloat16));
  ASSERT_OK(Send(*worker_, 1, bytes));
  ASSERT_OK(Send(*shard_, 2, bytes));
  std::vector<Taken> to_shard, to_worker;
  ASSERT_OK(Take(*shard_, shard_bell_, 1, &to_shard));
  ASSERT_OK(Take(*worker_, worker_bell_, 1, &to_worker));
  EXPECT_TRUE(absl::MakeConstSpan(to_worker[0].tensor) == bytes) << "combines are BF16";
  std::vector<uint8_t> encoded(Fp8RowsBytes(kRows, kHiddenSize));
  EncodeFp8Rows(rows.data(), kRows, kHiddenSize, encoded.data());
  std::vector<BFloat16> decoded(rows.size());
  DecodeFp8Rows(encoded.data(), kRows, kHiddenSize, decoded.data());
  ASSERT_EQ(to_shard[0].tensor.size(), bytes.size());
  EXPECT_EQ(std::memcmp(to_shard[0].tensor.data(), decoded.data(), bytes.size()), 0);
}

TEST_F(NcclLinkTest, AHangEndsAtTheDeadline) {
  NcclTransport::Options options = Options();
  options.transfer_timeout = absl::Seconds(2);  // ample for the hellos
  Connect(options);
  ASSERT_OK(AwaitReady());
  fabric_.HangAfter(3);
  ASSERT_OK(Send(*worker_, 1, Bytes(10 * kFrameBytes, 1)));
  EXPECT_THAT(TakeError(*worker_, worker_bell_),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("not done")));
  EXPECT_THAT(TakeError(*shard_, shard_bell_), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(Send(*worker_, 2, {}), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

// A receive is posted when its send is announced, and not before: nobody waits on a GPU.
TEST_F(NcclLinkTest, AnIdleLinkAsksNothingOfTheGpu) {
  Connect();
  ASSERT_OK(AwaitReady());
  EXPECT_EQ(fabric_.transfers(), 2);
  EXPECT_EQ(fabric_.waiting(), 0);
  ASSERT_OK(Send(*worker_, 1, Bytes(100, 1)));
  std::vector<Taken> taken;
  ASSERT_OK(Take(*shard_, shard_bell_, 1, &taken));
  EXPECT_EQ(fabric_.transfers(), 3);
  EXPECT_EQ(fabric_.waiting(), 0);
}

TEST_F(NcclLinkTest, AnErrorOfNcclEndsBothEnds) {
  Connect();
  ASSERT_OK(AwaitReady());
  fabric_.FailAfter(2);
  ASSERT_OK(Send(*worker_, 1, Bytes(10 * kFrameBytes, 1)));
  for (const bool worker : {true, false}) {
    EXPECT_THAT(worker ? TakeError(*worker_, worker_bell_) : TakeError(*shard_, shard_bell_),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("ncclRemoteError")));
  }
}

TEST_F(NcclLinkTest, OneThatNeverConnectsEndsAtTheDeadline) {
  NcclTransport::Options options = Options();
  options.setup_timeout = absl::Milliseconds(300);
  Connect(options, /*fp8=*/false,
          [](v1::NcclOffer& offer) { (*offer.mutable_combine_id())[0] ^= 1; });
  EXPECT_THAT(AwaitReady(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("does not connect")));
  EXPECT_THAT(TakeError(*shard_, shard_bell_), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(NcclLinkTest, IsNotUsedUnlessBytesArriveAsTheyWereSent) {
  fabric_.Corrupt();
  Connect();
  EXPECT_THAT(TakeError(*shard_, shard_bell_), StatusIs(absl::StatusCode::kDataLoss));
  worker_ = nullptr;  // as at the end of the call that agreed on it
  EXPECT_THAT(AwaitReady(), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(NcclLinkTest, LeavesNothingBehind) {
  Connect();
  ASSERT_OK(AwaitReady());
  fabric_.HangAfter(1);
  ASSERT_OK(Send(*worker_, 1, Bytes(10 * kFrameBytes, 1)));  // still under way at the end
  EXPECT_EQ(fabric_.live_comms(), 4);
  worker_ = nullptr;
  shard_ = nullptr;
  worker_transport_.reset();
  shard_transport_.reset();
  EXPECT_EQ(fabric_.live_comms(), 0);
  EXPECT_EQ(fabric_.live_buffers(), 0);
}

TEST_F(NcclLinkTest, OffersThatMakeNoSenseAreRefused) {
  worker_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), Options());
  shard_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), Options());
  const auto refusal = [&](const std::function<void(v1::NcclOffer&)>& spoil) {
    absl::StatusOr<NcclOffering> offering =
        NcclOffering::Make(&*worker_transport_, kPeers, /*fp8_dispatches=*/false);
    EXPECT_OK(offering);
    v1::NcclOffer offer = offering->offer();
    spoil(offer);
    v1::NcclAnswer answer;
    return AcceptNccl(offer, &*shard_transport_, kPeers, &shard_bell_, &answer).status();
  };
  constexpr auto kFailed = absl::StatusCode::kFailedPrecondition;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_OK(refusal([](auto&) {}));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_fingerprint("other"); }),
              StatusIs(kFailed, HasSubstr("fingerprint is other")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_placement_epoch(6); }), StatusIs(kFailed));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_nccl_version(22703); }),
              StatusIs(kFailed, HasSubstr("nccl_version is 22703, want 22809")));
  EXPECT_THAT(refusal([](auto& offer) { offer.mutable_headers()->set_boot_id("x"); }),
              StatusIs(kFailed, HasSubstr("another host")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_frame_bytes(1); }),
              StatusIs(kInvalid, HasSubstr("frame_bytes is 1, want 4096..")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_frame_bytes(uint64_t{1} << 40); }),
              StatusIs(kInvalid, HasSubstr("frame_bytes")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_num_frames(0); }),
              StatusIs(kInvalid, HasSubstr("num_frames is 0, want 1..")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_dispatch_rows("int3"); }),
              StatusIs(kInvalid, HasSubstr("int3")));
  EXPECT_THAT(refusal([](auto& offer) { offer.set_combine_id(offer.dispatch_id()); }),
              StatusIs(kInvalid, HasSubstr("want two")));
}

TEST_F(NcclLinkTest, AnswersThatMakeNoSenseAreRefused) {
  worker_transport_.emplace(std::make_unique<FakeNccl>(&fabric_), Options());
  const auto refusal = [&](uint64_t frame_bytes, uint32_t num_frames) {
    absl::StatusOr<NcclOffering> offering =
        NcclOffering::Make(&*worker_transport_, kPeers, /*fp8_dispatches=*/false);
    EXPECT_OK(offering);
    v1::NcclAnswer answer;
    answer.set_frame_bytes(frame_bytes);
    answer.set_num_frames(num_frames);
    return offering->Open(answer, &worker_bell_, nullptr).status();
  };
  EXPECT_THAT(refusal(0, 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refusal(kFrameBytes * 2, 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refusal(kFrameBytes, 3), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refusal(kFrameBytes, 2), StatusIs(absl::StatusCode::kFailedPrecondition))
      << "it confirms no memory";
}

// A shard's end against a worker that announces what a test likes.
TEST_F(NcclLinkTest, APeerThatAnnouncesNonsenseEndsTheLink) {
  using Spoil = std::function<void(v1::NcclAnnouncement&)>;
  const std::vector<Spoil> spoils = {
      [](auto&) {},                                                                    // of no kind
      [](auto& announcement) { announcement.set_kind(v1::NcclAnnouncement::FRAME); },  // no hello
      [](auto& announcement) {
        announcement.set_kind(v1::NcclAnnouncement::HELLO);
        announcement.set_tensor_bytes(9);
      },
      [](auto& announcement) {
        announcement.set_kind(v1::NcclAnnouncement::CREDIT);
        announcement.set_taken_bytes(1);
      },
  };
  for (const Spoil& spoil : spoils) {
    Doorbell bell;
    NcclTransport shard_transport(std::make_unique<FakeNccl>(&fabric_), Options());
    ASSERT_OK_AND_ASSIGN(SharedMemoryOffering memory, SharedMemoryOffering::Make(bell));
    v1::NcclOffer offer;
    *offer.mutable_headers() = memory.offer();
    FakeNccl nccl(&fabric_);
    ASSERT_OK_AND_ASSIGN(*offer.mutable_dispatch_id(), nccl.NewUniqueId());
    ASSERT_OK_AND_ASSIGN(*offer.mutable_combine_id(), nccl.NewUniqueId());
    offer.set_frame_bytes(kFrameBytes);
    offer.set_num_frames(1);
    offer.set_dispatch_rows("bf16");
    offer.set_fingerprint(kPeers.fingerprint);
    offer.set_placement_epoch(kPeers.placement_epoch);
    offer.set_nccl_version(22809);
    v1::NcclAnswer answer;
    ASSERT_OK_AND_ASSIGN(const auto shard,
                         AcceptNccl(offer, &shard_transport, kPeers, &shard_bell_, &answer));
    BufferPool pool(1 << 20);
    ASSERT_OK_AND_ASSIGN(const auto headers, memory.Open(answer.headers(), &pool));
    v1::NcclAnnouncement announcement;
    spoil(announcement);
    ASSERT_OK(headers->Send(announcement, {}));
    EXPECT_THAT(TakeError(*shard, shard_bell_), StatusIs(absl::StatusCode::kDataLoss));
  }
}

}  // namespace
}  // namespace conclave
