#include "rpc/channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <memory>
#include <utility>

#include "absl/synchronization/notification.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

// A call that deletes itself, and with it the last reference to its channel, on gRPC's thread.
class LastReference final : public grpc::ClientUnaryReactor {
 public:
  LastReference(std::shared_ptr<grpc::Channel> channel, absl::Notification* done) : done_(done) {
    v1::Inference::Stub stub(std::move(channel));
    stub.async()->GetModel(&context_, &request_, &response_, this);
    StartCall();
  }

 private:
  void OnDone(const grpc::Status& status) override {
    EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
    absl::Notification* const done = done_;
    delete this;
    done->Notify();
  }

  grpc::ClientContext context_;  // holds the channel
  v1::GetModelRequest request_;
  v1::GetModelResponse response_;
  absl::Notification* const done_;
};

TEST(MakeChannel, TheLastReferenceMayGoInACallback) {
  for (int i = 0; i < 20; ++i) {
    absl::Notification done;
    new LastReference(MakeChannel("unix:/nonexistent"), &done);
    done.WaitForNotification();
  }
}

}  // namespace
}  // namespace conclave
