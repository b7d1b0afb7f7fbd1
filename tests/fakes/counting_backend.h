// A device that holds what a decoder asks for and computes nothing: it takes pieces of an arena as
// the CUDA backend does, which runs on no machine without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/plan/device_arena.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/ops.h"

namespace banyan::test {

class CountingBackend : public trunk::Backend {
 public:
  // What is set aside, less so much.
  explicit CountingBackend(uint64_t kept_back = 0) : kept_back_(kept_back) {}

  const DeviceArena& planned() const { return planned_; }
  uint64_t used_bytes() const { return used_; }
  bool reserved() const { return reserved_; }

  std::string_view name() const override { return "counting"; }
  absl::Status SetAside(const DeviceArena& pieces) override {
    CHECK(used_ == 0);
    planned_ = pieces;
    return absl::OkStatus();
  }
  absl::StatusOr<std::byte*> AllocateDevice(size_t bytes) override {
    lent_ = 0;
    return Piece(bytes);
  }
  absl::StatusOr<trunk::SharedBuffer> AllocateShared(size_t bytes) override {
    lent_ = 0;
    if (!std::exchange(hands_over_, true)) {
      if (const auto state = Piece(kCudaHandoverBytes); !state.ok()) return state.status();
    }
    const auto device = Piece(bytes);
    if (!device.ok()) return device.status();
    return trunk::SharedBuffer{*device, Memory(bytes)};
  }
  absl::StatusOr<std::shared_ptr<std::byte>> AllocateHost(size_t bytes) override {
    return std::shared_ptr<std::byte>(new std::byte[bytes], std::default_delete<std::byte[]>());
  }
  absl::StatusOr<trunk::Matrix> PlaceMatrix(const TensorView& view) override {
    return Place(view.dtype, view, view.size_bytes(), 0);
  }
  absl::StatusOr<trunk::Matrix> PlaceInt8Matrix(const TensorView& view) override {
    auto placed = PlaceCodes(view);
    // Bytes on their way.
    lent_ = 2 * kCudaCodeStagingBytes;
    if (used_ + lent_ > planned_.bytes()) return Refusal(lent_);
    return placed;
  }
  absl::StatusOr<trunk::Matrix> PlaceInt8Codes(const trunk::Matrix& codes) override {
    return PlaceCodes({DType::kI8, {codes.rows, codes.cols}, codes.data});
  }
  absl::StatusOr<trunk::Matrix> PlaceTable(const TensorView& view) override {
    return trunk::Matrix{view.dtype, static_cast<int32_t>(view.shape.dim(0)),
                         static_cast<int32_t>(view.shape.dim(1)), view.data};
  }
  bool TablesInHostMemory() const override { return true; }
  absl::StatusOr<const float*> PlaceVector(std::span<const float> values) override {
    const auto piece = Piece(values.size_bytes());
    if (!piece.ok()) return piece.status();
    return reinterpret_cast<const float*>(*piece);
  }
  absl::Status Reserve(const OpLimits& limits) override {
    lent_ = 0;
    reserved_ = true;
    for (int32_t part = 0; part < limits.max_parts; ++part) {
      if (const auto table = Piece(CudaStepTableBytes(limits)); !table.ok()) return table.status();
    }
    return Piece(CudaOperationBytes(limits)).status();
  }
  size_t ScratchBytes(const OpLimits& limits) const override { return CudaScratchBytes(limits); }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  void BeginPart(int32_t, const trunk::StepPlan&) override { Never(); }
  void UsePart(int32_t) override { Never(); }
  void CopyToHost(std::span<const trunk::SharedCopy>) override { Never(); }
  void CopyToDevice(std::span<const trunk::SharedCopy>) override { Never(); }
  absl::Status AwaitHost() override { Never(); }
  void ReleaseToDevice() override { Never(); }
  void Embed(const trunk::Matrix&, float*) override { Never(); }
  void Linear(int32_t, std::span<const trunk::LinearArgs>) override { Never(); }
  void RmsNorm(int32_t, int32_t, float, const float*, const float*, float*, float*) override {
    Never();
  }
  void CausalConv(const trunk::CausalConvArgs&) override { Never(); }
  void DeltaNet(const trunk::DeltaNetArgs&) override { Never(); }
  void PrepareAttention(const trunk::AttentionArgs&) override { Never(); }
  void PagedAttention(const trunk::AttentionArgs&) override { Never(); }
  void RouterTopK(int32_t, int32_t, int32_t, bool, const float*, uint16_t*, float*) override {
    Never();
  }
  void Swiglu(int32_t, int32_t, const float*, const float*, float*) override { Never(); }
  void MoeCombine(int32_t, int32_t, const float*, const float*, const float*, float*) override {
    Never();
  }
  void HostExperts(int32_t, const trunk::HostExpertsArgs&) override { Never(); }
  void RoundRows(int32_t, int32_t, const float*, BF16*) override { Never(); }
  void AddRows(int32_t, int32_t, const float*, float*) override { Never(); }
  void GatherRows(std::span<const int32_t>, int32_t, const float*, float*) override { Never(); }
  void TopLogits(int32_t, const trunk::TopLogitsArgs&) override { Never(); }
  void CopyWithin(const void*, size_t, void*) override { Never(); }
  absl::Status ReadBack(const void*, size_t, void*) override { Never(); }
  absl::Status Upload(const void*, size_t, void*) override { Never(); }

 private:
  [[noreturn]] static void Never() {
    CHECK(false);
    std::abort();
  }
  absl::Status Refusal(uint64_t bytes) const {
    return StatusF(absl::StatusCode::kResourceExhausted, "{} bytes wanted beyond {}, planned {}",
                   bytes, used_, planned_.piece_bytes() - kept_back_);
  }
  absl::StatusOr<std::byte*> Piece(size_t bytes) {
    const uint64_t piece = DevicePieceBytes(bytes);
    if (used_ + piece > planned_.piece_bytes() - kept_back_ ||
        used_ + piece + lent_ > planned_.bytes()) {
      return Refusal(bytes);
    }
    used_ += piece;
    return Memory(bytes);
  }
  std::byte* Memory(size_t bytes) {
    memory_.emplace_back(new std::byte[std::max<size_t>(bytes, 1)]);
    return memory_.back().get();
  }
  absl::StatusOr<trunk::Matrix> PlaceCodes(const TensorView& view) {
    const auto rows = static_cast<size_t>(view.shape.dim(0));
    const auto cols = static_cast<int32_t>(view.shape.dim(1));
    return Place(DType::kI8, view, rows * static_cast<size_t>(cols),
                 rows * static_cast<size_t>(Int8Groups(cols)) * sizeof(float));
  }
  absl::StatusOr<trunk::Matrix> Place(DType dtype, const TensorView& view, size_t data_bytes,
                                      size_t scale_bytes) {
    const auto data = Piece(data_bytes);
    if (!data.ok()) return data.status();
    trunk::Matrix out = {dtype, static_cast<int32_t>(view.shape.dim(0)),
                         static_cast<int32_t>(view.shape.dim(1)), *data};
    if (scale_bytes == 0) return out;
    const auto scales = Piece(scale_bytes);
    if (!scales.ok()) return scales.status();
    out.scales = reinterpret_cast<const float*>(*scales);
    return out;
  }

  const uint64_t kept_back_;
  DeviceArena planned_;
  uint64_t used_ = 0;
  uint64_t lent_ = 0;
  bool hands_over_ = false;
  bool reserved_ = false;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
};

}  // namespace banyan::test
