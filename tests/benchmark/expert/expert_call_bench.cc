// Round trip of an expert call between two processes: the trunk's transport against the expert's
// data plane, beside a raw-socket ping-pong of the same bytes. The server reads every byte of the
// request and writes every byte of the reply; it computes nothing. Calls are gRPC frames over tcp
// and unix; shm: through memory that both share, beside a Unix socket.
// Figures are medians over rounds; "above raw" is the median difference to the raw socket's p50 of
// the same round.
//   expert_call_bench [--rounds N] [--seconds S] [--transport tcp,unix,shm] [--shards 1,2,4]
//   [--output text|json]
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/quant/bf16.h"
#include "common/rpc/channel_settings.h"
#include "services/trunk/experts/grpc_transport.h"
#include "tests/benchmark/expert/raw_socket.h"
#include "tests/fakes/expert_host.h"
#include "tests/fakes/self_process.h"

namespace banyan {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t kHidden = 2048;
constexpr int32_t kTopK = 10;
constexpr int32_t kNumExperts = 512;
constexpr int32_t kWidth = 512;
constexpr int32_t kMaxRows = 512;
constexpr int kSequence = 48;  // calls of one token

struct Settings {
  double seconds = 0.3;
  double gap_us = 0;
  double spin_us = 1000;
  bool plain_server = false;
  int rounds = 5;
  std::vector<std::string> transports = {"tcp", "unix", "shm"};
  std::vector<int32_t> shards = {1, 2, 4};
  std::vector<int32_t> rows = {1, 4, 16, 64, 512};
};

ShardGeometry Geometry(int32_t shard, int32_t num_shards) {
  const int32_t first = kWidth * shard / num_shards;
  return {.num_layers = kSequence,
          .hidden_size = kHidden,
          .num_experts = kNumExperts,
          .moe_intermediate_size = kWidth,
          .max_top_k = kTopK,
          .first_expert = 0,
          .num_shard_experts = kNumExperts,
          .first_width = first,
          .num_shard_width = kWidth * (shard + 1) / num_shards - first,
          .max_rows = kMaxRows};
}

// Reads every activation and writes it back in the type asked for.
class EchoExecutor final : public expert::ExpertExecutor {
 public:
  explicit EchoExecutor(const ShardGeometry& geometry) : geometry_(geometry) {}
  const ShardGeometry& geometry() const override { return geometry_; }
  absl::Status Run(const expert::ExpertCall& call) override {
    const size_t values = static_cast<size_t>(call.num_rows) * kHidden;
    const bool from_f32 = call.activation_type == expert::ActivationType::kF32;
    const bool to_f32 = call.reply_type == expert::ActivationType::kF32;
    if (from_f32 == to_f32) {
      std::memcpy(call.out, call.activations, values * (from_f32 ? 4 : 2));
      return absl::OkStatus();
    }
    for (size_t i = 0; i < values; ++i) {
      if (from_f32) {
        float value;
        std::memcpy(&value, call.activations + i * 4, 4);
        const BF16 rounded = ToBF16(value);
        std::memcpy(call.out + i * 2, &rounded, 2);
      } else {
        BF16 value;
        std::memcpy(&value, call.activations + i * 2, 2);
        const float wide = ToFloat(value);
        std::memcpy(call.out + i * 4, &wide, 4);
      }
    }
    return absl::OkStatus();
  }

