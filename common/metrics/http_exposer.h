// The scrape port: GET /metrics in Prometheus' text format or, for who accepts it, OpenMetrics; GET
// / says where that is.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics/registry.h"

struct mg_connection;
struct mg_context;

namespace banyan {

// Two threads of its own, and a request limit of 8 KiB and 10 s. Serves the registry together with
// the process's own figures (process_metrics.h). Thread-safe.
class HttpExposer {
 public:
  // `address`: "host:port", host an IPv4 address, "localhost" or a bracketed IPv6 address; port 0
  // takes any. `binary` names the process in banyan_build_info. `registry` is borrowed.
  // kInvalidArgument: malformed address; kUnavailable: it cannot be bound, for instance in use.
  static absl::StatusOr<std::unique_ptr<HttpExposer>> Create(const std::string& address,
                                                             const std::string& binary,
                                                             MetricsRegistry* registry);
  ~HttpExposer();
  HttpExposer(const HttpExposer&) = delete;
  HttpExposer& operator=(const HttpExposer&) = delete;

  // With the port that was really taken.
  const std::string& address() const { return address_; }

  enum class Format { kPrometheusText, kOpenMetrics };
  // What a scrape returns.
  std::string Render(Format format) const;

 private:
  static int KeepFirstError(const mg_connection* connection, const char* message);
  HttpExposer(const std::string& binary, MetricsRegistry* registry);

  const MetricsRegistry* const registry_;
  std::string address_;
  absl::Mutex log_mutex_;
  std::string first_error_ ABSL_GUARDED_BY(log_mutex_);  // of the HTTP library
  mg_context* context_ = nullptr;
  prometheus::Counter& scrapes_;
};

}  // namespace banyan
