#include "common/metrics/http_exposer.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netinet/in.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <iterator>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/metrics/openmetrics_text.h"
#include "common/metrics/process_metrics.h"

namespace banyan {
namespace {

struct HostPort {
  std::string host;  // numeric; IPv6 in brackets
  int port = 0;
};

absl::StatusOr<HostPort> ParseAddress(std::string_view address) {
  const auto refuse = [address](std::string_view why) {
    return InvalidArgumentF(
        "metrics address '{}': {}; expected host:port with a numeric host, such as 127.0.0.1:9101",
        Printable(address), why);
  };
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return refuse("no port");
  HostPort result;
  result.host = address.substr(0, colon);
  if (result.host == "localhost") result.host = "127.0.0.1";
  const std::string_view port = address.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), result.port);
  if (error != std::errc() || end != port.data() + port.size() || result.port < 0 ||
      result.port > 65535) {
    return refuse(fmt::format("port '{}' is not a number from 0 to 65535", Printable(port)));
  }
  if (result.host.size() > 2 && result.host.front() == '[' && result.host.back() == ']') {
    in6_addr parsed;
    const std::string inside = result.host.substr(1, result.host.size() - 2);
    if (inet_pton(AF_INET6, inside.c_str(), &parsed) != 1) return refuse("no IPv6 address");
  } else {
    in_addr parsed;
    if (inet_pton(AF_INET, result.host.c_str(), &parsed) != 1) {
      return refuse(fmt::format("host '{}' is no IPv4 address", Printable(result.host)));
    }
  }
  return result;
}

// Connects to an address of ours and hangs up.
void ConnectOnce(const std::string& address) {
  const absl::StatusOr<HostPort> where = ParseAddress(address);
  if (!where.ok()) return;
  const bool ipv6 = where->host.front() == '[';
  const int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  const auto port = htons(static_cast<uint16_t>(where->port));
  if (ipv6) {
    sockaddr_in6 peer = {};
    peer.sin6_family = AF_INET6;
    peer.sin6_port = port;
    inet_pton(AF_INET6, where->host.substr(1, where->host.size() - 2).c_str(), &peer.sin6_addr);
    (void)connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer));
  } else {
    sockaddr_in peer = {};
    peer.sin_family = AF_INET;
    peer.sin_port = port;
    inet_pton(AF_INET, where->host.c_str(), &peer.sin_addr);
    (void)connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer));
  }
  close(fd);
}

int Reply(mg_connection* connection, const char* content_type, const std::string& body) {
  mg_send_http_ok(connection, content_type, static_cast<long long>(body.size()));
  const std::string_view method = mg_get_request_info(connection)->request_method;
  if (method != "HEAD") mg_write(connection, body.data(), body.size());
  return 200;
}

bool IsRead(mg_connection* connection) {
  const std::string_view method = mg_get_request_info(connection)->request_method;
  return method == "GET" || method == "HEAD";
}

// Named at all is enough: who knows the format, as Prometheus does, lists it first.
bool AcceptsOpenMetrics(mg_connection* connection) {
  const char* const accept = mg_get_header(connection, "Accept");
  return accept != nullptr &&
         std::string_view(accept).find("application/openmetrics-text") != std::string_view::npos;
}

int ServeMetrics(mg_connection* connection, void* self) {
  if (!IsRead(connection)) return mg_send_http_error(connection, 405, "%s", "GET only"), 405;
  const auto& exposer = *static_cast<const HttpExposer*>(self);
  if (AcceptsOpenMetrics(connection)) {
    return Reply(connection, kOpenMetricsContentType,
                 exposer.Render(HttpExposer::Format::kOpenMetrics));
  }
  return Reply(connection, "text/plain; version=0.0.4; charset=utf-8",
               exposer.Render(HttpExposer::Format::kPrometheusText));
}