 private:
  const ShardGeometry geometry_;
};

[[noreturn]] void ServeExperts(const std::string& listen, int32_t shard, int32_t num_shards,
                               const Settings& settings) {
  EchoExecutor executor(Geometry(shard, num_shards));
  ExpertHost host({.listen = listen,
                   .health_and_reflection = !settings.plain_server,
                   .forward = {.spin = absl::Microseconds(settings.spin_us)}},
                  MakeDescription(executor.geometry(), expert::v1::WIDTH, shard, num_shards, "b0"),
                  &executor);
  std::printf("listening %s\n", host.address().c_str());
  std::fflush(stdout);
  while (true) pause();
}

// Of the rows there and back; `lent`: rows lie in memory that is sent from, as a decoder's do.
struct Types {
  const char* name;
  DType activations;
  bool reply_f32;
  bool lent = false;
};
constexpr Types kTypes[] = {{"call, bf16", DType::kBF16, false},
                            {"call, bf16 there", DType::kBF16, true},
                            {"the same, lent", DType::kBF16, true, true},
                            {"call, f32", DType::kF32, true}};

struct Figures {
  double p50_us, p99_us, min_us, token_ms;  // token: 48 calls in sequence, median
  size_t calls;
};

double Quantile(std::vector<double>& values, double q) {
  const auto at = static_cast<size_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

void Wait(double us) {
  const auto end = Clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(us * 1e3));
  while (Clock::now() < end) continue;
}

template <typename Call>
Figures Measure(const Settings& settings, Call call) {
  const auto seconds = [](double s) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
  };
  for (auto end = Clock::now() + seconds(settings.seconds * 0.2); Clock::now() < end;) call();
  std::vector<double> times, tokens;
  for (const auto end = Clock::now() + seconds(settings.seconds); Clock::now() < end;) {
    double token = 0;
    for (int i = 0; i < kSequence; ++i) {
      if (settings.gap_us > 0) Wait(settings.gap_us);
      const auto start = Clock::now();
      call();
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      token += times.back();
    }
    tokens.push_back(token / 1e3);
  }
  return {Quantile(times, 0.5), Quantile(times, 0.99), Quantile(times, 0.0), Quantile(tokens, 0.5),
          times.size()};
}

// Rounds of the same measurement, each beside a raw-socket figure taken in the same second.
struct Report {
  struct Key {
    std::string transport, kind;
    int32_t shards, rows;
    bool operator==(const Key& other) const = default;
  };
  struct Row {
    Key key;
    std::vector<double> p50_us, p99_us, min_us, token_ms, above_raw_us;
  };
  std::vector<Row> rows;

  void Add(const std::string& kind, const std::string& transport, int32_t shards, int32_t rows_sent,
           const Figures& f) {
    Row& row = Find({transport, kind, shards, rows_sent});
    row.p50_us.push_back(f.p50_us);
    row.p99_us.push_back(f.p99_us);
    row.min_us.push_back(f.min_us);
    row.token_ms.push_back(f.token_ms);
    row.above_raw_us.push_back(f.p50_us - Find({transport, kRaw, 1, rows_sent}).p50_us.back());
  }

  void Print() {
    std::printf("%-16s %-5s %6s %5s %8s %15s %8s %8s %10s %13s\n", "kind", "", "shards", "rows",
                "p50 us", "(rounds)", "p99 us", "min us", "above raw", "48 calls ms");
    for (Row& row : rows) {
      const auto [low, high] = std::minmax_element(row.p50_us.begin(), row.p50_us.end());
      const std::string range = fmt::format("({:.1f}-{:.1f})", *low, *high);
      std::printf("%-16s %-5s %6d %5d %8.1f %15s %8.1f %8.1f %10.1f %13.3f\n", row.key.kind.c_str(),
                  row.key.transport.c_str(), row.key.shards, row.key.rows,
                  Quantile(row.p50_us, 0.5), range.c_str(), Quantile(row.p99_us, 0.5),
                  Quantile(row.min_us, 0.0), Quantile(row.above_raw_us, 0.5),
                  Quantile(row.token_ms, 0.5));
    }
  }

  std::string Json() {
    nlohmann::json all = nlohmann::json::array();
    for (Row& row : rows) {
      all.push_back({{"kind", row.key.kind},
                     {"transport", row.key.transport},
                     {"shards", row.key.shards},
                     {"rows", row.key.rows},
                     {"rounds", row.p50_us},
                     {"p50_us", Quantile(row.p50_us, 0.5)},
                     {"p99_us", Quantile(row.p99_us, 0.5)},
                     {"min_us", Quantile(row.min_us, 0.0)},
                     {"above_raw_us", Quantile(row.above_raw_us, 0.5)},
                     {"calls_48_ms", Quantile(row.token_ms, 0.5)}});
    }
    return all.dump(2);
  }

