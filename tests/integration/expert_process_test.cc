// The banyan-expert binary, spoken to by generated gRPC code as any client would.
#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "common/base/version.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "services/expert/kernels/kernel_table.h"
#include "services/expert/runtime/expert_store.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/process.h"
#include "tests/kernels/expert/ffn_oracle.h"

namespace banyan::test {
namespace {

using banyan::common::v1::LoadProgress;
using expert::v1::Experts;
using expert::v1::ForwardRequest;
using expert::v1::ForwardResponse;
using grpc::health::v1::HealthCheckResponse;

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr int32_t kHiddenSize = 128;
constexpr int32_t kNumExperts = 16;
constexpr int32_t kTopK = 4;
constexpr uint32_t kBothF32 = 3;
constexpr uint16_t kNone = 0xffff;

std::string TinyModel() { return std::string(BANYAN_SOURCE_DIR) + "/tests/data/tiny"; }

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
}

class Host {
 public:
  explicit Host(std::vector<std::string> args, const std::string& model = TinyModel())
      : process_(Args(std::move(args), model)) {}

  // Waits until the host serves; empty when it does not, with a failure reported.
  void Start() {
    const absl::StatusOr<std::string> address = process_.ListeningAddress(kTimeout);
    ASSERT_TRUE(address.ok()) << address.status();
    address_ = *address;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
    stub_ = Experts::NewStub(channel_);
    grpc::ClientContext context;
    SetDeadline(context);
    const auto watch = stub_->WatchLoad(&context, {});
    LoadProgress progress;
    while (watch->Read(&progress)) last_progress_ = progress;
    const grpc::Status status = watch->Finish();
    ASSERT_TRUE(status.ok()) << status.error_message() << "\n" << process_.Log();
    ASSERT_EQ(last_progress_.phase(), LoadProgress::READY) << process_.Log();
  }

