#include "tests/kernels/expert/ffn_oracle.h"

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/base/check.h"

namespace banyan::expert::testing {
namespace {

constexpr double kUnit = 0x1p-24;  // half a unit in the last place of f32, relative
constexpr double kTiny = 0x1p-126;

// Of a dot product of length k in `lanes` chains: |error| <= Gamma * sum |w x|.
double Gamma(int64_t k, const FfnKernels& kernels) {
  const double steps = static_cast<double>((k + kernels.lanes - 1) / kernels.lanes);
  const double roundings =
      steps * (kernels.fused ? 1 : 2) + std::log2(static_cast<double>(kernels.lanes)) + 1;
  return roundings * kUnit / (1 - roundings * kUnit);
}

DType DTypeOf(WeightType type) { return type == WeightType::kBF16 ? DType::kBF16 : DType::kF32; }

}  // namespace

OracleExpert OracleOf(const ExpertWeights& weights, int64_t hidden_size, int64_t width) {
  const auto matrix = [](const WeightMatrix& m, int64_t rows, int64_t cols) {
    return ReferenceMatrix{m.data, DTypeOf(m.type), rows, cols, m.row_stride_bytes};
  };
  return {matrix(weights.gate_proj, width, hidden_size),
          matrix(weights.up_proj, width, hidden_size),
          matrix(weights.down_proj, hidden_size, width)};
}

OracleValues OracleHidden(const OracleExpert& expert, const std::vector<double>& x,
                          const FfnKernels& kernels) {
  const double gamma = Gamma(static_cast<int64_t>(x.size()), kernels);
  const std::vector<double> gate = ReferenceMatVec(expert.gate_proj, x);
  const std::vector<double> up = ReferenceMatVec(expert.up_proj, x);
  const std::vector<double> abs_gate = ReferenceAbsMatVec(expert.gate_proj, x);
  const std::vector<double> abs_up = ReferenceAbsMatVec(expert.up_proj, x);
  OracleValues out;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double gate_error = gamma * abs_gate[i] + kTiny;
    const double up_error = gamma * abs_up[i] + kTiny;
    // |silu'| <= 1.1; 4 units in the last place are 8 half ones.
    const double silu = ReferenceSilu(gate[i]);
    double silu_error = 1.1 * gate_error;
    silu_error += 8 * kUnit * (std::abs(silu) + silu_error) + 3e-37;
    double error = silu_error * (std::abs(up[i]) + up_error) + std::abs(silu) * up_error;
    error += kUnit * (std::abs(silu * up[i]) + error) + kTiny;
    out.value.push_back(silu * up[i]);
    out.bound.push_back(error);
  }
  return out;
}

OracleValues OracleDown(const OracleExpert& expert, const OracleValues& hidden,
                        const FfnKernels& kernels) {
  const double gamma = Gamma(static_cast<int64_t>(hidden.value.size()), kernels);
  OracleValues out;
  out.value = ReferenceMatVec(expert.down_proj, hidden.value);
  const std::vector<double> abs_sum = ReferenceAbsMatVec(expert.down_proj, hidden.value);
  const std::vector<double> carried = ReferenceAbsMatVec(expert.down_proj, hidden.bound);
  for (size_t i = 0; i < out.value.size(); ++i) {
    out.bound.push_back(carried[i] * (1 + gamma) + gamma * abs_sum[i] + kTiny);
  }
  return out;
}

OracleValues OracleWeightedSum(const std::vector<OracleValues>& values,
                               const std::vector<float>& weights) {
  CHECK(!values.empty() && values.size() == weights.size());
  OracleValues out;
  out.value.assign(values[0].value.size(), 0.0);
  out.bound.assign(values[0].value.size(), kTiny);
  const double roundings = static_cast<double>(values.size()) + 1;
  for (size_t e = 0; e < values.size(); ++e) {
    for (size_t i = 0; i < out.value.size(); ++i) {
      const double weight = weights[e];
      const double error = std::abs(weight) * values[e].bound[i];
      out.value[i] += weight * values[e].value[i];
      out.bound[i] += error + roundings * kUnit * (std::abs(weight * values[e].value[i]) + error);
    }
  }
  return out;
}

RandomExpert::RandomExpert(int64_t hidden_size, int64_t width, WeightType type, int64_t row_padding,
                           std::mt19937& random) {
  weights_.gate_proj = MakeMatrix(width, hidden_size, type, row_padding, random);
  weights_.up_proj = MakeMatrix(width, hidden_size, type, row_padding, random);
  weights_.down_proj = MakeMatrix(hidden_size, width, type, row_padding, random);
}

RandomExpert::~RandomExpert() {
  for (const Mapping& mapping : mappings_) munmap(mapping.base, mapping.bytes);
}

WeightMatrix RandomExpert::MakeMatrix(int64_t rows, int64_t cols, WeightType type,
                                      int64_t row_padding, std::mt19937& random) {
  const int64_t size = WeightBytes(type);
  const int64_t stride = (cols + row_padding) * size;
  const int64_t used = (rows - 1) * stride + cols * size;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t data_bytes = (static_cast<size_t>(used) + 1 + page - 1) / page * page;
  const size_t bytes = data_bytes + page;
  void* const base =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(base != MAP_FAILED);
  mappings_.push_back({base, bytes});
  auto* const end = static_cast<std::byte*>(base) + data_bytes;
  CHECK(mprotect(end, page, PROT_NONE) == 0);
  std::byte* const data = end - used - 1;
  std::memset(base, 0xff, data_bytes);  // NaN in both types
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(cols)));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float value = normal(random);
      std::byte* const at = data + r * stride + c * size;
      if (type == WeightType::kBF16) {
        const BF16 bf16 = ToBF16(value);
        std::memcpy(at, &bf16, 2);
      } else {
        std::memcpy(at, &value, 4);
      }
    }
  }
  return {data, stride, type};
}

}  // namespace banyan::expert::testing