  static constexpr char kRaw[] = "raw socket";

 private:
  Row& Find(const Key& key) {
    for (Row& row : rows) {
      if (row.key == key) return row;
    }
    rows.push_back({key, {}, {}, {}, {}, {}});
    return rows.back();
  }
};

class Bench {
 public:
  Bench(const Settings& settings, Report* report) : settings_(settings), report_(report) {
    directory_ =
        std::filesystem::temp_directory_path() / ("banyan_call_bench_" + std::to_string(getpid()));
    std::filesystem::create_directories(directory_);
  }
  ~Bench() { std::filesystem::remove_all(directory_); }

  void Run() {
    // A trunk serves clients beside its calls: so this process has an idle server of its own.
    EchoExecutor idle(Geometry(0, 1));
    std::unique_ptr<ExpertHost> clients;
    if (!settings_.plain_server) {
      clients = std::make_unique<ExpertHost>(
          ExpertHost::Options{
              .listen = "127.0.0.1:0", .health_and_reflection = true, .forward = {}},
          MakeDescription(idle.geometry(), expert::v1::WIDTH, 0, 1, "b0"), &idle);
    }
    for (const std::string& transport : settings_.transports) {
      // New hosts and connections each time.
      for (int round = 0; round < settings_.rounds; ++round) {
        RunRaw(transport);
        for (int32_t shards : settings_.shards) {
          for (const Types& types : kTypes) RunCalls(transport, shards, types);
        }
      }
    }
  }

 private:
  std::string Listen(const std::string& transport, const std::string& name) {
    return transport == "tcp"
               ? "127.0.0.1:0"
               : fmt::format("unix:{}/{}.{}", directory_.string(), name, ++last_socket_);
  }

  // The sizes of the call with bf16 both ways, headers included.
  void RunRaw(const std::string& transport) {
    SelfProcess server({"--serve_raw", Listen(transport, "raw")});
    for (int32_t rows : settings_.rows) {
      const auto t = static_cast<size_t>(rows);
      RawClient client(server.address(), 60 + t * (kHidden * 2 + kTopK * 6), 30 + t * kHidden * 2);
      report_->Add(Report::kRaw, transport, 1, rows, Measure(settings_, [&] { client.Call(); }));
    }
  }

  void RunCalls(const std::string& transport, int32_t shards, const Types& types) {
    std::vector<std::unique_ptr<SelfProcess>> servers;
    trunk::ExpertDirectory::Options options;
    for (int32_t s = 0; s < shards; ++s) {
      servers.push_back(std::make_unique<SelfProcess>(std::vector<std::string>{
          "--serve", Listen(transport, "expert"), "--place", std::to_string(s), "--places",
          std::to_string(shards), "--spin_us", std::to_string(settings_.spin_us),
          settings_.plain_server ? "--plain_server" : "--"}));
      options.cluster.shards.push_back({{servers.back()->address()}});
    }
    options.model = {.fingerprint = "b0",
                     .num_layers = kSequence,
                     .moe_layers = {},
                     .num_experts = kNumExperts,
                     .hidden_size = kHidden,
                     .moe_intermediate_size = kWidth,
                     .num_experts_per_tok = kTopK,
                     .max_rows = kMaxRows};
    for (int32_t i = 0; i < kSequence; ++i) options.model.moe_layers.push_back(i);
    options.spin = absl::Microseconds(settings_.spin_us);
    options.shared_memory = transport == "shm";
    RunCalls(transport, options, types);
  }

