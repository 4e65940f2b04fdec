#include "rpc/server_runner.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "rpc/address.h"
#include "rpc/pem_file.h"

namespace conclave {
namespace {

// gRPC's own lines join ours at debug level: what matters of them comes back as a status.
void LogGrpcLine(gpr_log_func_args* args) {
  LOG_DEBUG("grpc: {}:{}: {}", args->file, args->line, args->message);
}

void PrepareProcess() {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(&LogGrpcLine);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const ServerOptions& options) {
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tls_cert_file is \"", options.tls_cert_file, "\" and tls_key_file is \"",
                     options.tls_key_file, "\", want both or neither"));
  }
  if (options.tls_cert_file.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ASSIGN_OR_RETURN(pair.cert_chain, ReadPemFile(options.tls_cert_file));
  ASSIGN_OR_RETURN(pair.private_key, ReadPemFile(options.tls_key_file));
  grpc::SslServerCredentialsOptions tls;
  tls.pem_key_cert_pairs.push_back(std::move(pair));
  return grpc::SslServerCredentials(tls);
}

void AddArguments(Traffic traffic, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(limits::kMaxGrpcMessageBytes);
  builder->SetMaxSendMessageSize(limits::kMaxGrpcMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Our channels ping every 10 s, with or without calls; gRPC's default of 300 s would end them.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  for (const auto& [key, value] : TrafficArguments(traffic)) {
    builder->AddChannelArgument(key, value);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerRunner>> ServerRunner::Start(const ServerOptions& options) {
  PrepareProcess();
  const bool unix_socket = absl::StartsWith(options.listen, "unix:");
  HostPort listen;
  if (!unix_socket) {
    ASSIGN_OR_RETURN(listen, ParseHostPort(options.listen));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials, MakeCredentials(options));

  grpc::ServerBuilder builder;
  AddArguments(options.traffic, &builder);
  int port = 0;
  builder.AddListeningPort(options.listen, std::move(credentials), &port);
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port <= 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen,
                                               ": the port is in use, the address is not one of "
                                               "this host's, or the certificate is bad"));
  }
  std::string address = unix_socket ? options.listen : FormatHostPort(listen.host, port);
  std::unique_ptr<ServerRunner> runner(
      new ServerRunner(std::move(server), unix_socket ? 0 : port, std::move(address)));
  runner->SetServing(false);
  return runner;
}

ServerRunner::ServerRunner(std::unique_ptr<grpc::Server> server, int port, std::string address)
    : server_(std::move(server)), port_(port), address_(std::move(address)) {}

ServerRunner::~ServerRunner() {
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
}

void ServerRunner::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
  // The line above speaks for every name; a probe in between fails once, which no orchestrator
  // takes for a death.
  server_->GetHealthCheckService()->SetServingStatus(kLivenessService, true);
}

void ServerRunner::DrainAndStop(absl::Duration deadline) {
  SetServing(false);
  server_->Shutdown(absl::ToChronoTime(absl::Now() + deadline));
}

}  // namespace conclave
