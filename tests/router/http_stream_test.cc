// Answers that take their time: streams, clients that are slow or go, many at once, the drain.

#include <sys/resource.h>

#include <atomic>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "router/http_server.h"
#include "tests/router/test_http.h"
#include "tests/router/test_router.h"

namespace conclave {
namespace {

TEST(HttpStream, ARequestThatComesDuringAStreamWaits) {
  Inbox inbox;
  const auto server = Serve(inbox.handler());
  RawClient client(server->port());
  client.Request("GET", "/1");
  const auto first = inbox.Take();
  first->StartStream(Text("a"));
  client.Request("GET", "/2");
  EXPECT_TRUE(WriteAndWait(*first, "b"));
  first->EndStream();
  EXPECT_EQ(client.ReadResponse().body, "ab");
  inbox.Take()->Send(Text("second"));
  EXPECT_EQ(client.ReadResponse().body, "second");
}

TEST(HttpStream, AnAnswerThatIsDroppedIsAnError) {
  const auto server = Serve([](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
    if (request.path == "/stream") exchange->StartStream(Text("begun"));
  });
  RawClient client(server->port());
  client.Request("GET", "/");
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 500);
  EXPECT_NE(response.body.find("dropped without an answer"), std::string::npos) << response.body;
  client.Request("GET", "/stream");  // the connection is kept
  const RawResponse stream = client.ReadResponse();
  EXPECT_EQ(stream.body, "begun");
  EXPECT_FALSE(stream.whole) << "the client must see that something is missing";
}

TEST(HttpStream, ASlowReaderHoldsBackItsWriter) {
  Inbox inbox;
  const auto server = Serve(inbox.handler());
  RawClient client(server->port());
  client.Request("GET", "/");
  const auto exchange = inbox.Take();
  exchange->StartStream(Text(""));
  // More than the kernel's buffers hold: the Write is done when the client has read most of it.
  const std::string large(32 << 20, 'x');
  std::atomic<bool> done = false;
  absl::Notification written;
  exchange->Write(large, [&](bool ok) {
    done = ok;
    written.Notify();
  });
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_FALSE(written.HasBeenNotified());
  EXPECT_EQ(client.ReadChunk().size(), large.size());
  ASSERT_TRUE(written.WaitForNotificationWithTimeout(kHttpPatience));
  EXPECT_TRUE(done);
  EXPECT_TRUE(WriteAndWait(*exchange, "small"));
  EXPECT_EQ(client.ReadChunk(), "small");
  exchange->EndStream();
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "0\r\n\r\n");
}

TEST(HttpStream, AClientThatReadsNothingIsGone) {
  Inbox inbox;
  HttpServerOptions options;
  options.write_timeout = absl::Milliseconds(50);
  const auto server = Serve(inbox.handler(), options);
  RawClient client(server->port());
  client.KeepReceiveBufferSmall();
  client.Request("GET", "/");
  const auto exchange = inbox.Take();
  absl::Notification gone;
  exchange->OnGone([&] { gone.Notify(); });
  exchange->StartStream(Text(""));
  EXPECT_FALSE(WriteAndWait(*exchange, std::string(64 << 20, 'x')));
  EXPECT_TRUE(gone.WaitForNotificationWithTimeout(kHttpPatience));
}

TEST(HttpStream, ClientsThatGoAreNoticedWhileNothingIsWritten) {
  Inbox inbox;
  const auto server = Serve(inbox.handler());
  for (const bool streaming : {false, true}) {
    RawClient client(server->port());
    client.Request("GET", "/");
    const auto exchange = inbox.Take();
    absl::Notification gone;
    exchange->OnGone([&] { gone.Notify(); });
    if (streaming) {
      exchange->StartStream(Text("begun"));
      EXPECT_EQ(client.ReadHead().status, 200);
    }
    EXPECT_FALSE(gone.HasBeenNotified());
    client.Close();
    ASSERT_TRUE(gone.WaitForNotificationWithTimeout(kHttpPatience));
    // Whoever comes later is told at once.
    EXPECT_FALSE(WriteAndWait(*exchange, "more"));
    absl::Notification told;
    exchange->OnGone([&] { told.Notify(); });
    EXPECT_TRUE(told.WaitForNotificationWithTimeout(kHttpPatience));
    exchange->EndStream();
  }
}

TEST(HttpStream, AFinishedAnswerIsNotGone) {
  Inbox inbox;
  const auto server = Serve(inbox.handler());
  const auto token = std::make_shared<int>();
  {
    RawClient client(server->port());
    client.Request("GET", "/");
    const auto exchange = inbox.Take();
    exchange->OnGone([token] { ADD_FAILURE() << "the answer was whole"; });
    exchange->Send(Text("whole"));
    EXPECT_EQ(client.ReadResponse().body, "whole");
  }
  EXPECT_TRUE(Eventually([&] { return token.use_count() == 1; })) << "the callback is let go";
}

