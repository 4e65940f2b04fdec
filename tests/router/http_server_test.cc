// The server over raw sockets: every byte of the wire is the test's.

#include "router/http_server.h"

#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/router/test_http.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

// Says what it was asked.
void Echo(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  exchange->Send(Text(absl::StrCat(request.method, " ", request.path, "?", request.query, " ",
                                   request.Header("x-test"), " [", request.body, "]")));
}

std::string ErrorMessage(const RawResponse& response) {
  const nlohmann::json body = nlohmann::json::parse(response.body, nullptr, false);
  CHECK(body.is_object()) << response.body;
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  EXPECT_TRUE(body["error"].contains("param"));
  EXPECT_TRUE(body["error"].contains("code"));
  EXPECT_EQ(body["error"]["type"],
            response.status < 500 ? "invalid_request_error" : "server_error");
  return body["error"]["message"];
}

TEST(HttpServer, AnswersOneRequestAfterAnother) {
  const auto server = Serve(Echo);
  RawClient client(server->port());
  for (int i = 0; i < 3; ++i) {
    client.Request("POST", "/a%20b/c?d=e%20f", absl::StrCat("body ", i), "X-Test: yes\r\n");
    const RawResponse response = client.ReadResponse();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.headers.at("content-type"), "text/plain");
    EXPECT_EQ(response.headers.count("connection"), 0u);
    EXPECT_EQ(response.body, absl::StrCat("POST /a b/c?d=e%20f yes [body ", i, "]"));
  }
  client.Write("GET http://host:80/x HTTP/1.1\r\nConnection: close\r\n\r\n");
  const RawResponse last = client.ReadResponse();
  EXPECT_EQ(last.body, "GET /x?  []");
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_EQ(client.ReadToEnd(), "");
}

TEST(HttpServer, TakesARequestInAnyTwoPieces) {
  const auto server = Serve(Echo);
  const std::string plain = "POST /x HTTP/1.1\r\nX-Test: t\r\nContent-Length: 5\r\n\r\nhello";
  const std::string chunked =
      "POST /x HTTP/1.1\r\nx-test: t\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n";
  RawClient client(server->port());
  for (const std::string& request : {plain, chunked}) {
    for (size_t cut = 1; cut < request.size(); ++cut) {
      ASSERT_TRUE(client.Write(request.substr(0, cut)));
      ASSERT_TRUE(client.Write(request.substr(cut)));
      const RawResponse response = client.ReadResponse();
      ASSERT_EQ(response.status, 200) << cut;
      ASSERT_EQ(response.body, "POST /x? t [hello]") << cut;
    }
  }
  for (char byte : plain) ASSERT_TRUE(client.Write(absl::string_view(&byte, 1)));
  EXPECT_EQ(client.ReadResponse().body, "POST /x? t [hello]");
}

TEST(HttpServer, PipelinedRequestsAreAnsweredInOrder) {
  const auto server = Serve(Echo);
  RawClient client(server->port());
  std::string requests;
  for (int i = 0; i < 50; ++i) absl::StrAppend(&requests, "GET /", i, " HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(client.Write(requests));
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(client.ReadResponse().body, absl::StrCat("GET /", i, "?  []"));
  }
}

