#include "common/metrics/http_exposer.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string_view>

#include "common/base/strings.h"

namespace banyan {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The whole answer to one HTTP request on a loopback address.
std::string Ask(const std::string& address, std::string_view request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&where), sizeof(where)) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  return answer;
}

std::string Get(const std::string& address, std::string_view path) {
  return Ask(address, fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path));
}

class HttpExposerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto exposer = HttpExposer::Create("127.0.0.1:0", "banyan-test", &registry_);
    ASSERT_TRUE(exposer.ok()) << exposer.status();
    exposer_ = *std::move(exposer);
  }

  MetricsRegistry registry_;
  std::unique_ptr<HttpExposer> exposer_;
};

TEST_F(HttpExposerTest, ServesMetricsOfRegistryAndProcess) {
  registry_.Counter("banyan_test_total", "A test", {{"kind", "a\"b\n"}}).Increment(3);
  const std::string answer = Get(exposer_->address(), "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(answer, HasSubstr("banyan_test_total{kind=\"a\\\"b\\n\"} 3\n"));
  EXPECT_THAT(answer, HasSubstr("# TYPE process_cpu_seconds_total counter\n"));
  EXPECT_THAT(answer, HasSubstr("\nprocess_resident_memory_bytes "));
  EXPECT_THAT(answer, HasSubstr("binary=\"banyan-test\""));
  EXPECT_THAT(Get(exposer_->address(), "/metrics"), HasSubstr("banyan_metrics_scrapes_total 2\n"));
}

TEST_F(HttpExposerTest, ServesOpenMetricsToWhoAcceptsIt) {
  // As Prometheus asks.
  const std::string answer =
      Ask(exposer_->address(),
          "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0,"
          "text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Type: application/openmetrics-text; version=1.0.0"));
  EXPECT_THAT(answer, HasSubstr("# TYPE banyan_metrics_scrapes counter\n"));
  EXPECT_THAT(answer, HasSubstr("\nbanyan_metrics_scrapes_total 1.0\n"));
  EXPECT_THAT(answer, EndsWith("# EOF\n"));
  EXPECT_THAT(Ask(exposer_->address(), "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"),
              HasSubstr("Content-Type: text/plain; version=0.0.4"));
}

TEST_F(HttpExposerTest, RootPointsToMetricsAndOtherPathsAreAbsent) {
  EXPECT_THAT(Get(exposer_->address(), "/"), HasSubstr("/metrics"));
  EXPECT_THAT(Get(exposer_->address(), "/nothing"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(
      Ask(exposer_->address(), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
      StartsWith("HTTP/1.1 405"));
}

TEST_F(HttpExposerTest, SurvivesRequestsThatAreNone) {
  Ask(exposer_->address(), "\r\n\r\n\x01\xff garbage\r\n\r\n");
  Ask(exposer_->address(), "GET /" + std::string(20000, 'a') + " HTTP/1.1\r\n\r\n");
  EXPECT_THAT(Get(exposer_->address(), "/metrics"), StartsWith("HTTP/1.1 200 OK"));
}

TEST_F(HttpExposerTest, BusyPortIsAnErrorWithTheAddress) {
  MetricsRegistry other;
  const auto second = HttpExposer::Create(exposer_->address(), "banyan-test", &other);
  ASSERT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr(exposer_->address()), HasSubstr("--metrics_listen")));
}

TEST(HttpExposerAddressTest, MalformedAddressesAreRefused) {
  for (const char* address : {"", "9101", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x",
                              "127.0.0.1:70000", "127.0.0.1:-1", "example.org:9101", "[::zz]:1",
                              "unix:/tmp/x", "127.0.0.1:1,127.0.0.1:2", "127.0.0.1:80s"}) {
    MetricsRegistry registry;
    const auto exposer = HttpExposer::Create(address, "banyan-test", &registry);
    EXPECT_EQ(exposer.status().code(), absl::StatusCode::kInvalidArgument) << address;
  }
}

}  // namespace
}  // namespace banyan
