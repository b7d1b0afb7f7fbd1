#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>

#include "common/quant/bf16.h"
#include "services/trunk/ops/int8_rows.h"
#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

// A matrix in bytes at an odd address, and its values.
struct TestMatrix {
  std::vector<std::byte> bytes;
  std::vector<float> scales;
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
    if (dtype == DType::kI8) {
      const int32_t groups = Int8Groups(cols);
      m.scales.resize(static_cast<size_t>(rows) * static_cast<size_t>(groups));
      auto* const codes = reinterpret_cast<int8_t*>(m.bytes.data() + 1);
      QuantizeInt8Rows({.dtype = DType::kF32,
                        .shape = {rows, cols},
                        .data = reinterpret_cast<const std::byte*>(m.values.data())},
                       0, rows, codes, m.scales.data());
      for (int32_t i = 0; i < rows * cols; ++i) {
        const int32_t group = i / cols * groups + i % cols / kInt8GroupColumns;
        m.values[static_cast<size_t>(i)] =
            static_cast<float>(codes[i]) * m.scales[static_cast<size_t>(group)];
      }
      m.matrix = {dtype, rows, cols, m.bytes.data() + 1, m.scales.data()};
      return m;
    }
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

  // Random rows times w.
  void CheckAgainstDoubles(const TestMatrix& w, int32_t rows) {
    const int32_t n = w.matrix.rows;
    const int32_t k = w.matrix.cols;
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
        const double bound = (k / 8.0 + 5) * Roundings() * kEps + SplitLoss();
        ASSERT_NEAR(y[static_cast<size_t>(r * n + j)], sum, bound * magnitude)
            << DTypeName(w.matrix.dtype) << " k " << k << " n " << n << " rows " << rows;
      }
    }
  }
};

TEST_P(LinearTest, AwkwardShapesAgainstDoubles) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kI8}) {
    for (int32_t k : {1, 7, 8, 15, 16, 17, 64, 96, 129, 500, 512}) {
      for (int32_t n : {1, 3, 8, 13, 33}) {
        const TestMatrix w = MakeMatrix(dtype, n, k);
        for (int32_t rows : {1, 2, 3, 4, 5, 6, 7, 12, 19}) {
          ASSERT_NO_FATAL_FAILURE(CheckAgainstDoubles(w, rows));
        }
      }
    }
  }
}

// More columns than are taken at once where rows are arranged first.
TEST_P(LinearTest, ManyColumns) {
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    for (int32_t k : {2048, 2080, 4096, 5000}) {
      const TestMatrix w = MakeMatrix(dtype, 40, k);
      for (int32_t rows : {1, 3, 40, 70}) ASSERT_NO_FATAL_FAILURE(CheckAgainstDoubles(w, rows));
    }
  }
}

// What has no end or is no number stays in its row, and rows of nothing, or of next to nothing,
// give that.
TEST_P(LinearTest, RowsOfExtremes) {
  constexpr int32_t kRows = 6;
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    for (int32_t k : {96, 128, 2112}) {
      const TestMatrix w = MakeMatrix(dtype, 40, k);
      std::vector<float> x = Random(static_cast<size_t>(kRows) * static_cast<size_t>(k));
      const std::vector<float> plain = Run(backend_.get(), w, x, kRows);
      const auto row = [&](int32_t r) {
        return std::span(x).subspan(static_cast<size_t>(r * k), static_cast<size_t>(k));
      };
      row(0)[70] = NAN;
      row(1)[3] = -INFINITY;
      std::fill(row(3).begin(), row(3).end(), 0.0f);
      for (float& value : row(4)) value *= 1e-36f;
      for (float& value : row(5)) value *= 1e30f;
      const std::vector<float> y = Run(backend_.get(), w, x, kRows);
      for (size_t j = 0; j < 40; ++j) {
        EXPECT_TRUE(std::isnan(y[j])) << k;
        EXPECT_FALSE(std::isfinite(y[40 + j])) << k;
        EXPECT_EQ(y[80 + j], plain[80 + j]) << k;
        EXPECT_EQ(y[120 + j], 0) << k;
        EXPECT_LT(std::abs(y[160 + j]), 1e-32f) << k;
        EXPECT_NEAR(y[200 + j] * 1e-30f, plain[200 + j], 1e-3f) << k;
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
    for (DType dtype : {DType::kBF16, DType::kI8}) {
      const TestMatrix w = MakeMatrix(dtype, n, k);
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
              << rows << " rows, " << threads << " threads, " << n << " x " << k << " "
              << DTypeName(dtype);
        }
      }
    }
  }
}

