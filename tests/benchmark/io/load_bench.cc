// How fast a checkpoint comes into memory, against a plain parallel reader of the same files.
//   load_bench --model DIR [--threads N] [--rounds N]
// Each round drops the files from the page cache and measures both cold, then both warm, in
// alternating order; the best of each is compared. "ours" is what the services do with a checkpoint
// that they map: headers, CheckComplete, the trunk's tensors and the experts' pool of one shard.
// The reader has as many threads, which pread 8 MiB each into a buffer of their own.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/parallel/page_reader.h"
#include "common/parallel/topology.h"
#include "services/expert/runtime/expert_store.h"

namespace banyan {
namespace {

constexpr size_t kReadBytes = 8 << 20;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Die(const std::string& message) {
  std::fprintf(stderr, "load_bench: %s\n", message.c_str());
  std::exit(1);
}

std::vector<std::string> ShardFiles(const std::string& directory) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

void DropCache(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    const int fd = ::open(file.c_str(), O_RDONLY);
    if (fd < 0) Die(file + ": " + std::strerror(errno));
    (void)::fdatasync(fd);
    (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

double ReadPlainly(const std::vector<std::string>& files, int num_threads) {
  struct Part {
    int fd;
    off_t offset;
    size_t bytes;
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<Part> parts;
  std::vector<int> fds;
  for (const std::string& file : files) {
    fds.push_back(::open(file.c_str(), O_RDONLY));
    struct stat info;
    if (fds.back() < 0 || ::fstat(fds.back(), &info) != 0) Die(file + ": cannot be opened");
    for (off_t at = 0; at < info.st_size; at += static_cast<off_t>(kReadBytes)) {
      const auto left = static_cast<size_t>(info.st_size - at);
      parts.push_back({fds.back(), at, std::min(kReadBytes, left)});
    }
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      std::vector<char> buffer(kReadBytes);
      for (size_t i = next++; i < parts.size(); i = next++) {
        size_t done = 0;
        while (done < parts[i].bytes) {
          const ssize_t n = ::pread(parts[i].fd, buffer.data() + done, parts[i].bytes - done,
                                    parts[i].offset + static_cast<off_t>(done));
          if (n <= 0) Die("pread failed");
          done += static_cast<size_t>(n);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = SecondsSince(start);
  for (const int fd : fds) ::close(fd);
  return seconds;
}

struct Load {
  double seconds = 0;
  double header_seconds = 0;
  uint64_t bytes = 0;
};

Load LoadOurs(const std::string& directory, int num_threads) {
  Load out;
  WorkerPool pool({.num_threads = num_threads});
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<OpenedModel> model = OpenModel(directory, LoadFormat::kAuto);
  if (!model.ok()) Die(std::string(ToStd(model.status().message())));
  const auto summary = CheckComplete(*model->checkpoint, model->config);
  if (!summary.ok()) Die(std::string(ToStd(summary.status().message())));
  out.header_seconds = SecondsSince(start);
  // Each service reads the headers itself.
  auto store = expert::ExpertStore::Open(directory, ShardSpec{}, LoadFormat::kAuto);
  if (!store.ok()) Die(std::string(ToStd(store.status().message())));
  std::vector<std::span<const std::byte>> trunk;
  for (const TensorSpec& spec : TrunkTensors(model->config)) {
    const Checkpoint::Entry* const entry = model->checkpoint->Find(spec.name);
    trunk.push_back({entry->view.data, entry->view.size_bytes()});
    out.bytes += entry->view.size_bytes();
  }
  absl::Status status = ReadPages(trunk, pool, [](uint64_t) { return true; });
  if (status.ok()) status = (*store)->Load(pool, [](uint64_t) { return true; });
  if (!status.ok()) Die(std::string(ToStd(status.message())));
  out.seconds = SecondsSince(start);
  out.bytes += (*store)->description().pool_bytes;
  return out;
}

// VmHWM of this process, of which mapped files are a part; writing 5 to clear_refs resets it.
uint64_t PeakBytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmHWM:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) << 10;
  }
  return 0;
}
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

int Run(const std::string& directory, int num_threads, int rounds) {
  const std::vector<std::string> files = ShardFiles(directory);
  uint64_t total = 0;
  for (const std::string& file : files) total += std::filesystem::file_size(file);
  std::printf("%s: %zu files, %.2f GB, %d threads\n", directory.c_str(), files.size(),
              static_cast<double>(total) / 1e9, num_threads);
  const auto rate = [&](double seconds) { return static_cast<double>(total) / seconds / 1e9; };
  double best[2][2] = {{1e30, 1e30}, {1e30, 1e30}};  // [warm][ours]
  uint64_t peak = 0, stays = 0;
  for (int round = 0; round < rounds; ++round) {
    for (const bool warm : {false, true}) {
      for (const bool second : {false, true}) {
        const bool ours = second != (round % 2 == 1);
        if (!warm) DropCache(files);
        double seconds = 0;
        if (ours) {
          ResetPeak();
          const Load load = LoadOurs(directory, num_threads);
          seconds = load.seconds;
          peak = std::max(peak, PeakBytes());
          stays = load.bytes;
          std::printf("  %s ours  %.2f s  %.2f GB/s  (headers %.2f s)\n", warm ? "warm" : "cold",
                      seconds, rate(seconds), load.header_seconds);
        } else {
          seconds = ReadPlainly(files, num_threads);
          std::printf("  %s plain %.2f s  %.2f GB/s\n", warm ? "warm" : "cold", seconds,
                      rate(seconds));
        }
        std::fflush(stdout);
        double& slot = best[warm ? 1 : 0][ours ? 1 : 0];
        slot = std::min(slot, seconds);
      }
    }
  }
  for (const bool warm : {false, true}) {
    const double* const b = best[warm ? 1 : 0];
    std::printf("%s: ours %.2f GB/s, plain %.2f GB/s: %.0f %%\n", warm ? "warm" : "cold",
                rate(b[1]), rate(b[0]), 100 * b[0] / b[1]);
  }
  std::printf("peak %.2f GB, what stays %.2f GB: allowed %.2f GB\n",
              static_cast<double>(peak) / 1e9, static_cast<double>(stays) / 1e9,
              (1.03 * static_cast<double>(stays) + (256 << 20)) / 1e9);
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) {
  std::string model;
  int threads = banyan::UsableCpuCount();
  int rounds = 3;
  CLI::App app{"Speed of a load against a plain parallel reader."};
  app.add_option("--model", model, "Checkpoint directory")->required();
  app.add_option("--threads", threads, "Threads of both")->check(CLI::Range(1, 1024));
  app.add_option("--rounds", rounds, "Rounds; the best of each counts")->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  return banyan::Run(model, threads, rounds);
}
