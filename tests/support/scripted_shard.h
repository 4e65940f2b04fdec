#pragma once

#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "tests/support/test_shard.h"

namespace conclave {

// A shard that misbehaves as it is told, one act a dispatch, and then computes like a real one.
// It is plain protobuf and synchronous gRPC: nothing of ours but the runner.
class ScriptedShard : public v1::ExpertShard::Service {
 public:
  enum class Act {
    kAnswer,
    kAnswerInOnes,  // one combine a pair, last pair first
    kEndStream,     // without answering
    kAnswerHalfThenEnd,
    kSayNothing,
    kWrongLength,  // of the rows
    kWrongRange,
    kTwice,            // the same pairs two times
    kUnknownSequence,  // besides the right answer
  };
  struct Step {
    Act act = Act::kAnswer;
    int error_code = 0;  // not 0: answers with this status instead
  };

  ScriptedShard(TestModel& model, const std::vector<int>& experts)
      : hidden_size_(model.config().hidden_size), runner_(model.LoadRunner(experts)) {
    description_ = MakeShardDescription("test", model.config(), model.fingerprint(), *runner_, 1);
    description_.set_ready(true);
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {this};
    auto server = ServerRunner::Start(options);
    CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  ~ScriptedShard() override { StopServer(); }

  const std::string& target() const { return server_->address(); }
  void Play(std::vector<Step> steps) {
    absl::MutexLock lock(&mutex_);
    steps_.assign(steps.begin(), steps.end());
  }
  void SetDescription(const v1::ShardDescription& description) {
    absl::MutexLock lock(&mutex_);
    description_ = description;
  }
  v1::ShardDescription description() const {
    absl::MutexLock lock(&mutex_);
    return description_;
  }
  size_t steps_left() const {
    absl::MutexLock lock(&mutex_);
    return steps_.size();
  }
  int dispatches() const { return dispatches_.load(); }
  std::vector<v1::RequestTag> announced() const {
    absl::MutexLock lock(&mutex_);
    return announced_;
  }

  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeShardRequest*,
                        v1::ShardDescription* response) override {
    absl::MutexLock lock(&mutex_);
    *response = description_;
    return grpc::Status::OK;
  }

  using Stream = grpc::ServerReaderWriter<v1::ExpertCombine, v1::ExpertDispatch>;
  grpc::Status Forward(grpc::ServerContext*, Stream* stream) override {
    v1::ExpertDispatch dispatch;
    while (stream->Read(&dispatch)) {
      dispatches_.fetch_add(1);
      {
        absl::MutexLock lock(&mutex_);
        announced_.insert(announced_.end(), dispatch.new_requests().begin(),
                          dispatch.new_requests().end());
      }
      if (!Perform(NextStep(), dispatch, stream)) {
        return grpc::Status(grpc::UNAVAILABLE, "scripted");
      }
    }
    return grpc::Status::OK;
  }

 protected:
  // For classes that add calls of their own: before what these use is gone.
  void StopServer() { server_.reset(); }

 private:
  Step NextStep() {
    absl::MutexLock lock(&mutex_);
    if (steps_.empty()) return Step();
    const Step step = steps_.front();
    steps_.pop_front();
    return step;
  }

  v1::ExpertCombine Compute(const v1::ExpertDispatch& dispatch) {
    absl::MutexLock lock(&runner_mutex_);
    std::vector<BFloat16> rows(dispatch.num_rows() * hidden_size_);
    CHECK_EQ(dispatch.hidden_states().size(), rows.size() * 2);
    std::memcpy(rows.data(), dispatch.hidden_states().data(), dispatch.hidden_states().size());
    std::vector<BFloat16> output(dispatch.pair_rows_size() * hidden_size_);
    const absl::Status status =
        runner_->Run(static_cast<int>(dispatch.layer()), rows.data(), dispatch.num_rows(),
                     dispatch.pair_rows(), dispatch.pair_experts(), output.data());
    CHECK(status.ok()) << status;
    v1::ExpertCombine combine;
    combine.set_sequence(dispatch.sequence());
    combine.set_num_pairs(static_cast<uint32_t>(dispatch.pair_rows_size()));
    combine.set_expert_rows(output.data(), output.size() * 2);
    return combine;
  }

  // Pairs [first, first + count) of a whole answer.
  v1::ExpertCombine Part(const v1::ExpertCombine& all, uint32_t first, uint32_t count) const {
    v1::ExpertCombine part;
    part.set_sequence(all.sequence());
    part.set_first_pair(first);
    part.set_num_pairs(count);
    part.set_expert_rows(
        all.expert_rows().substr(first * hidden_size_ * 2, count * hidden_size_ * 2));
    return part;
  }

  // False ends the stream.
  bool Perform(const Step& step, const v1::ExpertDispatch& dispatch, Stream* stream) {
    if (step.error_code != 0) {
      v1::ExpertCombine error;
      error.set_sequence(dispatch.sequence());
      error.set_status_code(static_cast<uint32_t>(step.error_code));
      error.set_status_message("scripted");
      return stream->Write(error);
    }
    v1::ExpertCombine all = Compute(dispatch);
    switch (step.act) {
      case Act::kAnswer:
        return stream->Write(all);
      case Act::kAnswerInOnes:
        for (uint32_t pair = all.num_pairs(); pair-- > 0;) stream->Write(Part(all, pair, 1));
        return true;
      case Act::kEndStream:
        return false;
      case Act::kAnswerHalfThenEnd:
        if (all.num_pairs() > 1) stream->Write(Part(all, 0, all.num_pairs() / 2));
        return false;
      case Act::kSayNothing:
        return true;
      case Act::kWrongLength:
        all.mutable_expert_rows()->resize(all.expert_rows().size() - 2);
        return stream->Write(all);
      case Act::kWrongRange:
        all.set_first_pair(1);
        return stream->Write(all);
      case Act::kTwice:
        if (all.num_pairs() > 1) stream->Write(Part(all, 0, 1));
        return stream->Write(all);
      case Act::kUnknownSequence: {
        v1::ExpertCombine other = all;
        other.set_sequence(all.sequence() + 1'000'000);
        stream->Write(other);
        return stream->Write(all);
      }
    }
    return false;
  }

  const size_t hidden_size_;
  absl::Mutex runner_mutex_;
  const std::unique_ptr<ExpertRunner> runner_;
  std::atomic<int> dispatches_{0};
  mutable absl::Mutex mutex_;
  v1::ShardDescription description_ ABSL_GUARDED_BY(mutex_);
  std::deque<Step> steps_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::RequestTag> announced_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ServerRunner> server_;
};

}  // namespace conclave
