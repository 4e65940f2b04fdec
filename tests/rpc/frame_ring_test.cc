#include "rpc/frame_ring.h"

#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr size_t kCapacity = 4096;

// Memory of exactly a ring, so that AddressSanitizer sees a step outside.
struct Ring {
  Ring() : bytes(new (std::align_val_t{64}) uint8_t[FrameRingBytes(kCapacity)]()) {}
  ~Ring() { operator delete[](bytes, std::align_val_t{64}); }
  Ring(const Ring&) = delete;
  FrameRingControl* control() { return reinterpret_cast<FrameRingControl*>(bytes); }
  uint64_t* word(size_t at) {
    return reinterpret_cast<uint64_t*>(bytes + sizeof(FrameRingControl) + at);
  }

  uint8_t* const bytes;
};

// Writes a frame of made-up bytes; false if there is no room.
bool Put(FrameRingWriter& writer, const std::string& header, size_t tensor_bytes, uint8_t fill) {
  absl::StatusOr<uint8_t*> to = writer.Begin(header, tensor_bytes);
  EXPECT_OK(to);
  if (!to.ok() || *to == nullptr) return false;
  std::memset(*to, fill, tensor_bytes);
  writer.Publish();
  return true;
}

bool Next(FrameRingReader& reader, RingFrame* frame) {
  const absl::StatusOr<bool> there = reader.Next(frame);
  EXPECT_OK(there);
  return there.ok() && *there;
}

TEST(FrameRingTest, FramesComeOutAsTheyWentIn) {
  Ring ring;
  FrameRingWriter writer(ring.bytes, kCapacity);
  FrameRingReader reader(ring.bytes, kCapacity);
  RingFrame frame;
  EXPECT_EQ(Next(reader, &frame), false);
  ASSERT_TRUE(Put(writer, "first", 100, 7));
  ASSERT_TRUE(Put(writer, "", 0, 0));
  EXPECT_EQ(Next(reader, &frame), true);
  EXPECT_EQ(frame.header, "first");
  EXPECT_EQ(frame.tensor.size(), 100u);
  EXPECT_EQ(frame.tensor[99], 7);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.tensor.data()) % 64, 0u);
  EXPECT_EQ(Next(reader, &frame), true);
  EXPECT_EQ(frame.header, "");
  EXPECT_TRUE(frame.tensor.empty());
  EXPECT_EQ(Next(reader, &frame), false);
}

TEST(FrameRingTest, AFullRingSaysSoAndTheReaderThatSomebodyWaits) {
  Ring ring;
  FrameRingWriter writer(ring.bytes, kCapacity);
  FrameRingReader reader(ring.bytes, kCapacity);
  int frames = 0;
  while (Put(writer, "x", 400, 1)) ++frames;
  EXPECT_EQ(frames, static_cast<int>(kCapacity / FrameBytes(1, 400)));
  RingFrame frame;
  EXPECT_FALSE(reader.ReleaseRead());  // nothing was read
  EXPECT_EQ(Next(reader, &frame), true);
  EXPECT_FALSE(Put(writer, "x", 400, 1));  // read, but not given back
  EXPECT_TRUE(reader.ReleaseRead());
  EXPECT_TRUE(Put(writer, "x", 400, 1));
  EXPECT_EQ(Next(reader, &frame), true);
  EXPECT_FALSE(reader.ReleaseRead()) << "nobody waits any more";
}

TEST(FrameRingTest, ManyFramesOfEverySizeBetweenTwoThreads) {
  Ring ring;
  constexpr int kFrames = 20000;
  const auto header_of = [](int i) { return std::string(static_cast<size_t>(i * 7 % 150), 'h'); };
  const auto bytes_of = [](int i) { return static_cast<size_t>(i) * 131 % 1700; };
  std::thread writing([&] {
    FrameRingWriter writer(ring.bytes, kCapacity);
    for (int i = 0; i < kFrames;) {
      if (Put(writer, header_of(i), bytes_of(i), static_cast<uint8_t>(i))) {
        ++i;
      } else {
        std::this_thread::yield();
      }
    }
  });
  FrameRingReader reader(ring.bytes, kCapacity);
  RingFrame frame;
  bool well = true;
  for (int i = 0; i < kFrames;) {
    const absl::StatusOr<bool> there = reader.Next(&frame);
    ASSERT_OK(there);
    if (!*there) {
      std::this_thread::yield();
      continue;
    }
    well = well && frame.header == header_of(i) && frame.tensor.size() == bytes_of(i);
    for (const uint8_t byte : frame.tensor) well = well && byte == static_cast<uint8_t>(i);
    reader.ReleaseRead();
    ++i;
  }
  writing.join();
  EXPECT_TRUE(well);
}

