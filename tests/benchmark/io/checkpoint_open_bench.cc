// How long opening a checkpoint takes when it has 450,000 tensors (the 80B as bitsandbytes 4-bit):
// 40 shards, an index of about 45 MB, and no payload to speak of.
//   checkpoint_open_bench [NUM_TENSORS]
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/base/strings.h"
#include "common/io/checkpoint.h"
#include "common/io/safetensors.h"
#include "common/io/safetensors_index.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

double Seconds(std::chrono::steady_clock::time_point from) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

// Of all threads of this process: what the wall clock would say of one CPU that does nothing else.
double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

test::TestCheckpoint MakeCheckpoint(int num_tensors) {
  constexpr int kShards = 40;
  constexpr const char* kSuffixes[] = {"weight",
                                       "weight.absmax",
                                       "weight.nested_absmax",
                                       "weight.nested_quant_map",
                                       "weight.quant_map",
                                       "weight.quant_state.bitsandbytes__nf4"};
  constexpr const char* kMatrices[] = {"down_proj", "gate_proj", "up_proj"};
  test::TestCheckpoint checkpoint;
  checkpoint.texts["config.json"] = "{}";
  for (int i = 0; i < kShards; ++i) {
    checkpoint.shards.emplace_back().file_name =
        fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, kShards);
  }
  for (int i = 0; i < num_tensors; ++i) {
    const int matrix = i / 6;
    std::string name = fmt::format("model.layers.{}.mlp.experts.{}.{}.{}", matrix / 3 / 512,
                                   matrix / 3 % 512, kMatrices[matrix % 3], kSuffixes[i % 6]);
    const auto shard = static_cast<size_t>(int64_t{i} * kShards / num_tensors);
    checkpoint.shards[shard].tensors.push_back(test::MakeTensor(std::move(name), "U8", {4, 1}, 4));
  }
  return checkpoint;
}

int Run(int num_tensors) {
  const test::TempDir temp;
  size_t index_bytes = 0;
  size_t header_bytes = 0;
  {
    test::TestCheckpoint made = MakeCheckpoint(num_tensors);
    made.index_json = made.MakeIndexJson();
    index_bytes = made.index_json->size();
    for (const auto& shard : made.shards) header_bytes += shard.ToBytes().size();
    made.Write(temp.path());
  }
  std::printf("%d tensors, index %.1f MB, shards %.1f MB\n", num_tensors,
              static_cast<double>(index_bytes) / 1e6, static_cast<double>(header_bytes) / 1e6);
  for (int round = 0; round < 5; ++round) {
    auto start = std::chrono::steady_clock::now();
    const std::string text = test::ReadFile(temp.File("model.safetensors.index.json"));
    const double read_seconds = Seconds(start);
    start = std::chrono::steady_clock::now();
    const auto index = ParseSafetensorsIndex(text, "index");
    const double index_seconds = Seconds(start);
    start = std::chrono::steady_clock::now();
    const double cpu_start = CpuSeconds();
    const auto checkpoint = Checkpoint::Open(temp.path());
    const double open_cpu_seconds = CpuSeconds() - cpu_start;
    const double open_seconds = Seconds(start);
    if (!index.ok() || !checkpoint.ok()) {
      std::fprintf(stderr, "%s %s\n", index.status().ToString().c_str(),
                   checkpoint.status().ToString().c_str());
      return 1;
    }
    start = std::chrono::steady_clock::now();
    size_t found = 0;
    for (const auto& tensor : index->tensors) found += (*checkpoint)->Find(tensor.name) != nullptr;
    std::printf(
        "read index %.3f s, parse index %.3f s, open all %.3f s (%.3f CPU s), find %zu names "
        "%.3f s\n",
        read_seconds, index_seconds, open_seconds, open_cpu_seconds, found, Seconds(start));
  }
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) {
  const int num_tensors = argc > 1 ? std::atoi(argv[1]) : 450'000;
  if (num_tensors < 1) {
    std::fprintf(stderr, "usage: %s [NUM_TENSORS], at least 1\n", argv[0]);
    return 2;
  }
  return banyan::Run(num_tensors);
}
