#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "proto/conclave/v1/worker.grpc.pb.h"

namespace conclave {

// A gRPC server of one service on a free port of this machine, until it goes out of scope.
class LoopbackServer {
 public:
  explicit LoopbackServer(grpc::Service* service) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
  }
  ~LoopbackServer() { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string target() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// A router whose answers a test writes. It keeps the requests it got.
class FakeRouter : public v1::Inference::Service {
 public:
  using Chatter = std::function<grpc::Status(grpc::ServerContext&, const v1::ChatRequest&,
                                             grpc::ServerWriter<v1::ChatEvent>&)>;
  using Generator = std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&,
                                               grpc::ServerWriter<v1::GenerateEvent>&)>;
  Chatter on_chat;
  Generator on_generate;
  std::function<grpc::Status(const v1::ControlRequest&)> on_control;
  std::function<grpc::Status(v1::ClusterStatus*)> on_cluster;

  grpc::Status Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatEvent>* writer) override {
    {
      absl::MutexLock lock(&mutex_);
      chats_.push_back(*request);
    }
    return on_chat(*context, *request, *writer);
  }
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    {
      absl::MutexLock lock(&mutex_);
      generates_.push_back(*request);
    }
    return on_generate(*context, *request, *writer);
  }
  grpc::Status Control(grpc::ServerContext*, const v1::ControlRequest* request,
                       v1::ControlResponse*) override {
    return on_control(*request);
  }
  grpc::Status GetCluster(grpc::ServerContext*, const v1::GetClusterRequest*,
                          v1::ClusterStatus* status) override {
    return on_cluster(status);
  }

  // A tokenizer with an id for each byte; <|endoftext|> is 256.
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (!request->plain() && request->text() == "<|endoftext|>") {
      response->add_ids(256);
      return grpc::Status::OK;
    }
    for (const char byte : request->text()) response->add_ids(static_cast<unsigned char>(byte));
    return grpc::Status::OK;
  }
  // Bytes that are not ASCII come out as '?', so that any ids are text.
  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const uint32_t id : request->ids()) {
      response->mutable_text()->push_back(id < 128 ? static_cast<char>(id) : '?');
    }
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    response->mutable_model()->set_name("fake");
    response->set_max_context(1024);
    return grpc::Status::OK;
  }

  std::vector<v1::GenerateRequest> generates() const {
    absl::MutexLock lock(&mutex_);
    return generates_;
  }
  std::vector<v1::ChatRequest> chats() const {
    absl::MutexLock lock(&mutex_);
    return chats_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<v1::ChatRequest> chats_;
  std::vector<v1::GenerateRequest> generates_;
};

// Sends what a router sends for an answer of one thinking and one content piece.
inline grpc::Status SendAnswer(grpc::ServerWriter<v1::ChatEvent>& writer,
                               const std::string& thinking, const std::string& content) {
  v1::ChatEvent event;
  event.mutable_started()->set_request_id("r1");
  event.mutable_started()->set_seed(7);
  writer.Write(event);
  if (!thinking.empty()) {
    event.mutable_thinking_delta()->set_text(thinking);
    writer.Write(event);
    event.mutable_thinking_done()->set_ended_by(v1::THINKING_END_NATURAL);
    writer.Write(event);
  }
  event.mutable_content_delta()->set_text(content);
  writer.Write(event);
  v1::Finished* finished = event.mutable_finished();
  finished->set_reason(v1::CHAT_FINISH_REASON_STOP);
  finished->mutable_usage()->set_completion_tokens(5);
  writer.Write(event);
  return grpc::Status::OK;
}

}  // namespace conclave