TEST_P(LinearTest, SeveralMatricesInOneCall) {
  const TestMatrix a = MakeMatrix(DType::kBF16, 300, 257);
  const TestMatrix b = MakeMatrix(DType::kF32, 1, 257);
  const TestMatrix c = MakeMatrix(DType::kI8, 77, 257);
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

// Of both kinds at once, as router and shared expert: each as if alone.
TEST_P(LinearTest, CodesBesideBf16InOneCall) {
  const TestMatrix a = MakeMatrix(DType::kBF16, 70, 192);
  const TestMatrix b = MakeMatrix(DType::kI8, 33, 192);
  const TestMatrix c = MakeMatrix(DType::kBF16, 1, 192);
  const TestMatrix d = MakeMatrix(DType::kI8, 130, 192);
  for (int32_t rows : {1, 9, 16, 17, 70}) {
    const auto r = static_cast<size_t>(rows);
    const std::vector<float> x = Random(r * 192);
    std::vector<float> ya(r * 70), yb(r * 33), yc(r), yd(r * 130);
    const LinearArgs calls[] = {{.x = x.data(), .w = &a.matrix, .y = ya.data()},
                                {.x = x.data(), .w = &b.matrix, .y = yb.data()},
                                {.x = x.data(), .w = &c.matrix, .y = yc.data()},
                                {.x = x.data(), .w = &d.matrix, .y = yd.data()}};
    backend_->Linear(rows, calls);
    EXPECT_TRUE(SameBits(ya, Run(backend_.get(), a, x, rows))) << rows;
    EXPECT_TRUE(SameBits(yb, Run(backend_.get(), b, x, rows))) << rows;
    EXPECT_TRUE(SameBits(yc, Run(backend_.get(), c, x, rows))) << rows;
    EXPECT_TRUE(SameBits(yd, Run(backend_.get(), d, x, rows))) << rows;
  }
}

// More outputs than a GPU has multiprocessors for, of columns that its clusters of CTAs share out:
// each row as alone, and as beside many.
TEST_P(LinearTest, CodesOfManyOutputs) {
  struct Case {
    int32_t k;
    int32_t most_rows;
  };
  for (const auto [k, most] : {Case{2048, 40}, Case{4096, 20}}) {
    const TestMatrix codes = MakeMatrix(DType::kI8, 2201, k);
    const TestMatrix few = MakeMatrix(DType::kBF16, 70, k);
    const TestMatrix more = MakeMatrix(DType::kI8, 129, k);
    ASSERT_NO_FATAL_FAILURE(CheckAgainstDoubles(codes, 1));
    const auto outputs = [&](const std::vector<float>& x, int32_t rows) {
      const auto r = static_cast<size_t>(rows);
      std::vector<float> yc(r * 2201, NAN), yf(r * 70, NAN), ym(r * 129, NAN);
      const LinearArgs calls[] = {{.x = x.data(), .w = &codes.matrix, .y = yc.data()},
                                  {.x = x.data(), .w = &few.matrix, .y = yf.data()},
                                  {.x = x.data(), .w = &more.matrix, .y = ym.data()}};
      backend_->Linear(rows, calls);
      std::vector<std::vector<float>> of_rows(r);
      for (size_t i = 0; i < r; ++i) {
        const auto add = [&](const std::vector<float>& y, size_t n) {
          of_rows[i].insert(of_rows[i].end(), y.data() + i * n, y.data() + (i + 1) * n);
        };
        add(yc, 2201);
        add(yf, 70);
        add(ym, 129);
      }
      return of_rows;
    };
    const std::vector<float> x = Random(static_cast<size_t>(most) * static_cast<size_t>(k));
    const std::vector<std::vector<float>> expected = outputs(x, most);
    for (int32_t rows : {1, 5, 16}) {
      const std::vector<std::vector<float>> found = outputs(x, rows);
      for (size_t r = 0; r < found.size(); ++r) {
        ASSERT_TRUE(SameBits(found[r], expected[r]))
            << k << " columns, row " << r << " of " << rows;
      }
    }
    // The last of them alone.
    const std::vector<float> last = {x.begin() + int64_t{15} * k, x.begin() + int64_t{16} * k};
    EXPECT_TRUE(SameBits(outputs(last, 1)[0], expected[15]));
  }
}

TEST_P(LinearTest, SwigluAndProductAtOnce) {
  for (DType dtype : {DType::kBF16, DType::kI8, DType::kF32}) {
    for (int32_t k : {96, 130, 512}) {
      const TestMatrix w = MakeMatrix(dtype, 75, k);
      for (int32_t rows : {1, 2, 9, 16, 40, 65}) {
        const auto count = static_cast<size_t>(rows) * static_cast<size_t>(k);
        std::vector<float> gate = Random(count);
        const std::vector<float> up = Random(count);
        std::vector<float> product(count);
        backend_->Swiglu(rows, k, gate.data(), up.data(), product.data());
        std::vector<float> y(static_cast<size_t>(rows) * 75, NAN);
        backend_->SwigluLinear(rows, gate.data(), up.data(), w.matrix, y.data());
        EXPECT_TRUE(SameBits(y, Run(backend_.get(), w, product, rows)))
            << DTypeName(dtype) << " " << k << ", " << rows << " rows";
      }
    }
  }
}

// What a backend makes of a matrix is what int8_rows.h says, whatever the device.
TEST_P(LinearTest, PlacesCodes) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    TestMatrix w = MakeMatrix(dtype, 37, 200);
    const TensorView view = {.dtype = dtype, .shape = {37, 200}, .data = w.matrix.data};
    std::vector<int8_t> codes(37 * 200);
    std::vector<float> scales(37 * 4);
    QuantizeInt8Rows(view, 0, 37, codes.data(), scales.data());
    const auto placed = backend_->PlaceInt8Matrix(view);
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_EQ(placed->dtype, DType::kI8);
    std::vector<int8_t> found(codes.size());
    std::vector<float> found_scales(scales.size());
    ASSERT_TRUE(backend_->ReadBack(placed->data, found.size(), found.data()).ok());
    ASSERT_TRUE(
        backend_->ReadBack(placed->scales, found_scales.size() * 4, found_scales.data()).ok());
    EXPECT_EQ(found, codes);
    EXPECT_TRUE(SameBits(found_scales, scales));
  }
}

