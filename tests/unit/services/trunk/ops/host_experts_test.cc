// Routed experts that the device reads where the host has them, in every pool format. Rows are on
// both sides of a shared buffer, as RouteToHost leaves them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "common/quant/bf16.h"
#include "common/quant/packed_expert.h"
#include "common/quant/packed_matrix.h"
#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

constexpr PoolFormat kFormats[] = {PoolFormat::kBF16, PoolFormat::kInt8, PoolFormat::kNF4,
                                   PoolFormat::kInt4};
constexpr int32_t kMaxRows = 600;

struct Shape {
  int32_t hidden_size = 0;
  int32_t width = 0;
  int32_t num_experts = 0;
};

// Experts of one layer as a pack has them, and the values that they are rounded to.
struct TestExperts {
  struct Weights {
    std::vector<float> gate, up, down;
  };
  PoolFormat format = PoolFormat::kBF16;
  Shape shape;
  PackedExpertLayout layout;
  std::byte* packed = nullptr;  // in whole pages
  std::vector<Weights> weights;
};

// Some rows and the experts that each has chosen, ascending by expert and row.
struct TestRows {
  int32_t num_rows = 0;
  std::vector<BF16> rows;
  std::vector<float> hidden;
  struct Group {
    int32_t expert = 0;
    int32_t first_pair = 0;
    int32_t num_pairs = 0;
  };
  std::vector<Group> groups;
  std::vector<int32_t> pair_rows;
  std::vector<float> pair_weights;
};

std::vector<float> Decoded(PoolFormat format, const std::byte* packed, int64_t num_outputs,
                           int64_t k) {
  std::vector<float> values(static_cast<size_t>(num_outputs * k));
  UnpackMatrix(format, packed, num_outputs, k, values.data());
  for (float& value : values) value = ToFloat(ToBF16(value));
  return values;
}

// Only row `row` of them, as row 0.
TestRows Alone(const TestRows& all, int32_t row, int32_t hidden_size) {
  TestRows out;
  out.num_rows = 1;
  const auto begin = int64_t{row} * hidden_size;
  out.rows.assign(all.rows.begin() + begin, all.rows.begin() + begin + hidden_size);
  out.hidden.assign(all.hidden.begin() + begin, all.hidden.begin() + begin + hidden_size);
  for (const TestRows::Group& group : all.groups) {
    for (int32_t i = group.first_pair; i < group.first_pair + group.num_pairs; ++i) {
      if (all.pair_rows[static_cast<size_t>(i)] != row) continue;
      out.groups.push_back({group.expert, static_cast<int32_t>(out.pair_rows.size()), 1});
      out.pair_rows.push_back(0);
      out.pair_weights.push_back(all.pair_weights[static_cast<size_t>(i)]);
    }
  }
  return out;
}

class HostExpertsTest : public OpsFixture {
 protected:
  // No backend that computes on arrays of the test: shared buffers have two sides.
  void SetUp() override { RecordProperty("seed", static_cast<int>(kSeed)); }
  void TearDown() override {
    devices_.clear();  // before what they have mapped
    for (std::byte* memory : memory_) std::free(memory);
  }

