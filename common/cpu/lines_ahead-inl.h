// Asking the memory for what runs next, evenly over the work of now. Included inside a tier's
// target region and namespace; no include guard on purpose; the includer has included <cstddef> and
// <cstdint>.

// The rows of what runs next: row i at base + (rows == nullptr ? i : rows[i]) * stride, into the
// second cache level (ffn_tile-inl.h). A whole number of lines a step, if that is sooner than
// needed: an uneven number is mispredicted (20 ns a step on a Xeon, model 207).
class RowsAhead {
 public:
  RowsAhead() = default;
  // row_bytes of each row over `steps` steps.
  RowsAhead(const std::byte* base, const int32_t* rows, int64_t stride, int32_t num_rows,
            int64_t row_bytes, int64_t steps)
      : base_(base),
        rows_(rows),
        stride_(stride),
        num_rows_(num_rows),
        row_bytes_(row_bytes),
        lines_(steps > 1 ? (num_rows * ((row_bytes + 63) / 64) + steps - 1) / steps
                         : num_rows * ((row_bytes + 63) / 64)) {}
  inline __attribute__((always_inline)) void Step(int64_t steps = 1) {
    for (int64_t n = lines_ * steps; n > 0 && row_ < num_rows_; --n) {
      const int64_t row = rows_ == nullptr ? row_ : rows_[row_];
      __builtin_prefetch(base_ + row * stride_ + at_, /*rw=*/0, /*locality=*/1);
      at_ += 64;
      if (at_ < row_bytes_) continue;
      at_ = 0;
      ++row_;
    }
  }

 private:
  const std::byte* base_ = nullptr;
  const int32_t* rows_ = nullptr;
  int64_t stride_ = 0;
  int32_t num_rows_ = 0;
  int64_t row_bytes_ = 0;
  int64_t lines_ = 0;
  int32_t row_ = 0;
  int64_t at_ = 0;
};