TEST(FrameRingTest, AReaderBelievesNothingImpossible) {
  const auto refused = [](const char* why, const auto& spoil) {
    Ring ring;
    FrameRingWriter writer(ring.bytes, kCapacity);
    FrameRingReader reader(ring.bytes, kCapacity);
    ASSERT_TRUE(Put(writer, "header", 300, 1));
    spoil(ring);
    RingFrame frame;
    EXPECT_THAT(reader.Next(&frame), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(why)));
  };
  refused("unread part", [](Ring& ring) { ring.control()->written = kCapacity + 64; });
  refused("unread part", [](Ring& ring) { ring.control()->written = ~uint64_t{0}; });
  refused("unread part", [](Ring& ring) { ring.control()->written = 65; });
  refused("length of a frame", [](Ring& ring) { ring.control()->written = 64; });
  refused("length of a frame", [](Ring& ring) { *ring.word(0) = 6 | uint64_t{5000} << 32; });
  refused("length of a frame", [](Ring& ring) { *ring.word(0) = ~uint64_t{0}; });
  refused("length of a frame", [](Ring& ring) { *ring.word(0) = 0xffffffff; });
  refused("kind", [](Ring& ring) { *ring.word(8) = 0; });
  refused("kind", [](Ring& ring) { *ring.word(8) = 3; });
  refused("skipped", [](Ring& ring) { *ring.word(8) = 2; });
}

TEST(FrameRingTest, AReaderNoticesAnIndexThatGoesBack) {
  Ring ring;
  FrameRingWriter writer(ring.bytes, kCapacity);
  FrameRingReader reader(ring.bytes, kCapacity);
  ASSERT_TRUE(Put(writer, "header", 300, 1));
  RingFrame frame;
  EXPECT_EQ(Next(reader, &frame), true);
  ring.control()->written = 0;
  EXPECT_THAT(reader.Next(&frame), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(FrameRingTest, AWriterBelievesNothingImpossible) {
  for (const uint64_t read : {uint64_t{64}, ~uint64_t{0}, uint64_t{1} << 40, uint64_t{63}}) {
    Ring ring;
    FrameRingWriter writer(ring.bytes, kCapacity);
    ring.control()->read = read;
    EXPECT_THAT(writer.Begin("header", 10), StatusIs(absl::StatusCode::kDataLoss));
  }
}

// Whatever the other side writes wherever, the reader ends with an error or stays inside the ring:
// what it hands out is read in full here, under AddressSanitizer in its preset.
TEST(FrameRingTest, RandomDamageIsSurvived) {
  std::mt19937_64 random(1);
  int errors = 0;
  for (int round = 0; round < 3000; ++round) {
    Ring ring;
    FrameRingWriter writer(ring.bytes, kCapacity);
    FrameRingReader reader(ring.bytes, kCapacity);
    uint64_t sum = 0;
    RingFrame frame;
    for (int step = 0; step < 30; ++step) {
      absl::StatusOr<uint8_t*> to = writer.Begin(std::string(random() % 60, 'h'), random() % 900);
      if (!to.ok()) break;
      if (*to != nullptr) writer.Publish();
      if (random() % 4 == 0) {
        auto* words = reinterpret_cast<uint64_t*>(ring.bytes);
        const size_t num_words = FrameRingBytes(kCapacity) / 8;
        words[random() % num_words] = random() >> (random() % 64);
        // The indices and the frame that is next are hit often.
        if (random() % 2 == 0) words[random() % 2 * 8] ^= uint64_t{1} << (random() % 64);
      }
      const absl::StatusOr<bool> there = reader.Next(&frame);
      if (!there.ok()) {
        EXPECT_EQ(there.status().code(), absl::StatusCode::kDataLoss);
        ++errors;
        break;
      }
      if (*there) {
        for (const uint8_t byte : frame.tensor) sum += byte;
        reader.ReleaseRead();
      }
    }
  }
  EXPECT_GT(errors, 100);
}

}  // namespace
}  // namespace conclave
