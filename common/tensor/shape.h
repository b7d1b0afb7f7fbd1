// Dimensions of a tensor, outermost first. A value type; an empty shape is a scalar.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace banyan {

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : dims_(dims) {}
  explicit Shape(std::vector<int64_t> dims) : dims_(std::move(dims)) {}

  int rank() const { return static_cast<int>(dims_.size()); }
  int64_t dim(int i) const { return dims_[static_cast<size_t>(i)]; }
  const std::vector<int64_t>& dims() const { return dims_; }

  // Product of the dimensions. Whoever reads dimensions from a file has checked it for overflow.
  int64_t num_elements() const {
    int64_t n = 1;
    for (int64_t d : dims_) n *= d;
    return n;
  }

  // "[2048, 512]"
  std::string ToString() const {
    std::string text = "[";
    for (size_t i = 0; i < dims_.size(); ++i) {
      if (i > 0) text += ", ";
      text += std::to_string(dims_[i]);
    }
    return text + "]";
  }

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::vector<int64_t> dims_;
};

}  // namespace banyan
