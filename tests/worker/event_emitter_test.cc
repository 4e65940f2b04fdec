#include "worker/event_emitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "common/limits.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::ElementsAre;

v1::TokenEvent Event(uint32_t id) {
  v1::TokenEvent event;
  event.add_ids(id);
  return event;
}

TEST(EventEmitterTest, HandsOutInOrderOnceFlushed) {
  auto a = std::make_shared<CollectingSink>(), b = std::make_shared<CollectingSink>();
  EventEmitter emitter;
  emitter.OnEvent(a, Event(1));
  emitter.OnEvent(b, Event(2));
  emitter.OnEvent(a, Event(3));
  EXPECT_THAT(a->ids(), ElementsAre());
  emitter.OnDone(a, absl::CancelledError("gone"));
  emitter.Flush();
  EXPECT_THAT(a->Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(a->ids(), ElementsAre(1, 3));
  EXPECT_THAT(b->ids(), ElementsAre(2));
}

TEST(EventEmitterTest, NothingIsLostAtTheEnd) {
  auto sink = std::make_shared<CollectingSink>();
  {
    EventEmitter emitter;
    for (uint32_t id = 0; id < 100; ++id) {
      emitter.OnEvent(sink, Event(id));
      emitter.Flush();
    }
    emitter.OnDone(sink, absl::OkStatus());  // not flushed
  }
  EXPECT_OK(sink->Wait());
  EXPECT_EQ(sink->ids().size(), 100u);
}

// Holds up whoever hands it an event.
class SlowSink : public CollectingSink {
 public:
  void OnEvent(v1::TokenEvent event) override {
    go.WaitForNotification();
    CollectingSink::OnEvent(std::move(event));
  }
  absl::Notification go;
};

TEST(EventEmitterTest, TheEngineWaitsForAThreadThatCannotKeepUp) {
  auto sink = std::make_shared<SlowSink>();
  EventEmitter emitter;
  constexpr int kFlushes = 3 * limits::kMaxUnsentSteps;
  std::atomic<int> flushed = 0;
  std::thread engine([&] {
    for (int i = 0; i < kFlushes; ++i) {
      emitter.OnEvent(sink, Event(static_cast<uint32_t>(i)));
      emitter.Flush();
      ++flushed;
    }
  });
  // One batch is in the thread's hands, the others fill the queue.
  while (flushed < limits::kMaxUnsentSteps) std::this_thread::yield();
  EXPECT_LE(flushed, limits::kMaxUnsentSteps + 1);
  sink->go.Notify();
  engine.join();
  emitter.OnDone(sink, absl::OkStatus());
  emitter.Flush();
  EXPECT_OK(sink->Wait());
  EXPECT_EQ(sink->ids().size(), static_cast<size_t>(kFlushes));
}

}  // namespace
}  // namespace conclave
