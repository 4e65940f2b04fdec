#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/sync_stream.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace conclave {

// The bytes a method answers to `request`, both in protobuf's wire format: health and reflection
// come with gRPC's library, their generated code does not.
inline std::string CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                           const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  auto call = stub.PrepareCall(&context, method, &queue);
  const grpc::Slice slice(request);
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall(&call);
  EXPECT_TRUE(queue.Next(&tag, &ok) && ok);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, &call);
  EXPECT_TRUE(queue.Next(&tag, &ok) && ok);
  call->Read(&response, &call);
  EXPECT_TRUE(queue.Next(&tag, &ok) && ok) << method;
  call->Finish(&status, &call);
  EXPECT_TRUE(queue.Next(&tag, &ok) && ok);
  std::vector<grpc::Slice> slices;
  std::string bytes;
  EXPECT_TRUE(!response.Valid() || response.Dump(&slices).ok());
  for (const grpc::Slice& piece : slices) {
    bytes.append(reinterpret_cast<const char*>(piece.begin()), piece.size());
  }
  return bytes;
}

// HealthCheckResponse.status, field 1.
inline constexpr char kServing[] = "\x08\x01";
inline constexpr char kNotServing[] = "\x08\x02";

// What grpc.health.v1 answers for a service; without a name, for the server.
inline std::string Health(const std::shared_ptr<grpc::Channel>& channel,
                          absl::string_view service = "") {
  // HealthCheckRequest.service, field 1.
  const std::string request =
      service.empty()
          ? ""
          : absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
  return CallRaw(channel, "/grpc.health.v1.Health/Check", request);
}

}  // namespace conclave
