#include "services/client/overview/overview.h"

#include <charconv>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "services/client/connection/metrics_scrape.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

constexpr int kExpertPortOffset = 10;  // of `banyan serve`
constexpr int kMostExperts = 8;

// "127.0.0.1:9101" and 11 gives "127.0.0.1:9112"; "" when there is no port to count from.
std::string ShiftedPort(const std::string& address, int by) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return "";
  int port = 0;
  const char* const end = address.data() + address.size();
  const auto [last, error] = std::from_chars(address.data() + colon + 1, end, port);
  if (error != std::errc() || last != end || port + by > 65535) return "";
  return fmt::format("{}:{}", address.substr(0, colon), port + by);
}

}  // namespace

OverviewReader::OverviewReader(Options options) : options_(std::move(options)) {}

std::optional<ServerStatus> OverviewReader::ReadServer(absl::Status* problem) {
  if (channel_ == nullptr) {
    auto channel = Connect(options_.server, options_.patience);
    if (!channel.ok()) {
      *problem = channel.status();
      return std::nullopt;
    }
    channel_ = *std::move(channel);
  }
  auto status = ReadServerStatus(channel_, options_.server, absl::Now() + options_.patience);
  if (!status.ok()) {
    *problem = status.status();
    channel_.reset();
    return std::nullopt;
  }
  return *std::move(status);
}

std::vector<std::optional<MetricsPage>> OverviewReader::ReadExperts() const {
  std::vector<std::optional<MetricsPage>> pages;
  const bool guessed = options_.expert_metrics.empty();
  const size_t count = guessed ? kMostExperts : options_.expert_metrics.size();
  for (size_t i = 0; i < count; ++i) {
    const std::string address =
        guessed ? ShiftedPort(options_.metrics, kExpertPortOffset + static_cast<int>(i))
                : options_.expert_metrics[i];
    if (address.empty()) break;
    auto page = ScrapeMetrics(address, options_.patience);
    // A port that somebody else listens on is not an expert's.
    const bool is_expert = page.ok() && page->Sum("banyan_expert_ready").has_value();
    if (guessed && !is_expert) break;
    pages.emplace_back();
    if (is_expert) pages.back() = *std::move(page);
  }
  return pages;
}

Overview OverviewReader::Read() {
  Overview out;
  out.address = options_.server;
  MetricsReading now;
  if (options_.metrics.empty()) {
    out.metrics_problem = "no metrics asked for (--metrics)";
  } else {
    auto page = ScrapeMetrics(options_.metrics, options_.patience);
    if (page.ok()) {
      now.trunk = *std::move(page);
    } else {
      out.metrics_problem = std::string(ToStd(page.status().message()));
    }
  }
  now.at = absl::Now();
  now.experts = ReadExperts();
  out.server = ReadServer(&out.problem);
  out.at = now.at;
  out.figures = Compare(before_, now);
  before_ = std::move(now);
  return out;
}

}  // namespace banyan::client