  TestExperts MakeExperts(PoolFormat format, const Shape& shape) {
    constexpr size_t kPageBytes = 4096;
    const int64_t hidden = shape.hidden_size;
    const int64_t width = shape.width;
    TestExperts out = {.format = format,
                       .shape = shape,
                       .layout = PackedExpertLayoutOf(format, hidden, width),
                       .packed = nullptr,
                       .weights = {}};
    const auto bytes = static_cast<size_t>(out.layout.bytes * shape.num_experts);
    out.packed = static_cast<std::byte*>(
        std::aligned_alloc(kPageBytes, (bytes + kPageBytes - 1) / kPageBytes * kPageBytes));
    memory_.push_back(out.packed);
    std::memset(out.packed, 0, bytes);
    for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
      std::byte* const at = out.packed + expert * out.layout.bytes;
      const auto pack = [&](int64_t offset, int64_t num_outputs, int64_t k) {
        const std::vector<float> values =
            Random(static_cast<size_t>(num_outputs * k), 1 / std::sqrt(static_cast<float>(k)));
        PackMatrix(format, {values.data(), num_outputs, k, k}, at + offset);
        return Decoded(format, at + offset, num_outputs, k);
      };
      TestExperts::Weights weights;
      weights.gate = pack(out.layout.gate_offset, width, hidden);
      weights.up = pack(out.layout.up_offset, width, hidden);
      weights.down = pack(out.layout.down_offset, hidden, width);
      out.weights.push_back(std::move(weights));
    }
    return out;
  }

  // Expert 0 has every row, the next one half of them, and so on; the last has the last row alone.
  TestRows MakeRows(const Shape& shape, int32_t num_rows) {
    TestRows out;
    out.num_rows = num_rows;
    const auto count = static_cast<size_t>(num_rows) * static_cast<size_t>(shape.hidden_size);
    for (const float value : Random(count)) out.rows.push_back(ToBF16(value));
    out.hidden = Random(count);
    for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
      const auto first = static_cast<int32_t>(out.pair_rows.size());
      const bool last = expert > 0 && expert + 1 == shape.num_experts;
      for (int32_t row = 0; row < num_rows; ++row) {
        if (last ? row + 1 == num_rows : (row * 5 + expert) % (1 << expert) == 0) {
          out.pair_rows.push_back(row);
          out.pair_weights.push_back(0.05f + 0.1f * static_cast<float>((row + expert) % 9));
        }
      }
      const int32_t num_pairs = static_cast<int32_t>(out.pair_rows.size()) - first;
      if (num_pairs > 0) out.groups.push_back({expert, first, num_pairs});
    }
    return out;
  }

  // A device of its own that reads these experts; the fixture keeps it.
  Backend* NewDevice(const TestExperts& experts, WorkerPool* pool) {
    devices_.push_back(test::MakeBackend(GetParam(), pool));
    Backend* const device = devices_.back().get();
    const Shape& shape = experts.shape;
    const absl::Status reserved = device->Reserve(
        {.max_rows = kMaxRows,
         .max_segments = 1,
         .max_position = 64,
         .num_experts = shape.num_experts,
         .attention = {},
         .delta_net = {},
         .host_experts = {
             .hidden_size = shape.hidden_size, .width = shape.width, .top_k = shape.num_experts}});
    EXPECT_TRUE(reserved.ok()) << reserved;
    const auto speed = device->MapHost(
        {experts.packed, static_cast<size_t>(experts.layout.bytes * shape.num_experts)});
    EXPECT_TRUE(speed.ok()) << speed.status();
    const size_t values = kMaxRows * static_cast<size_t>(shape.hidden_size);
    rows_ = *device->AllocateShared(values * sizeof(BF16));
    hidden_ = *device->AllocateDevice(values * sizeof(float));
    return device;
  }

  // Of the device that was made last: hidden afterwards.
  std::vector<float> Run(Backend* device, const TestExperts& experts, const TestRows& in) {
    const size_t row_bytes = in.rows.size() * sizeof(BF16);
    const size_t hidden_bytes = in.hidden.size() * sizeof(float);
    EXPECT_TRUE(device->Upload(in.rows.data(), row_bytes, rows_.device).ok());
    EXPECT_TRUE(device->Upload(in.hidden.data(), hidden_bytes, hidden_).ok());
    std::memcpy(rows_.host, in.rows.data(), row_bytes);
    std::vector<HostExpert> groups;
    for (const TestRows::Group& group : in.groups) {
      groups.push_back({experts.packed + group.expert * experts.layout.bytes, group.first_pair,
                        group.num_pairs});
    }
    device->HostExperts(in.num_rows, {.format = experts.format,
                                      .hidden_size = experts.shape.hidden_size,
                                      .width = experts.shape.width,
                                      .rows = rows_,
                                      .experts = groups,
                                      .pair_rows = in.pair_rows,
                                      .pair_weights = in.pair_weights,
                                      .hidden = reinterpret_cast<float*>(hidden_)});
    EXPECT_TRUE(device->Synchronize().ok());
    std::vector<float> out(in.hidden.size());
    EXPECT_TRUE(device->ReadBack(hidden_, hidden_bytes, out.data()).ok());
    return out;
  }

  static void Announce(Backend* device, const TestExperts& experts, int32_t first, int32_t end) {
    std::vector<const std::byte*> next;
    for (int32_t expert = first; expert < end; ++expert) {
      next.push_back(experts.packed + expert * experts.layout.bytes);
    }
    device->WillReadHostExperts(
        {experts.format, experts.shape.hidden_size, experts.shape.width, next});
  }

  // A sum in doubles and how far a device may be from it.
  struct Value {
    double value = 0;
    double bound = 0;
  };

  // w x of k products, each x off by its bound at the most. At most k/8 + 4 roundings of a partial
  // sum lie between a product and the result.
  static Value Dot(const float* w, const Value* x, int64_t k) {
    double sum = 0;
    double magnitude = 0;
    double error = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += w[i] * x[i].value;
      magnitude += std::abs(w[i] * x[i].value);
      error += std::abs(static_cast<double>(w[i])) * x[i].bound;
    }
    const double roundings = (static_cast<double>(k) / 8 + 5) * Roundings();
    return {sum, error + roundings * kEps * (magnitude + error)};
  }

  // silu(gate) * up, rounded to bf16: what lies within the bound of it may round to a neighbour.
  static Value Product(const Value& gate, const Value& up) {
    const double silu = gate.value / (1 + std::exp(-gate.value));
    // silu' is below 1.1 everywhere; the function itself as in elementwise_test.cc.
    const double silu_bound = 1.1 * gate.bound + 8 * kEps * std::abs(silu);
    const double exact = silu * up.value;
    const double bound = std::abs(silu) * up.bound + silu_bound * (std::abs(up.value) + up.bound) +
                         kEps * std::abs(exact) + 1e-36;
    const auto rounded = [](double value) {
      return static_cast<double>(ToFloat(ToBF16(static_cast<float>(value))));
    };
    const double value = rounded(exact);
    return {value, std::max(rounded(exact + bound) - value, value - rounded(exact - bound))};
  }

  void ExpectNear(const TestExperts& experts, const TestRows& in, const std::vector<float>& found) {
    const int64_t hidden_size = experts.shape.hidden_size;
    const int64_t width = experts.shape.width;
    std::vector<Value> sums(in.hidden.size());
    std::vector<double> magnitudes(in.hidden.size());
    for (size_t i = 0; i < sums.size(); ++i) {
      sums[i].value = in.hidden[i];
      magnitudes[i] = std::abs(in.hidden[i]);
    }
    std::vector<Value> x(static_cast<size_t>(hidden_size));
    std::vector<Value> h(static_cast<size_t>(width));
    for (const TestRows::Group& group : in.groups) {
      const TestExperts::Weights& w = experts.weights[static_cast<size_t>(group.expert)];
      for (int32_t i = group.first_pair; i < group.first_pair + group.num_pairs; ++i) {
        const int64_t at = in.pair_rows[static_cast<size_t>(i)] * hidden_size;
        const double weight = in.pair_weights[static_cast<size_t>(i)];
        for (int64_t j = 0; j < hidden_size; ++j) {
          x[static_cast<size_t>(j)].value = ToFloat(in.rows[static_cast<size_t>(at + j)]);
        }
        for (int64_t j = 0; j < width; ++j) {
          h[static_cast<size_t>(j)] =
              Product(Dot(&w.gate[static_cast<size_t>(j * hidden_size)], x.data(), hidden_size),
                      Dot(&w.up[static_cast<size_t>(j * hidden_size)], x.data(), hidden_size));
        }
        for (int64_t j = 0; j < hidden_size; ++j) {
          const Value y = Dot(&w.down[static_cast<size_t>(j * width)], h.data(), width);
          const auto to = static_cast<size_t>(at + j);
          sums[to].value += weight * y.value;
          magnitudes[to] += std::abs(weight * y.value);
          // The product is rounded, and so is the sum.
          sums[to].bound += weight * y.bound + 2 * kEps * magnitudes[to];
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_NEAR(found[i], sums[i].value, sums[i].bound)
          << PoolFormatName(experts.format) << " " << hidden_size << " x " << width << ", "
          << in.num_rows << " rows: value " << i;
    }
  }

  SharedBuffer rows_;
  std::byte* hidden_ = nullptr;
  std::vector<std::unique_ptr<Backend>> devices_;
  std::vector<std::byte*> memory_;
};

TEST_P(HostExpertsTest, AgreesWithDoubles) {
  std::vector<Shape> shapes = {{64, 32, 5}, {128, 96, 4}, {128, 64, 1}};
  if (test::IsCpu(GetParam()))
    shapes.push_back({72, 40, 4});  // panels and chunks that are not full
  for (const Shape& shape : shapes) {
    for (const PoolFormat format : kFormats) {
      const TestExperts experts = MakeExperts(format, shape);
      Backend* const device = NewDevice(experts, &pool_);
      for (const int32_t rows : {1, 3, 16, 17, 64, 65, 130}) {
        const TestRows in = MakeRows(shape, rows);
        ExpectNear(experts, in, Run(device, experts, in));
      }
    }
  }
}

TEST_P(HostExpertsTest, AtTheModelsShape) {
  const Shape shape = {2048, 512, 1};
  for (const PoolFormat format : kFormats) {
    const TestExperts experts = MakeExperts(format, shape);
    Backend* const device = NewDevice(experts, &pool_);
    for (const int32_t rows : {1, 17, 65}) {
      const TestRows in = MakeRows(shape, rows);
      ExpectNear(experts, in, Run(device, experts, in));
    }
  }
}

// Slices of an expert's width have its pairs, and are added up.
TEST_P(HostExpertsTest, SeveralHaveTheSamePairs) {
  const Shape shape = {128, 64, 6};
  for (const PoolFormat format : kFormats) {
    const TestExperts experts = MakeExperts(format, shape);
    Backend* const device = NewDevice(experts, &pool_);
    TestRows in = MakeRows(shape, 130);
    in.groups = {{0, 0, 130}, {1, 0, 130}, {2, 130, 65}, {3, 130, 65}, {4, 195, 33}, {5, 195, 33}};
    ASSERT_GE(in.pair_rows.size(), 228u);
    ExpectNear(experts, in, Run(device, experts, in));
  }
}

// Whoever else is in the step, and however many there are of them.
TEST_P(HostExpertsTest, ARowsBitsDependOnThatRowAlone) {
  for (const Shape& shape : {Shape{64, 32, 5}, {128, 96, 4}, {2048, 512, 2}}) {
    for (const PoolFormat format : kFormats) {
      const TestExperts experts = MakeExperts(format, shape);
      Backend* const device = NewDevice(experts, &pool_);
      const int64_t n = shape.hidden_size;
      for (const int32_t rows : {3, 65, kMaxRows}) {
        if (rows == kMaxRows && n == 2048) continue;
        const TestRows in = MakeRows(shape, rows);
        const std::vector<float> all = Run(device, experts, in);
        for (const int32_t row : {0, 1, rows / 2, rows - 1}) {
          const std::vector<float> expected(all.begin() + row * n, all.begin() + (row + 1) * n);
          const std::vector<float> alone = Run(device, experts, Alone(in, row, shape.hidden_size));
          EXPECT_TRUE(SameBits(alone, expected))
              << PoolFormatName(format) << " " << n << ", row " << row << " of " << rows;
        }
      }
    }
  }
}

TEST_P(HostExpertsTest, AnyNumberOfThreads) {
  const Shape shape = {128, 96, 4};
  for (const PoolFormat format : kFormats) {
    const TestExperts experts = MakeExperts(format, shape);
    const TestRows in = MakeRows(shape, kMaxRows);
    const std::vector<float> expected = Run(NewDevice(experts, &pool_), experts, in);
    for (const int threads : {2, 5}) {
      pools_.push_back(std::make_unique<WorkerPool>(WorkerPool::Options{.num_threads = threads}));
      devices_.clear();  // one at a time maps the experts
      Backend* const device = NewDevice(experts, pools_.back().get());
      EXPECT_TRUE(SameBits(Run(device, experts, in), expected)) << threads << " threads";
    }
  }
}

// Of what is announced some is asked for, all, none, or what was not announced.
TEST_P(HostExpertsTest, WhatIsAnnouncedMakesNoDifference) {
  const Shape shape = {64, 32, 150};  // more than are read ahead
  for (const PoolFormat format : kFormats) {
    const TestExperts experts = MakeExperts(format, shape);
    Backend* const device = NewDevice(experts, &pool_);
    TestRows in = MakeRows({shape.hidden_size, shape.width, 5}, 40);
    in.groups.clear();
    for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
      // 5 of 7 of them, and none of a whole place.
      if (expert % 7 < 5 && expert / 8 != 3) in.groups.push_back({expert, 0, 20});
    }
    const std::vector<float> expected = Run(device, experts, in);
    for (const auto& [first, end] :
         {std::pair{0, 150}, {0, 1}, {0, 8}, {0, 50}, {3, 90}, {100, 150}, {0, 0}}) {
      Announce(device, experts, first, end);
      EXPECT_TRUE(SameBits(Run(device, experts, in), expected))
          << PoolFormatName(format) << ", announced " << first << " to " << end;
    }
    // Others after all, twice; and nothing behind the last of them.
    Announce(device, experts, 0, 150);
    Announce(device, experts, 20, 60);
    EXPECT_TRUE(SameBits(Run(device, experts, in), expected)) << PoolFormatName(format);
    Announce(device, experts, 0, 150);
  }
}

