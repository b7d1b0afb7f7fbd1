#include <cmath>
#include <cstddef>

#include "common/quant/bf16.h"
#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

// A matrix in bytes at an odd address, and its values.
struct TestMatrix {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  Matrix matrix;
};

class LinearTest : public OpsFixture {
 protected:
  TestMatrix MakeMatrix(DType dtype, int32_t rows, int32_t cols) {
    TestMatrix m;
    m.values = Random(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    const size_t size = DTypeSizeBytes(dtype);
    m.bytes.resize(m.values.size() * size + 1);
    for (size_t i = 0; i < m.values.size(); ++i) {
      if (dtype == DType::kBF16) {
        const BF16 value = ToBF16(m.values[i]);
        m.values[i] = ToFloat(value);
        std::memcpy(&m.bytes[1 + i * size], &value, size);
      } else {
        std::memcpy(&m.bytes[1 + i * size], &m.values[i], size);
      }
    }
    m.matrix = {dtype, rows, cols, m.bytes.data() + 1};
    return m;
  }

  static std::vector<float> Run(Backend* backend, const TestMatrix& w, const std::vector<float>& x,
                                int32_t num_rows) {
    std::vector<float> y(static_cast<size_t>(num_rows) * static_cast<size_t>(w.matrix.rows), NAN);
    const LinearArgs calls[] = {{.x = x.data(), .w = &w.matrix, .y = y.data()}};
    backend->Linear(num_rows, calls);
    return y;
  }
};

TEST_P(LinearTest, AwkwardShapesAgainstDoubles) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    for (int32_t k : {1, 7, 8, 15, 16, 17, 64, 129, 500}) {
      for (int32_t n : {1, 3, 8, 13, 33}) {
        const TestMatrix w = MakeMatrix(dtype, n, k);
        for (int32_t rows : {1, 2, 3, 4, 5, 6, 7, 12, 19}) {
          const std::vector<float> x = Random(static_cast<size_t>(rows) * static_cast<size_t>(k));
          const std::vector<float> y = Run(backend_.get(), w, x, rows);
          for (int32_t r = 0; r < rows; ++r) {
            for (int32_t j = 0; j < n; ++j) {
              double sum = 0;
              double magnitude = 0;
              for (int32_t i = 0; i < k; ++i) {
                const double term = static_cast<double>(x[static_cast<size_t>(r * k + i)]) *
                                    w.values[static_cast<size_t>(j * k + i)];
                sum += term;
                magnitude += std::abs(term);
              }
              // At most k/8 + 4 roundings of a partial sum lie between a product and the result.
              const double bound = (k / 8.0 + 5) * Roundings() * kEps;
              ASSERT_NEAR(y[static_cast<size_t>(r * n + j)], sum, bound * magnitude)
                  << DTypeName(dtype) << " k " << k << " n " << n << " rows " << rows;
            }
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, ARowsBitsDependOnThatRowAlone) {
  struct Case {
    int32_t n;
    int32_t k;
  };
  for (const auto [n, k] : {Case{203, 301}, Case{203, 320}, Case{203, 64}, Case{2203, 96}}) {
    const TestMatrix w = MakeMatrix(DType::kBF16, n, k);
    const int32_t most = 259;
    const std::vector<float> x = Random(static_cast<size_t>(most) * static_cast<size_t>(k));
    std::vector<float> expected;
    for (int64_t r = 0; r < most; ++r) {
      const std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
      const std::vector<float> y = Run(backend_.get(), w, row, 1);
      expected.insert(expected.end(), y.begin(), y.end());
    }
    for (int threads : {1, 2, 5}) {
      Backend* backend = BackendWithThreads(threads);
      for (int32_t rows : {1, 2, 3, 5, 6, 8, 9, 11, 17, 64, 65, 128, 131, most}) {
        const std::vector<float> y = Run(backend, w, x, rows);
        EXPECT_TRUE(SameBits(y, {expected.begin(), expected.begin() + int64_t{rows} * n}))
            << rows << " rows, " << threads << " threads, " << n << " x " << k;
      }
    }
  }
}

TEST_P(LinearTest, SeveralMatricesInOneCall) {
  const TestMatrix a = MakeMatrix(DType::kBF16, 300, 257);
  const TestMatrix b = MakeMatrix(DType::kF32, 1, 257);
  const TestMatrix c = MakeMatrix(DType::kBF16, 77, 257);
  const std::vector<float> x = Random(9 * 257);
  std::vector<float> ya(9 * 300), yb(9), yc(9 * 77);
  const LinearArgs calls[] = {{.x = x.data(), .w = &a.matrix, .y = ya.data()},
                              {.x = x.data(), .w = &b.matrix, .y = yb.data()},
                              {.x = x.data(), .w = &c.matrix, .y = yc.data()}};
  BackendWithThreads(3)->Linear(9, calls);
  EXPECT_TRUE(SameBits(ya, Run(backend_.get(), a, x, 9)));
  EXPECT_TRUE(SameBits(yb, Run(backend_.get(), b, x, 9)));
  EXPECT_TRUE(SameBits(yc, Run(backend_.get(), c, x, 9)));
}

BANYAN_FOR_ALL_BACKENDS(LinearTest);

}  // namespace
}  // namespace banyan::trunk
