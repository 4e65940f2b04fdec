#include "expert_shard/rendezvous.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

constexpr uint64_t kA = 1, kB = 2;
constexpr absl::Duration kCycle = absl::Milliseconds(10);
constexpr int kLayers = 8;

class RendezvousTest : public testing::Test {
 protected:
  RendezvousTest() {
    rendezvous_.Joined(kA);
    rendezvous_.Joined(kB);
  }

  // Layers [first, last] of a worker, one each kCycle, the last one at `end`.
  void Run(uint64_t worker, int first, int last, absl::Time end) {
    for (int layer = first; layer <= last; ++layer) {
      rendezvous_.Came(worker, layer, end - (last - layer) * kCycle);
      rendezvous_.Answered(worker, layer);
    }
  }
  // A worker asks for a layer at `now`: how long it is to wait.
  absl::Duration Wait(uint64_t worker, int layer, absl::Time now) {
    rendezvous_.Came(worker, layer, now);
    const absl::Time until = rendezvous_.WaitUntil(layer, {worker}, now);
    return until == absl::InfinitePast() ? absl::ZeroDuration() : until - now;
  }

  Rendezvous rendezvous_{{0, 1, 2, 3, 4, 5, 6, 7}};
  const absl::Time start_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(RendezvousTest, AWorkerAloneNeverWaits) {
  absl::Time now = start_;
  for (int step = 0; step < 5; ++step) {
    for (int layer = 0; layer < kLayers; ++layer, now += kCycle) {
      EXPECT_EQ(Wait(kA, layer, now), absl::ZeroDuration());
      rendezvous_.Answered(kA, layer);
    }
  }
}

TEST_F(RendezvousTest, WaitsForTheOneThatIsAboutToAskForTheSameLayer) {
  Run(kA, 0, 3, start_);
  Run(kB, 0, 3, start_ + absl::Milliseconds(2));
  // B is expected 12 ms after its last, so 2 ms after A; half a cycle later it is given up.
  const absl::Time now = start_ + kCycle;
  const absl::Duration wait = Wait(kA, 4, now);
  EXPECT_GE(wait, absl::Milliseconds(2));
  EXPECT_LE(wait, kCycle / 2);
  const absl::Time arrival = now + absl::Milliseconds(2);
  rendezvous_.Came(kB, 4, arrival);
  EXPECT_EQ(rendezvous_.WaitUntil(4, {kA, kB}, arrival), absl::InfinitePast()) << "all are here";
}

TEST_F(RendezvousTest, DoesNotWaitForOneThatIsElsewhere) {
  Run(kA, 0, 3, start_);
  Run(kB, 0, 5, start_);  // ahead
  EXPECT_EQ(Wait(kA, 4, start_ + kCycle), absl::ZeroDuration());
}

TEST_F(RendezvousTest, AStepThatBeginsWaitsForOnePastItsMiddle) {
  Run(kA, 0, 7, start_);
  Run(kB, 0, 5, start_);
  // B asks for two more layers and then begins: after about 3 cycles.
  const absl::Duration wait = Wait(kA, 0, start_ + kCycle);
  EXPECT_GE(wait, 2 * kCycle);
  EXPECT_LE(wait, kLayers * kCycle / 2);
}

TEST_F(RendezvousTest, AStepThatBeginsDoesNotWaitForOneBeforeItsMiddle) {
  Run(kA, 0, 7, start_);
  Run(kB, 0, 2, start_);
  EXPECT_EQ(Wait(kA, 0, start_ + kCycle), absl::ZeroDuration());
}

TEST_F(RendezvousTest, OneThatDoesNotComeIsWaitedForOnce) {
  Run(kA, 0, 3, start_);
  Run(kB, 0, 3, start_);
  absl::Time now = start_ + kCycle;
  const absl::Duration wait = Wait(kA, 4, now);
  EXPECT_GT(wait, absl::ZeroDuration());
  now += wait;
  EXPECT_EQ(rendezvous_.WaitUntil(4, {kA}, now), absl::InfinitePast()) << "the wait has an end";
  Run(kA, 4, 7, now + 3 * kCycle);
  Run(kB, 4, 7, now + 3 * kCycle);
  EXPECT_EQ(Wait(kA, 0, now + 4 * kCycle), absl::ZeroDuration()) << "not trusted again so soon";
}

TEST_F(RendezvousTest, AnIdleWorkerIsNotWaitedFor) {
  Run(kB, 0, 7, start_);
  Run(kA, 0, 7, start_ + absl::Seconds(5));
  EXPECT_EQ(Wait(kA, 0, start_ + absl::Seconds(5) + kCycle), absl::ZeroDuration());
}

TEST_F(RendezvousTest, AMuchSlowerWorkerIsNotWaitedFor) {
  Run(kA, 0, 3, start_);
  for (int layer = 0; layer <= 3; ++layer) {  // a long prefill
    rendezvous_.Came(kB, layer, start_ - (3 - layer) * 20 * kCycle);
    rendezvous_.Answered(kB, layer);
  }
  EXPECT_EQ(Wait(kA, 4, start_ + kCycle), absl::ZeroDuration());
}

TEST_F(RendezvousTest, OneThatLeftIsForgotten) {
  Run(kA, 0, 3, start_);
  Run(kB, 0, 3, start_);
  rendezvous_.Left(kB);
  rendezvous_.Came(kB, 3, start_);  // its last, which was on the way
  EXPECT_EQ(Wait(kA, 4, start_ + kCycle), absl::ZeroDuration());
}

}  // namespace
}  // namespace conclave