TEST(HttpStream, SilentStreamsAreKeptAlive) {
  Inbox inbox;
  HttpServerOptions options;
  options.keepalive_interval = absl::Milliseconds(5);
  const auto server = Serve(inbox.handler(), options);
  RawClient client(server->port());
  client.Request("GET", "/");
  const auto exchange = inbox.Take();
  HttpResponse response = Text("data: 1\n\n");
  response.keepalive = ": keepalive\n\n";
  exchange->StartStream(response);
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_EQ(client.ReadChunk(), "data: 1\n\n");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.ReadChunk(), ": keepalive\n\n");
  exchange->EndStream();
  client.ReadUntil("0\r\n\r\n");
  client.Request("GET", "/");  // and none after the stream's end
  inbox.Take()->Send(Text("next"));
  EXPECT_EQ(client.ReadResponse().body, "next");
}

int NumThreads() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("Threads:", 0) == 0) return std::stoi(line.substr(8));
  }
  return 0;
}

TEST(HttpStream, AThousandStreamsShareTwoThreads) {
  constexpr int kStreams = 1000;
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_max < 2 * kStreams + 100) GTEST_SKIP() << "the system allows too few files";
  files.rlim_cur = std::min<rlim_t>(files.rlim_max, 65536);
  setrlimit(RLIMIT_NOFILE, &files);

  const int threads_before = NumThreads();
  Inbox inbox;
  const auto server = Serve(inbox.handler());
  std::vector<RawClient> clients;
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(server->port());
    clients.back().Request("GET", "/");
    exchanges.push_back(inbox.Take());
    exchanges.back()->StartStream(Text("begun"));
  }
  EXPECT_LE(NumThreads(), threads_before + 3) << "two, and maybe one of a sanitizer";
  for (int round = 0; round < 3; ++round) {
    for (auto& exchange : exchanges) exchange->Write(absl::StrCat("round ", round), [](bool) {});
    if (round == 0) {
      for (auto& client : clients) {
        EXPECT_EQ(client.ReadHead().status, 200);
        EXPECT_EQ(client.ReadChunk(), "begun");
      }
    }
    for (auto& client : clients) EXPECT_EQ(client.ReadChunk(), absl::StrCat("round ", round));
  }
  for (auto& exchange : exchanges) exchange->EndStream();
  for (auto& client : clients) EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "0\r\n\r\n");
}

TEST(HttpStream, ManyThreadsAndClientsThatComeAndGo) {
  const auto server = Serve([](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
    std::thread([path = request.path, exchange] {
      exchange->OnGone([] {});
      exchange->StartStream(Text(""));
      for (int i = 0; i < 20 && WriteAndWait(*exchange, path); ++i) {
      }
      exchange->EndStream();
    }).detach();
  });
  std::vector<std::thread> clients;
  for (int thread = 0; thread < 4; ++thread) {
    clients.emplace_back([&, thread] {
      for (int i = 0; i < 25; ++i) {
        RawClient client(server->port());
        client.Request("GET", "/x");
        if ((i + thread) % 2 == 0) {
          client.ReadHead();
          client.ReadChunk();
        } else {
          EXPECT_EQ(client.ReadResponse().body.size(), 40u);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST(HttpStream, DrainsWhatWasAsked) {
  Inbox inbox;
  auto server = Serve(inbox.handler());
  RawClient idle(server->port());
  RawClient busy(server->port());
  RawClient streaming(server->port());
  idle.Request("GET", "/");
  inbox.Take()->Send(Text("idle from now on"));
  EXPECT_EQ(idle.ReadResponse().status, 200);
  busy.Request("GET", "/");
  const auto answer = inbox.Take();
  streaming.Request("GET", "/");
  const auto stream = inbox.Take();
  stream->StartStream(Text("begun"));

  std::thread drain([&] { server->DrainAndStop(kHttpPatience); });
  EXPECT_EQ(idle.ReadToEnd(), "") << "closed at once";
  answer->Send(Text("late"));
  const RawResponse response = busy.ReadResponse();
  EXPECT_EQ(response.body, "late");
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_TRUE(WriteAndWait(*stream, " and ended"));
  stream->EndStream();
  EXPECT_EQ(streaming.ReadResponse().body, "begun and ended");
  drain.join();
  server.reset();
  EXPECT_FALSE(WriteAndWait(*stream, "an exchange may outlive its server"));
}

TEST(HttpStream, CutsWhatIsUnansweredAtTheDeadline) {
  Inbox inbox;
  auto server = Serve(inbox.handler());
  RawClient client(server->port());
  client.Request("GET", "/");
  const auto exchange = inbox.Take();
  absl::Notification gone;
  exchange->OnGone([&] { gone.Notify(); });
  exchange->StartStream(Text("begun"));
  server->DrainAndStop(absl::Milliseconds(20));
  EXPECT_TRUE(gone.HasBeenNotified());
  EXPECT_FALSE(client.ReadResponse().whole);
}

}  // namespace
}  // namespace conclave