TEST(Int8RowsTest, RoundsToEvenWithinHalfAScale) {
  // The largest of the first group is 127: its scale is 1, and halves go to the even code.
  std::vector<float> row(70, 0.0f);
  row[0] = 127;
  row[1] = -126.5f;
  row[2] = 0.5f;
  row[3] = 1.5f;
  row[64] = -2;  // a group of its own, six columns wide
  row[65] = 1;
  std::vector<int8_t> codes(70, 1);
  float scales[2];
  QuantizeInt8Rows({.dtype = DType::kF32,
                    .shape = {1, 70},
                    .data = reinterpret_cast<const std::byte*>(row.data())},
                   0, 1, codes.data(), scales);
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 2.0f / 127);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[1], -126);
  EXPECT_EQ(codes[2], 0);
  EXPECT_EQ(codes[3], 2);
  EXPECT_EQ(codes[4], 0);
  EXPECT_EQ(codes[64], -127);
  EXPECT_EQ(codes[65], 64);
}

TEST(Int8RowsTest, ZeroAndBrokenGroupsGiveCodes) {
  std::vector<float> row(128, 0.0f);
  row[64] = std::numeric_limits<float>::quiet_NaN();
  row[65] = std::numeric_limits<float>::infinity();
  row[66] = -std::numeric_limits<float>::infinity();
  std::vector<int8_t> codes(128, 1);
  float scales[2];
  QuantizeInt8Rows({.dtype = DType::kF32,
                    .shape = {1, 128},
                    .data = reinterpret_cast<const std::byte*>(row.data())},
                   0, 1, codes.data(), scales);
  EXPECT_EQ(scales[0], 0.0f);
  EXPECT_EQ(codes[0], 0);
  EXPECT_EQ(scales[1], std::numeric_limits<float>::infinity());
}

BANYAN_FOR_ALL_BACKENDS(LinearTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LinearTest);
INSTANTIATE_TEST_SUITE_P(Tiles, LinearTest, testing::ValuesIn(test::TiledBackends()),
                         [](const testing::TestParamInfo<std::string>& param) {
                           return param.param;
                         });

}  // namespace
}  // namespace banyan::trunk
