#include "common/metrics/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <utility>

#include "common/base/version.h"

namespace banyan {
namespace {

std::string ReadSmallFile(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

int64_t CountOpenFds() {
  DIR* const directory = opendir("/proc/self/fd");
  if (directory == nullptr) return 0;
  int64_t count = 0;
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] != '.') ++count;
  }
  closedir(directory);
  return count - 1;  // not the one that reads the directory
}

double BootTimeSeconds() {
  std::istringstream stat(ReadSmallFile("/proc/stat"));
  std::string line;
  while (std::getline(stat, line)) {
    if (line.compare(0, 6, "btime ") == 0) return std::strtod(line.c_str() + 6, nullptr);
  }
  return 0;
}

prometheus::MetricFamily Family(const char* name, const char* help, prometheus::MetricType type,
                                double value) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  metric.counter.value = value;
  metric.gauge.value = value;
  return family;
}

}  // namespace

ProcessUsage ReadProcessUsage() {
  ProcessUsage usage;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  // Fields of proc(5) stat after the name in parentheses, which may hold anything: 3 is the state,
  // 12 major faults, 14 and 15 user and system time, 20 threads, 22 start time, 23 virtual memory
  // in bytes, 24 resident pages.
  const std::string stat = ReadSmallFile("/proc/self/stat");
  if (const size_t end = stat.rfind(')'); end != std::string::npos) {
    std::istringstream fields(stat.substr(end + 1));
    std::vector<std::string> field(3);  // from field 3 on, so that indices are those of proc(5)
    for (std::string text; fields >> text;) field.push_back(text);
    if (field.size() > 24) {
      const auto number = [&field](size_t i) { return std::strtod(field[i].c_str(), nullptr); };
      usage.major_faults = static_cast<int64_t>(number(12));
      usage.cpu_seconds = (number(14) + number(15)) / ticks;
      usage.num_threads = static_cast<int64_t>(number(20));
      const double boot = BootTimeSeconds();
      if (boot > 0) usage.start_time_seconds = boot + number(22) / ticks;
      usage.virtual_bytes = static_cast<int64_t>(number(23));
      usage.resident_bytes = static_cast<int64_t>(number(24)) * sysconf(_SC_PAGESIZE);
    }
  }
  usage.open_fds = CountOpenFds();
  if (rlimit limit; getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    usage.max_fds = static_cast<int64_t>(limit.rlim_cur);
  }
  return usage;
}

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() const {
  using prometheus::MetricType;
  const ProcessUsage usage = ReadProcessUsage();
  return {
      Family("process_cpu_seconds_total", "User and system CPU time in seconds",
             MetricType::Counter, usage.cpu_seconds),
      Family("process_major_page_faults_total", "Page faults that waited for a disk",
             MetricType::Counter, static_cast<double>(usage.major_faults)),
      Family("process_resident_memory_bytes", "Resident memory, mapped files included",
             MetricType::Gauge, static_cast<double>(usage.resident_bytes)),
      Family("process_virtual_memory_bytes", "Address space", MetricType::Gauge,
             static_cast<double>(usage.virtual_bytes)),
      Family("process_start_time_seconds", "Start of the process, seconds since 1970",
             MetricType::Gauge, usage.start_time_seconds),
      Family("process_threads", "Threads", MetricType::Gauge,
             static_cast<double>(usage.num_threads)),
      Family("process_open_fds", "Open file descriptors", MetricType::Gauge,
             static_cast<double>(usage.open_fds)),
      Family("process_max_fds", "Limit of open file descriptors", MetricType::Gauge,
             static_cast<double>(usage.max_fds)),
  };
}

void RegisterBuildInfo(const std::string& binary, MetricsRegistry* registry) {
  registry
      ->Gauge("banyan_build_info", "1; the labels say what runs here",
              {{"binary", binary},
               {"version", std::string(Version())},
               {"compiler", std::string(Compiler())}})
      .Set(1);
}

}  // namespace banyan