int ServeRoot(mg_connection* connection, void* /*self*/) {
  if (!IsRead(connection)) return mg_send_http_error(connection, 405, "%s", "GET only"), 405;
  const char* const uri = mg_get_request_info(connection)->local_uri;
  if (uri == nullptr || std::string_view(uri) != "/") {
    return mg_send_http_error(connection, 404, "%s", "here are / and /metrics"), 404;
  }
  return Reply(connection, "text/plain; charset=utf-8",
               "Banyan is running. Metrics are at /metrics; health is gRPC's grpc.health.v1.Health "
               "on the service port.\n");
}

}  // namespace

HttpExposer::HttpExposer(const std::string& binary, MetricsRegistry* registry)
    : registry_(registry),
      scrapes_(registry->Counter("banyan_metrics_scrapes_total", "Answers to GET /metrics")) {
  RegisterBuildInfo(binary, registry);
}

int HttpExposer::KeepFirstError(const mg_connection* connection, const char* message) {
  auto* const self = static_cast<HttpExposer*>(mg_get_user_data(mg_get_context(connection)));
  absl::MutexLock lock(&self->log_mutex_);
  if (self->first_error_.empty()) self->first_error_ = message;
  return 1;  // not to standard error
}

absl::StatusOr<std::unique_ptr<HttpExposer>> HttpExposer::Create(const std::string& address,
                                                                 const std::string& binary,
                                                                 MetricsRegistry* registry) {
  ASSIGN_OR_RETURN(const HostPort where, ParseAddress(address));
  static std::once_flag library_started;
  std::call_once(library_started, [] { mg_init_library(0); });

  std::unique_ptr<HttpExposer> exposer(new HttpExposer(binary, registry));
  const std::string ports = fmt::format("{}:{}", where.host, where.port);
  const char* options[] = {"listening_ports",
                           ports.c_str(),
                           "num_threads",
                           "2",
                           "request_timeout_ms",
                           "10000",
                           "max_request_size",
                           "8192",
                           "enable_keep_alive",
                           "no",
                           nullptr};
  mg_callbacks callbacks = {};
  callbacks.log_message = KeepFirstError;
  exposer->context_ = mg_start(&callbacks, exposer.get(), options);
  if (exposer->context_ == nullptr) {
    absl::MutexLock lock(&exposer->log_mutex_);
    return StatusF(absl::StatusCode::kUnavailable,
                   "metrics address '{}' cannot be listened on: {}; give another --metrics_listen",
                   address,
                   exposer->first_error_.empty() ? "no reason given" : exposer->first_error_);
  }
  mg_server_port bound = {};
  if (mg_get_server_ports(exposer->context_, 1, &bound) != 1) {
    return StatusF(absl::StatusCode::kUnavailable, "metrics address '{}': port not known", address);
  }
  exposer->address_ = fmt::format("{}:{}", where.host, bound.port);
  mg_set_request_handler(exposer->context_, "/metrics", ServeMetrics, exposer.get());
  mg_set_request_handler(exposer->context_, "/", ServeRoot, exposer.get());
  LogInfo("metrics_listening", {{"address", exposer->address_}});
  return exposer;
}

// The library's accepting thread looks at its stop flag every 2 s, or when somebody connects.
HttpExposer::~HttpExposer() {
  if (context_ == nullptr) return;
  absl::Notification stopped;
  std::thread waker([this, &stopped] {
    while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(5))) ConnectOnce(address_);
  });
  mg_stop(context_);
  stopped.Notify();
  waker.join();
}

std::string HttpExposer::Render(Format format) const {
  scrapes_.Increment();
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  std::vector<prometheus::MetricFamily> process = ProcessMetrics().Collect();
  families.insert(families.end(), std::make_move_iterator(process.begin()),
                  std::make_move_iterator(process.end()));
  return format == Format::kOpenMetrics ? OpenMetricsText(families)
                                        : prometheus::TextSerializer().Serialize(families);
}

}  // namespace banyan