// Batches that have no room for the products of all the pairs of a place.
TEST_P(HostExpertsTest, AnnouncedOnesAreTakenInPieces) {
  const Shape shape = {64, 32, 30};
  for (const PoolFormat format : kFormats) {
    const TestExperts experts = MakeExperts(format, shape);
    Backend* const device = NewDevice(experts, &pool_);
    TestRows in = MakeRows({shape.hidden_size, shape.width, 5}, kMaxRows);
    in.groups.clear();
    for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
      in.groups.push_back({expert, 0, expert % 3 == 0 ? kMaxRows : 1});
    }
    const std::vector<float> expected = Run(device, experts, in);
    Announce(device, experts, 0, shape.num_experts);
    EXPECT_TRUE(SameBits(Run(device, experts, in), expected)) << PoolFormatName(format);
  }
}

// Rows that chose none of the experts stay as they were, and so do all of them if there is none.
TEST_P(HostExpertsTest, LeavesOtherRowsAlone) {
  const Shape shape = {64, 32, 2};
  const TestExperts experts = MakeExperts(PoolFormat::kNF4, shape);
  Backend* const device = NewDevice(experts, &pool_);
  TestRows in = MakeRows(shape, 20);
  in.groups = {{1, 0, 2}};
  in.pair_rows = {3, 17};
  in.pair_weights = {0.5f, 0.25f};
  const std::vector<float> found = Run(device, experts, in);
  ExpectNear(experts, in, found);
  for (size_t i = 0; i < found.size(); ++i) {
    const size_t row = i / static_cast<size_t>(shape.hidden_size);
    if (row != 3 && row != 17) {
      ASSERT_EQ(found[i], in.hidden[i]) << row;
    }
  }
  in.groups.clear();
  in.pair_rows.clear();
  in.pair_weights.clear();
  EXPECT_TRUE(SameBits(Run(device, experts, in), in.hidden));
}

BANYAN_FOR_ALL_BACKENDS(HostExpertsTest);

}  // namespace
}  // namespace banyan::trunk