TEST(HttpServer, SpeaksHttp10) {
  const auto server = Serve([](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
    if (request.path != "/stream") return Echo(std::move(request), std::move(exchange));
    exchange->StartStream(Text("one "));
    exchange->Write("two", [exchange](bool) { exchange->EndStream(); });
  });
  RawClient kept(server->port());
  for (int i = 0; i < 2; ++i) {
    kept.Write("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    const RawResponse response = kept.ReadResponse();
    EXPECT_EQ(response.body, "GET /x?  []");
    EXPECT_EQ(response.headers.at("connection"), "keep-alive");
  }
  kept.Write("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const RawResponse stream = kept.ReadResponse();  // to the end of the connection
  EXPECT_EQ(stream.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(stream.headers.at("connection"), "close");
  EXPECT_EQ(stream.body, "one two");
}

TEST(HttpServer, HeadLeavesTheBodyOut) {
  const auto server = Serve(Echo);
  RawClient client(server->port());
  client.Write("HEAD /x HTTP/1.1\r\n\r\n");
  const RawResponse head = client.ReadResponse(/*has_body=*/false);
  EXPECT_EQ(head.headers.at("content-length"), "11");
  client.Request("GET", "/x");
  EXPECT_EQ(client.ReadResponse().body, "GET /x?  []");
}

TEST(HttpServer, AllowsABodyThatIsAnnounced) {
  const auto server = Serve(Echo);
  RawClient client(server->port());
  client.Write("POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Write("hi");
  EXPECT_EQ(client.ReadResponse().body, "POST /x?  [hi]");
  client.Write("POST /x HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n");
  const RawResponse refused = client.ReadResponse();
  EXPECT_EQ(refused.status, 417);
  EXPECT_THAT(ErrorMessage(refused), HasSubstr("miracles"));
}

TEST(HttpServer, RefusesWhatIsNoRequest) {
  const auto server = Serve(Echo);
  for (const char* bytes :
       {"hello\r\n\r\n", "GET / HTTP/3.7\r\n\r\n", "GET /%zz HTTP/1.1\r\n\r\n",
        "GET /%00 HTTP/1.1\r\n\r\n", "GET nowhere HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "\x16\x03\x01\x02\x00\x01"}) {
    RawClient client(server->port());
    client.Write(bytes);
    const RawResponse response = client.ReadResponse();
    EXPECT_EQ(response.status, 400) << bytes;
    EXPECT_NE(ErrorMessage(response), "");
    EXPECT_EQ(response.headers.at("connection"), "close");
    EXPECT_EQ(client.ReadToEnd(), "");
  }
}

TEST(HttpServer, BoundsAreTold) {
  HttpServerOptions options;
  options.max_body_bytes = 1000;
  const auto server = Serve(Echo, options);
  const std::string large(1001, 'x');
  const std::string chunk_of_large = absl::StrCat("3e9\r\n", large, "\r\n0\r\n\r\n");
  const std::string long_header(limits::kMaxHttpHeaderBytes, 'h');
  const struct {
    std::string bytes;
    int status;
    std::string words;
  } cases[] = {
      {absl::StrCat("POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", large), 413, "1000 bytes"},
      {absl::StrCat("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", chunk_of_large), 413,
       "1000 bytes"},
      {"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n", 413, "1000"},
      {absl::StrCat("GET / HTTP/1.1\r\nX: ", long_header, "\r\n\r\n"), 431, "65536 bytes"},
      {absl::StrCat("GET /", long_header, " HTTP/1.1\r\n\r\n"), 431, "65536 bytes"},
      {absl::StrCat("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", long_header,
                    long_header, long_header, "\r\nx\r\n0\r\n\r\n"),
       431, "65536 bytes"},
  };
  for (const auto& test : cases) {
    RawClient client(server->port());
    client.Write(test.bytes);
    const RawResponse response = client.ReadResponse();
    EXPECT_EQ(response.status, test.status) << test.bytes.substr(0, 80);
    EXPECT_THAT(ErrorMessage(response), HasSubstr(test.words));
  }
  EXPECT_EQ(Fetch(server->port(), "POST", "/", large.substr(1)).status, 200) << "exactly the bound";
}

TEST(HttpServer, SlowRequestsAreGivenUp) {
  HttpServerOptions options;
  options.header_timeout = options.body_timeout = absl::Milliseconds(50);
  const auto server = Serve(Echo, options);
  RawClient idle(server->port());
  EXPECT_EQ(idle.ReadToEnd(), "") << "nothing was asked";
  RawClient half_header(server->port());
  half_header.Write("GET / HT");
  RawResponse response = half_header.ReadResponse();
  EXPECT_EQ(response.status, 408);
  EXPECT_THAT(ErrorMessage(response), HasSubstr("header did not come within 50ms"));
  RawClient half_body(server->port());
  half_body.Write("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf");
  response = half_body.ReadResponse();
  EXPECT_EQ(response.status, 408);
  EXPECT_THAT(ErrorMessage(response), HasSubstr("body did not come within 50ms"));
}

TEST(HttpServer, AClientPastTheBoundIsTold) {
  HttpServerOptions options;
  options.max_connections = 2;
  const auto server = Serve(Echo, options);
  std::optional<RawClient> first(server->port());
  RawClient second(server->port());
  first->Request("GET", "/");
  EXPECT_EQ(first->ReadResponse().status, 200);
  second.Request("GET", "/");
  EXPECT_EQ(second.ReadResponse().status, 200);
  RawClient third(server->port());
  const RawResponse refused = third.ReadResponse();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_THAT(ErrorMessage(refused), HasSubstr("2 connections"));
  third.Close();
  first.reset();
  EXPECT_TRUE(Eventually([&] { return Fetch(server->port(), "GET", "/").status == 200; }));
}

TEST(HttpServer, SaysWhyItCannotListen) {
  const auto server = Serve(Echo);
  HttpServerOptions options;
  options.handler = Echo;
  options.port = server->port();
  EXPECT_THAT(HttpServer::Start(options).status(),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr(absl::StrCat("127.0.0.1:", server->port()))));
  options.host = "not a host";
  EXPECT_THAT(HttpServer::Start(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a host")));
  options.host = "localhost";
  options.port = 0;
  EXPECT_OK(HttpServer::Start(options).status());
}

}  // namespace
}  // namespace conclave