  HealthCheckResponse::ServingStatus Health(const std::string& service) {
    grpc::ClientContext context;
    SetDeadline(context);
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status =
        grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  expert::v1::DescribeResponse Describe() {
    grpc::ClientContext context;
    SetDeadline(context);
    expert::v1::DescribeResponse response;
    const grpc::Status status = stub_->Describe(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // SIGTERM, and the exit code; -1 and a failure when it does not exit.
  int Stop() {
    process_.Signal(SIGTERM);
    return Exit();
  }
  int Exit() {
    const absl::StatusOr<int> code = process_.WaitExit(kTimeout);
    EXPECT_TRUE(code.ok()) << code.status();
    if (code.value_or(-1) != 0) std::cout << process_.Log();  // for whoever expected 0
    return code.value_or(-1);
  }

  Process& process() { return process_; }
  Experts::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }
  const LoadProgress& last_progress() const { return last_progress_; }

 private:
  static std::vector<std::string> Args(std::vector<std::string> args, const std::string& model) {
    std::vector<std::string> all = {BinaryPath("banyan-expert"), "--model=" + model, "--threads=2"};
    const auto given = [&](const std::string& flag) {
      for (const std::string& arg : args) {
        if (arg.compare(0, flag.size(), flag) == 0) return true;
      }
      return false;
    };
    if (!given("--listen")) all.push_back("--listen=127.0.0.1:0");
    if (!given("--metrics_listen")) all.push_back("--metrics_listen=");
    all.insert(all.end(), args.begin(), args.end());
    return all;
  }

  Process process_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Experts::Stub> stub_;
  LoadProgress last_progress_;
};

// Random rows in f32, with ids of experts that `first` and `count` allow.
ForwardRequest MakeRequest(uint64_t sequence, int32_t layer, int32_t num_rows, int32_t first,
                           int32_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> ids;
  std::vector<float> weights;
  std::vector<float> x;
  for (int32_t row = 0; row < num_rows; ++row) {
    std::set<uint16_t> used;
    while (static_cast<int32_t>(used.size()) < kTopK) {
      used.insert(static_cast<uint16_t>(random() % kNumExperts));
    }
    for (const uint16_t id : used) {
      ids.push_back(id >= first && id < first + count ? id : kNone);
      weights.push_back(std::abs(normal(random)));
    }
    for (int32_t i = 0; i < kHiddenSize; ++i) x.push_back(normal(random));
  }
  ForwardRequest request;
  request.set_sequence(sequence);
  request.set_step(sequence);
  request.set_layer(static_cast<uint32_t>(layer));
  request.set_num_rows(static_cast<uint32_t>(num_rows));
  request.set_top_k(kTopK);
  request.set_flags(kBothF32);
  request.set_attempt(0);
  request.set_expert_ids(ids.data(), ids.size() * sizeof(ids[0]));
  request.set_weights(weights.data(), weights.size() * sizeof(weights[0]));
  request.set_activations(x.data(), x.size() * sizeof(x[0]));
  return request;
}

template <class T>
std::vector<T> Values(const std::string& bytes) {
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

void ExpectOracle(const expert::ExpertTable& table, const expert::FfnKernels& kernels,
                  const ForwardRequest& request, const std::vector<float>& sums) {
  const ShardGeometry& g = table.geometry;
  const std::vector<uint16_t> ids = Values<uint16_t>(request.expert_ids());
  const std::vector<float> weights = Values<float>(request.weights());
  const std::vector<float> x = Values<float>(request.activations());
  ASSERT_EQ(sums.size(), x.size());
  for (uint32_t row = 0; row < request.num_rows(); ++row) {
    const auto begin = x.begin() + row * kHiddenSize;
    const std::vector<double> activations(begin, begin + kHiddenSize);
    std::vector<expert::testing::OracleValues> values;
    std::vector<float> used;
    for (uint32_t k = 0; k < kTopK; ++k) {
      const uint16_t id = ids[row * kTopK + k];
      if (id == kNone) continue;
      const auto oracle = expert::testing::OracleOf(
          table.layers[request.layer()][static_cast<size_t>(id - g.first_expert)], g.hidden_size,
          g.num_shard_width);
      values.push_back(expert::testing::OracleDown(
          oracle, expert::testing::OracleHidden(oracle, activations, kernels), kernels));
      used.push_back(weights[row * kTopK + k]);
    }
    expert::testing::OracleValues sum{std::vector<double>(kHiddenSize),
                                      std::vector<double>(kHiddenSize)};
    if (!values.empty()) sum = expert::testing::OracleWeightedSum(values, used);
    for (size_t i = 0; i < kHiddenSize; ++i) {
      ASSERT_NEAR(sums[row * kHiddenSize + i], sum.value[i], sum.bound[i])
          << "row " << row << " output " << i;
    }
  }
}

TEST(ExpertProcessTest, DescribesItsShard) {
  Host host({"--shard=1/3", "--split=width", "--cpu_tier=scalar"});
  ASSERT_NO_FATAL_FAILURE(host.Start());
  const expert::v1::DescribeResponse d = host.Describe();
  EXPECT_EQ(d.protocol_version(), 1u);
  EXPECT_EQ(d.server_version(), Version());
  EXPECT_EQ(d.model_fingerprint().size(), 32u);
  EXPECT_EQ(d.num_layers(), 4u);
  EXPECT_EQ(std::vector<uint32_t>(d.moe_layers().begin(), d.moe_layers().end()),
            (std::vector<uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(d.num_experts(), 16u);
  EXPECT_EQ(d.hidden_size(), 128u);
  EXPECT_EQ(d.moe_intermediate_size(), 64u);
  EXPECT_EQ(d.max_top_k(), 4u);
  EXPECT_EQ(d.split(), expert::v1::WIDTH);
  EXPECT_EQ(d.shard_index(), 1u);
  EXPECT_EQ(d.num_shards(), 3u);
  EXPECT_EQ(d.first_expert(), 0u);
  EXPECT_EQ(d.num_shard_experts(), 16u);
  EXPECT_EQ(d.first_width(), 21u);
  EXPECT_EQ(d.num_shard_width(), 21u);
  EXPECT_EQ(d.pool_format(), "bf16");
  EXPECT_EQ(d.kernel_tier(), "scalar");
  EXPECT_EQ(d.pool_bytes(), 4u * 16 * 3 * 21 * 128 * 2);
  EXPECT_EQ(d.max_rows(), 4096u);
  EXPECT_EQ(d.max_message_bytes(), 64u << 20);
  EXPECT_EQ(host.last_progress().bytes_done(), host.last_progress().bytes_total());
  EXPECT_EQ(host.Health(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(host.Health("banyan.expert.v1.Experts"), HealthCheckResponse::SERVING);
  EXPECT_EQ(host.Stop(), 0);
}

struct ForwardCase {
  const char* name;
  ShardSpec shard;
  bool unix_socket;
  const char* tier;
};

class ExpertForwardTest : public ::testing::TestWithParam<ForwardCase> {};

INSTANTIATE_TEST_SUITE_P(
    Shards, ExpertForwardTest,
    ::testing::Values(ForwardCase{"WholeTcp", {0, 1, ShardSplit::kWidth}, false, "auto"},
                      ForwardCase{"WholeScalar", {0, 1, ShardSplit::kWidth}, true, "scalar"},
                      ForwardCase{"WidthUnix", {2, 3, ShardSplit::kWidth}, true, "auto"},
                      ForwardCase{"ExpertsTcp", {1, 3, ShardSplit::kExperts}, false, "auto"}),
    [](const auto& tested) { return std::string(tested.param.name); });

// A real stream through the binary, against weights read from the checkpoint here.
TEST_P(ExpertForwardTest, AnswersMatchOracle) {
  const ForwardCase& c = GetParam();
  TempDir temp;
  Host host({fmt::format("--shard={}/{}", c.shard.index, c.shard.num_shards),
             c.shard.split == ShardSplit::kWidth ? "--split=width" : "--split=experts",
             c.unix_socket ? "--listen=unix:" + temp.File("expert.sock") : "--listen=127.0.0.1:0",
             std::string("--cpu_tier=") + c.tier});
  ASSERT_NO_FATAL_FAILURE(host.Start());
  const auto store = expert::ExpertStore::Open(TinyModel(), c.shard);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(host.Describe().model_fingerprint(), (*store)->description().fingerprint);
  const ShardGeometry& g = (*store)->geometry();
  const expert::FfnKernels& kernels = *expert::ChooseKernels(c.tier, ReadCpuFeatures()).kernels;

  grpc::ClientContext context;
  SetDeadline(context);
  const auto stream = host.stub().Forward(&context);
  std::mt19937 random(31);
  uint64_t sequence = 0;
  for (const int32_t num_rows : {1, 5, 40}) {
    for (int32_t layer = 0; layer < 4; ++layer) {
      SCOPED_TRACE(fmt::format("seed 31 layer {} rows {}", layer, num_rows));
      const ForwardRequest request =
          MakeRequest(++sequence, layer, num_rows, g.first_expert, g.num_shard_experts, random);
      ASSERT_TRUE(stream->Write(request));
      ForwardResponse response;
      ASSERT_TRUE(stream->Read(&response)) << stream->Finish().error_message();
      EXPECT_EQ(response.sequence(), sequence);
      EXPECT_EQ(response.num_rows(), request.num_rows());
      EXPECT_EQ(response.flags(), 2u);
      ASSERT_NO_FATAL_FAILURE(ExpectOracle((*store)->table(), kernels, request,
                                           Values<float>(response.partial_sums())));
    }
  }
  ASSERT_TRUE(stream->WritesDone());
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(host.Stop(), 0);
}

// A frame that asks for what is not there ends its stream; the service lives.
TEST(ExpertProcessTest, BadCallsEndTheirStreamOnly) {
  Host host({"--shard=0/2", "--split=experts"});
  ASSERT_NO_FATAL_FAILURE(host.Start());
  std::mt19937 random(5);
  const auto refused = [&](auto change) {
    grpc::ClientContext context;
    SetDeadline(context);
    const auto stream = host.stub().Forward(&context);
    ForwardRequest request = MakeRequest(7, 1, 2, 0, 8, random);
    change(request);
    stream->Write(request);
    ForwardResponse response;
    EXPECT_FALSE(stream->Read(&response));
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_EQ(refused([](ForwardRequest& r) { r.set_layer(4); }), "layer 4, expected 0 to 3");
  EXPECT_EQ(refused([](ForwardRequest& r) {
              std::string ids(16, '\xff');
              ids[2] = 12;
              ids[3] = 0;
              r.set_expert_ids(ids);
            }),
            "layer 1: row 0 place 1: expert 12, this shard has 0 to 7");

  grpc::ClientContext context;
  SetDeadline(context);
  const auto stream = host.stub().Forward(&context);
  const ForwardRequest request = MakeRequest(7, 1, 2, 0, 8, random);
  ForwardResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(stream->Write(request));  // replayed
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(host.Health(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(host.Stop(), 0);
}

TEST(ExpertProcessTest, DrainEndsStreamsAndTakesNoNew) {
  Host host({});
  ASSERT_NO_FATAL_FAILURE(host.Start());
  std::mt19937 random(5);
  grpc::ClientContext context;
  SetDeadline(context);
  const auto stream = host.stub().Forward(&context);
  ForwardResponse response;
  ASSERT_TRUE(stream->Write(MakeRequest(1, 0, 1, 0, 16, random)));
  ASSERT_TRUE(stream->Read(&response));
  for (int i = 0; i < 2; ++i) {  // twice is once
    grpc::ClientContext drain;
    SetDeadline(drain);
    expert::v1::DrainResponse drained;
    ASSERT_TRUE(host.stub().Drain(&drain, {}, &drained).ok());
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext again;
  SetDeadline(again);
  const auto refused = host.stub().Forward(&again);
  EXPECT_FALSE(refused->Read(&response));
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(host.Health(""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(host.Health("banyan.expert.v1.Experts"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(host.Describe().num_experts(), 16u);
  EXPECT_EQ(host.Stop(), 0);
}

TEST(ExpertProcessTest, SigtermAndSigintEndOpenStreams) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Host host({});
    ASSERT_NO_FATAL_FAILURE(host.Start());
    std::mt19937 random(5);
    grpc::ClientContext context;
    SetDeadline(context);
    const auto stream = host.stub().Forward(&context);
    ForwardResponse response;
    ASSERT_TRUE(stream->Write(MakeRequest(1, 0, 1, 0, 16, random)));
    ASSERT_TRUE(stream->Read(&response));
    host.process().Signal(signal);
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(host.Exit(), 0);
  }
}

// Of a process that must not start: exit code and the line that says why.
void ExpectRefused(const std::vector<std::string>& args, int code, const std::string& message) {
  Process process(args);
  const absl::StatusOr<int> exit = process.WaitExit(kTimeout);
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(*exit, code) << process.Log();
  EXPECT_NE(process.Log().find("banyan-expert: error: " + message), std::string::npos)
      << "expected: " << message << "\nfound: " << process.Log();
}

TEST(ExpertProcessTest, AddressInUse) {
  TempDir temp;
  const std::string unix_address = "unix:" + temp.File("expert.sock");
  Host tcp({});
  Host local({"--listen=" + unix_address});
  ASSERT_NO_FATAL_FAILURE(tcp.Start());
  ASSERT_NO_FATAL_FAILURE(local.Start());
  const std::string binary = BinaryPath("banyan-expert");
  ExpectRefused(
      {binary, "--model=" + TinyModel(), "--metrics_listen=", "--listen=" + tcp.address()}, 1,
      "cannot listen on " + tcp.address() + ": Address already in use\n");
  ExpectRefused({binary, "--model=" + TinyModel(), "--metrics_listen=", "--listen=" + unix_address},
                1, "cannot listen on " + unix_address + ": another process listens there\n");
  EXPECT_EQ(local.Health(""), HealthCheckResponse::SERVING) << "the first keeps its address";
  EXPECT_EQ(tcp.Stop(), 0);
  EXPECT_EQ(local.Stop(), 0);
}

TEST(ExpertProcessTest, UnixSocketFileOfACrashedProcess) {
  TempDir temp;
  const std::string path = temp.File("expert.sock");
  {
    Host crashed({"--listen=unix:" + path});
    ASSERT_NO_FATAL_FAILURE(crashed.Start());
    crashed.process().Signal(SIGKILL);
    EXPECT_EQ(crashed.Exit(), 128 + SIGKILL);
  }
  struct stat found;
  EXPECT_EQ(lstat(path.c_str(), &found), 0) << "a crash leaves the file";
  Host next({"--listen=unix:" + path});
  ASSERT_NO_FATAL_FAILURE(next.Start());
  EXPECT_EQ(next.Stop(), 0);
  EXPECT_NE(lstat(path.c_str(), &found), 0) << "an orderly end does not";
}

TEST(ExpertProcessTest, RefusesWhatCannotWork) {
  TempDir temp;
  const std::string binary = BinaryPath("banyan-expert");
  const std::string model = "--model=" + TinyModel();
  const std::string listen = "--listen=127.0.0.1:0";
  const std::string metrics = "--metrics_listen=";
  ExpectRefused({binary}, 2, "--model is required");
  ExpectRefused({binary, model, "--shard=5"}, 2, "--shard: shard '5': expected I/N, such as 0/2");
  ExpectRefused({binary, model, "--pool_format=int9"}, 2, "--pool_format 'int9': expected auto");
  ExpectRefused({binary, model, "--listen=0.0.0.0:0"}, 2, "--listen: address \"0.0.0.0:0\"");
  ExpectRefused({binary, "--model=" + temp.File("nothing"), listen, metrics}, 1,
                temp.File("nothing") + ": ");
  ExpectRefused({binary, "--model=" + temp.path(), listen, metrics}, 1, temp.path());
  ExpectRefused(
      {binary, model, metrics, "--listen=unix:" + temp.File("no/such/dir.sock")}, 1,
      "cannot listen on unix:" + temp.File("no/such/dir.sock") + ": No such file or directory\n");
  ExpectRefused({binary, model, listen, "--metrics_listen=127.0.0.1"}, 1, "");
}

std::string HttpGet(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &where.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&where), sizeof(where)), 0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string response;
  char buffer[4096];
  for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
    response.append(buffer, static_cast<size_t>(n));
  }
  close(fd);
  return response;
}

TEST(ExpertProcessTest, MetricsTellWhatWasRead) {
  Host host({"--metrics_listen=127.0.0.1:0"});
  ASSERT_NO_FATAL_FAILURE(host.Start());
  std::mt19937 random(5);
  grpc::ClientContext context;
  SetDeadline(context);
  const auto stream = host.stub().Forward(&context);
  ForwardResponse response;
  for (uint64_t sequence = 1; sequence <= 3; ++sequence) {
    ASSERT_TRUE(stream->Write(MakeRequest(sequence, 0, 1, 0, 16, random)));
    ASSERT_TRUE(stream->Read(&response));
  }
  const std::string log = host.process().Log();
  const std::string key = "metrics_listening address=";
  const size_t at = log.find(key);
  ASSERT_NE(at, std::string::npos) << log;
  const std::string rest = log.substr(at + key.size());
  const std::string text = HttpGet(rest.substr(0, rest.find_first_of(" \n")), "/metrics");
  const std::string expert_bytes = std::to_string(3 * 4 * 3 * 64 * 128 * 2);
  for (const std::string& line :
       {std::string("banyan_expert_calls_total 3"), std::string("banyan_expert_rows_total 3"),
        std::string("banyan_expert_row_expert_pairs_total 12"),
        std::string("banyan_expert_experts_read_total 12"),
        "banyan_expert_weight_bytes_total " + expert_bytes,
        std::string("banyan_expert_call_errors_total 0"), std::string("banyan_expert_ready 1"),
        "banyan_expert_loaded_bytes " + std::to_string(4 * 16 * 3 * 64 * 128 * 2),
        std::string("banyan_expert_call_compute_seconds_count 3"),
        std::string("banyan_expert_call_queue_seconds_count 3"), std::string("banyan_build_info{"),
        std::string("process_resident_memory_bytes ")}) {
    EXPECT_NE(text.find("\n" + line), std::string::npos) << line << " not in\n" << text;
  }
  EXPECT_EQ(host.Stop(), 0);
}

}  // namespace
}  // namespace banyan::test
