// How fast a checkpoint comes into memory, or into a pack, against a plain parallel reader of the
// same files.
//   load_bench --model DIR [--threads N] [--rounds N] [--pack FORMAT --pool_dir DIR]
// The reader is tuned first: threads 1, 2 and 4 times those of the load, blocks of 1, 8 and 32 MiB,
// through the page cache and around it (O_DIRECT, cold only). The fastest way cold and the fastest
// warm is what the load is measured against in rounds
// that drop the files from the page cache and measure both cold, then both warm, in alternating
// order. The best of each is reported, tuning included, and the medians of the rounds: one lucky
// run of a disk that others use as well decides the first, not the second. "ours" is what the
// services do with a checkpoint that they map: headers, CheckComplete, the trunk's tensors and the
// experts' pool of one shard. With --pack it is the pack of all experts made anew (read, convert,
// write, sync and read back), and the share of its time that its threads read.
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
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/parallel/page_reader.h"
#include "common/parallel/topology.h"
#include "common/pool/pack_builder.h"
#include "common/pool/pack_path.h"
#include "services/expert/runtime/expert_store.h"

namespace banyan {
namespace {

constexpr size_t kDirectAlignment = 4096;

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

// A way to read files.
struct Reader {
  int num_threads = 1;
  size_t block_bytes = 8 << 20;
  bool direct = false;  // around the page cache
};

std::string Describe(const Reader& reader) {
  return fmt::format("{} threads, {} MiB{}", reader.num_threads, reader.block_bytes >> 20,
                     reader.direct ? ", O_DIRECT" : "");
}

double ReadPlainly(const std::vector<std::string>& files, const Reader& reader) {
  struct Part {
    int fd;
    off_t offset;
    size_t bytes;
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<Part> parts;
  std::vector<int> fds;
  for (const std::string& file : files) {
    fds.push_back(::open(file.c_str(), O_RDONLY | (reader.direct ? O_DIRECT : 0)));
    struct stat info;
    if (fds.back() < 0 || ::fstat(fds.back(), &info) != 0) Die(file + ": cannot be opened");
    for (off_t at = 0; at < info.st_size; at += static_cast<off_t>(reader.block_bytes)) {
      const auto left = static_cast<size_t>(info.st_size - at);
      parts.push_back({fds.back(), at, std::min(reader.block_bytes, left)});
    }
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < reader.num_threads; ++t) {
    threads.emplace_back([&] {
      const std::unique_ptr<void, void (*)(void*)> buffer(
          std::aligned_alloc(kDirectAlignment, reader.block_bytes), &std::free);
      for (size_t i = next++; i < parts.size(); i = next++) {
        size_t done = 0;
        while (done < parts[i].bytes) {
          // Whole blocks are asked for, also at the end of a file, as O_DIRECT needs.
          const ssize_t n =
              ::pread(parts[i].fd, static_cast<char*>(buffer.get()) + done,
                      reader.block_bytes - done, parts[i].offset + static_cast<off_t>(done));
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

// The fastest way to read them; of two runs each where they are cached.
Reader Tune(const std::vector<std::string>& files, int num_threads, bool warm, double* seconds) {
  Reader best;
  *seconds = 1e30;
  for (const bool direct : {false, true}) {
    if (direct && warm) continue;
    for (const int times : {1, 2, 4}) {
      for (const size_t mib : {1, 8, 32}) {
        const Reader reader = {num_threads * times, mib << 20, direct};
        if (!warm) DropCache(files);
        double taken = ReadPlainly(files, reader);
        if (warm) taken = std::min(taken, ReadPlainly(files, reader));
        if (taken >= *seconds) continue;
        *seconds = taken;
        best = reader;
      }
    }
  }
  return best;
}

struct Load {
  double seconds = 0;
  double header_seconds = 0;
  uint64_t bytes = 0;  // that stay
  PackStats stats;     // of a pack
};

// With every header read and checked.
OpenedModel OpenComplete(const std::string& directory) {
  absl::StatusOr<OpenedModel> model = OpenModel(directory, LoadFormat::kAuto);
  if (!model.ok()) Die(std::string(ToStd(model.status().message())));
  const auto summary = CheckComplete(*model->checkpoint, model->config);
  if (!summary.ok()) Die(std::string(ToStd(summary.status().message())));
  return *std::move(model);
}

Load LoadOurs(const std::string& directory, int num_threads) {
  Load out;
  WorkerPool pool({.num_threads = num_threads});
  const auto start = std::chrono::steady_clock::now();
  const OpenedModel model = OpenComplete(directory);
  out.header_seconds = SecondsSince(start);
  // Each service reads the headers itself.
  auto store = expert::ExpertStore::Open(directory, ShardSpec{}, LoadFormat::kAuto);
  if (!store.ok()) Die(std::string(ToStd(store.status().message())));
  std::vector<std::span<const std::byte>> trunk;
  for (const TensorSpec& spec : TrunkTensors(model.config)) {
    const Checkpoint::Entry* const entry = model.checkpoint->Find(spec.name);
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

// The pack of all experts, made anew.
Load PackOurs(const std::string& directory, int num_threads, PoolFormat format,
              const std::string& pool_dir) {
  Load out;
  WorkerPool pool({.num_threads = num_threads});
  const auto start = std::chrono::steady_clock::now();
  const OpenedModel model = OpenComplete(directory);
  out.header_seconds = SecondsSince(start);
  const PackRequest request = {model.checkpoint.get(), &model.config, ShardSpec{}, format,
                               pool_dir};
  const auto result = EnsurePack(
      request, pool, [](const PackProgress&) { return true; }, /*rebuild=*/true);
  if (!result.ok()) Die(std::string(ToStd(result.status().message())));
  out.seconds = SecondsSince(start);
  out.stats = *result->built;
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

double Median(std::vector<double>* values) {
  std::sort(values->begin(), values->end());
  const size_t middle = values->size() / 2;
  return values->size() % 2 == 1 ? (*values)[middle]
                                 : ((*values)[middle - 1] + (*values)[middle]) / 2;
}

struct Options {
  std::string model;
  int threads = UsableCpuCount();
  int rounds = 3;
  std::string pack;  // format; empty: the checkpoint is mapped
  std::string pool_dir;
};

int Run(const Options& options) {
  const std::vector<std::string> files = ShardFiles(options.model);
  uint64_t total = 0;
  for (const std::string& file : files) total += std::filesystem::file_size(file);
  std::printf("%s: %zu files, %.2f GB, %d threads\n", options.model.c_str(), files.size(),
              static_cast<double>(total) / 1e9, options.threads);
  std::optional<PoolFormat> format;
  if (!options.pack.empty()) {
    const auto parsed = ParsePoolFormatFlag(options.pack);
    if (!parsed.ok()) Die(std::string(ToStd(parsed.status().message())));
    format = *parsed;
  }
  const auto rate = [](uint64_t bytes, double seconds) {
    return static_cast<double>(bytes) / seconds / 1e9;
  };
  Reader readers[2];
  double best[2][2] = {{1e30, 1e30}, {1e30, 1e30}};  // [warm][ours]
  std::vector<double> rounds[2][2];
  for (const bool warm : {false, true}) {
    double& seconds = best[warm][0];  // counts like a round
    if (warm) ReadPlainly(files, {2 * options.threads, 8 << 20, false});
    readers[warm] = Tune(files, options.threads, warm, &seconds);
    std::printf("  %s reader: %s, %.2f GB/s\n", warm ? "warm" : "cold",
                Describe(readers[warm]).c_str(), rate(total, seconds));
    std::fflush(stdout);
  }
  uint64_t peak = 0, stays = 0, source = total;
  for (int round = 0; round < options.rounds; ++round) {
    for (const bool warm : {false, true}) {
      for (const bool second : {false, true}) {
        const bool ours = second != (round % 2 == 1);
        if (warm) {
          // O_DIRECT has left nothing in the cache, and a pack may have pushed files out.
          ReadPlainly(files, {2 * options.threads, 8 << 20, false});
        } else {
          DropCache(files);
        }
        double seconds = 0;
        if (ours) {
          ResetPeak();
          const Load load =
              format ? PackOurs(options.model, options.threads, *format, options.pool_dir)
                     : LoadOurs(options.model, options.threads);
          seconds = load.seconds;
          peak = std::max(peak, PeakBytes());
          stays = load.bytes;
          std::printf("  %s ours  %.2f s  (headers %.2f s", warm ? "warm" : "cold", seconds,
                      load.header_seconds);
          if (format) {
            const PackStats& s = load.stats;
            source = s.source_bytes;
            std::printf(
                "; %.2f s to read, convert and write, sync %.2f s, read back %.2f s; of the "
                "threads' time %.2f s reading, %.2f s converting, %.2f s writing",
                s.seconds, s.sync_seconds, s.verify_seconds, s.read_seconds, s.convert_seconds,
                s.write_seconds);
            std::printf("; its reads alone %.2f GB/s",
                        rate(source, s.read_seconds / s.num_threads));
            // What the build takes its sources in with, all else included but the disk's sync.
            seconds = s.seconds;
          }
          std::printf(")\n");
        } else {
          seconds = ReadPlainly(files, readers[warm]);
          std::printf("  %s plain %.2f s\n", warm ? "warm" : "cold", seconds);
        }
        std::fflush(stdout);
        best[warm][ours] = std::min(best[warm][ours], seconds);
        rounds[warm][ours].push_back(seconds);
      }
    }
  }
  const auto report = [&](bool warm, const char* what, double own_seconds, double plain_seconds) {
    const double ours = rate(source, own_seconds);
    const double plain = rate(total, plain_seconds);
    std::printf("%s, %s: ours %.2f GB/s, plain %.2f GB/s: %.0f %% (goal 90 %%)\n",
                warm ? "warm" : "cold", what, ours, plain, 100 * ours / plain);
  };
  for (const bool warm : {false, true}) {
    report(warm, "best", best[warm][1], best[warm][0]);
    report(warm, "median of the rounds", Median(&rounds[warm][1]), Median(&rounds[warm][0]));
  }
  std::printf("peak %.2f GB, what stays %.2f GB: allowed %.2f GB\n",
              static_cast<double>(peak) / 1e9, static_cast<double>(stays) / 1e9,
              (1.03 * static_cast<double>(stays) + (256 << 20)) / 1e9);
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) {
  banyan::Options options;
  CLI::App app{"Speed of a load, or of packing, against a tuned plain parallel reader."};
  app.add_option("--model", options.model, "Checkpoint directory")->required();
  app.add_option("--threads", options.threads, "Threads of the load")->check(CLI::Range(1, 256));
  app.add_option("--rounds", options.rounds, "Rounds, of which best and median are told")
      ->check(CLI::Range(1, 100));
  CLI::Option* const pack =
      app.add_option("--pack", options.pack, "Make a pack of this format instead of mapping");
  app.add_option("--pool_dir", options.pool_dir, "Where that pack goes")->needs(pack);
  CLI11_PARSE(app, argc, argv);
  if (!options.pack.empty() && options.pool_dir.empty()) banyan::Die("--pack needs --pool_dir");
  return banyan::Run(options);
}
