#include "worker/token_stream.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/trace_context.h"
#include "rpc/grpc_status.h"

namespace conclave {

class TokenStream::Reactor final : public grpc::ServerWriteReactor<v1::TokenEvent> {
 public:
  explicit Reactor(std::shared_ptr<TokenStream> stream) : stream_(std::move(stream)) {}

  void OnWriteDone(bool ok) override { stream_->OnWriteDone(ok); }
  void OnCancel() override { stream_->OnCancel(); }
  void OnDone() override {
    stream_->OnReactorDone();
    delete this;
  }

 private:
  const std::shared_ptr<TokenStream> stream_;
};

std::pair<std::shared_ptr<TokenStream>, grpc::ServerWriteReactor<v1::TokenEvent>*>
TokenStream::Create(v1::RequestTag tag) {
  auto stream = std::make_shared<TokenStream>();
  auto* reactor = new Reactor(stream);
  absl::MutexLock lock(&stream->mutex_);
  stream->reactor_ = reactor;
  stream->tag_ = std::move(tag);
  return {stream, reactor};
}

void TokenStream::Open(bool accepted) {
  Reactor* reactor = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    reactor = reactor_;  // Finish was not called, so gRPC keeps it
  }
  // Before any write: events may be there already, and wait for opened_.
  if (accepted) reactor->StartSendInitialMetadata();
  {
    absl::MutexLock lock(&mutex_);
    opened_ = true;
  }
  Advance();
}

void TokenStream::OnEvent(v1::TokenEvent event) {
  {
    absl::MutexLock lock(&mutex_);
    CHECK(!done_) << "an event after the last";
    if (cancelled_) return;
    unsent_ids_ += event.ids_size();
    num_ids_ += event.ids_size();
    unsent_.push_back(std::move(event));
  }
  Advance();
}

void TokenStream::OnDone(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
    status_ = status;
    LogEvent("request finished",
             {{"request_id", tag_.request_id()},
              {"trace_id", TraceId(tag_.traceparent())},
              {"outcome", absl::AsciiStrToLower(absl::StatusCodeToString(status.code()))},
              {"tokens", absl::StrCat(num_ids_)}});
  }
  Advance();
}

bool TokenStream::Writable() const {
  absl::MutexLock lock(&mutex_);
  return unsent_ids_ < limits::kMaxUnsentTokens;
}

void TokenStream::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    unsent_ids_ -= unsent_.front().ids_size();
    unsent_.pop_front();
    if (!ok || cancelled_) {
      cancelled_ = true;
      unsent_.clear();
      unsent_ids_ = 0;
    }
  }
  Advance();
}

void TokenStream::OnCancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
}

bool TokenStream::Cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void TokenStream::OnReactorDone() {
  absl::MutexLock lock(&mutex_);
  reactor_ = nullptr;
}

void TokenStream::Advance() {
  Reactor* reactor = nullptr;
  const v1::TokenEvent* event = nullptr;
  grpc::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (!opened_ || writing_ || finished_ || reactor_ == nullptr) return;
    if (!unsent_.empty()) {
      writing_ = true;
      event = &unsent_.front();  // stays in place while others are pushed behind it
    } else if (done_) {
      finished_ = true;
      status = ToGrpcStatus(status_);
    } else {
      return;
    }
    // Finish has not been called, so gRPC keeps the reactor.
    reactor = reactor_;
  }
  if (event != nullptr) {
    reactor->StartWrite(event);
  } else {
    reactor->Finish(status);
  }
}

}  // namespace conclave