  void RunCalls(const std::string& transport, const trunk::ExpertDirectory::Options& options,
                const Types& types) {
    const auto shards = static_cast<int32_t>(options.cluster.shards.size());
    MetricsRegistry metrics;
    auto directory = trunk::ExpertDirectory::Create(options, &metrics);
    CHECK(directory.ok());
    const absl::Status ready = (*directory)->WaitReady(absl::Now() + absl::Seconds(20));
    if (!ready.ok()) {
      std::fprintf(stderr, "%s\n", std::string(ready.message()).c_str());
      std::exit(1);
    }
    trunk::GrpcTransport calls({.reply_f32 = types.reply_f32}, directory->get(), &metrics);
    const std::vector<float> wide(static_cast<size_t>(kMaxRows) * kHidden, 0.5f);
    const std::vector<BF16> narrow(wide.size(), ToBF16(0.5f));
    const void* const own =
        types.activations == DType::kF32 ? static_cast<const void*>(wide.data()) : narrow.data();
    if (types.lent) {
      std::vector<std::shared_ptr<std::byte>> blocks(2);
      const size_t bytes = narrow.size() * sizeof(BF16);
      for (auto& block : blocks) {
        block.reset(new std::byte[bytes], std::default_delete<std::byte[]>());
        std::memcpy(block.get(), narrow.data(), bytes);
      }
      calls.LendRowsMemory(std::move(blocks), bytes);
    }
    std::vector<float> out(wide.size());
    std::vector<uint16_t> ids(static_cast<size_t>(kMaxRows) * kTopK);
    std::vector<float> weights(ids.size(), 0.1f);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint16_t>(i * 7 % kNumExperts);
    int64_t step = 0;
    for (int32_t rows : settings_.rows) {
      const Figures figures = Measure(settings_, [&] {
        const void* const sent = types.lent ? calls.TakeRowsMemory() : nullptr;
        absl::Status status = calls.Dispatch({.step_id = step / kSequence,
                                              .layer = static_cast<int32_t>(step % kSequence),
                                              .num_rows = rows,
                                              .top_k = kTopK,
                                              .activations = sent != nullptr ? sent : own,
                                              .activations_dtype = types.activations,
                                              .expert_ids = ids.data(),
                                              .weights = weights.data()});
        if (status.ok()) status = calls.Combine(out.data());
        if (!status.ok()) {
          std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
          std::exit(1);
        }
        ++step;
      });
      CHECK(out[0] == 0.5f * static_cast<float>(shards));
      report_->Add(types.name, transport, shards, rows, figures);
    }
  }

  const Settings settings_;
  Report* const report_;
  std::filesystem::path directory_;
  int last_socket_ = 0;
};

int Main(int argc, char** argv) {
  PrepareGrpcProcess();
  Settings settings;
  std::string output = "text", serve, serve_raw;
  int32_t place = 0, places = 1;
  CLI::App app("Round trip of an expert call between two processes");
  app.add_option("--seconds", settings.seconds, "per figure");
  app.add_option("--gap_us", settings.gap_us, "computation of the trunk between two calls");
  app.add_option("--spin_us", settings.spin_us, "how long both ends poll before they sleep");
  app.add_option("--transport", settings.transports)->delimiter(',');
  app.add_option("--shards", settings.shards)->delimiter(',');
  app.add_option("--rows", settings.rows)->delimiter(',');
  app.add_option("--rounds", settings.rounds,
                 "the whole measurement so often; medians are printed");
  app.add_flag("--plain_server", settings.plain_server,
               "no health and reflection beside the calls, nor a server in the trunk's process");
  app.add_option("--output", output)->check(CLI::IsMember({"text", "json"}));
  app.add_option("--serve", serve)->group("");
  app.add_option("--serve_raw", serve_raw)->group("");
  app.add_option("--place", place)->group("");
  app.add_option("--places", places)->group("");
  CLI11_PARSE(app, argc, argv);
  CHECK(SetLogLevel("error").ok());
  if (!serve_raw.empty()) ServeRaw(serve_raw);
  if (!serve.empty()) ServeExperts(serve, place, places, settings);

  Report report;
  Bench(settings, &report).Run();
  if (output == "json") {
    std::printf("%s\n", report.Json().c_str());
  } else {
    report.Print();
  }
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) { return banyan::Main(argc, argv); }
