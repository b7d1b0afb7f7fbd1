#include "services/trunk/ops/cuda/host_expert_stream.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/quant/nf4.h"
#include "common/quant/packed_expert.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {
namespace {

PackedExpertLayout LayoutOf(const HostExpertsArgs& args) {
  return PackedExpertLayoutOf(args.format, args.hidden_size, args.width);
}

bool Decodes(const HostExpertsArgs& args) { return args.format != PoolFormat::kBF16; }

const uint16_t* As16(const std::byte* p) { return reinterpret_cast<const uint16_t*>(p); }

}  // namespace

HostExpertStream::HostExpertStream(const OpLimits& limits, cudaStream_t stream)
    : shape_(limits.host_experts), max_rows_(limits.max_rows), stream_(stream), ring_(stream) {}

absl::StatusOr<std::unique_ptr<HostExpertStream>> HostExpertStream::Create(const OpLimits& limits,
                                                                           DeviceMemory* memory,
                                                                           std::byte* work,
                                                                           cudaStream_t stream) {
  CHECK(limits.host_experts.hidden_size % 8 == 0 && limits.host_experts.width % 8 == 0);
  std::unique_ptr<HostExpertStream> made(new HostExpertStream(limits, stream));
  RETURN_IF_ERROR(made->Open(memory, work));
  return made;
}

absl::Status HostExpertStream::Open(DeviceMemory* memory, std::byte* work) {
  RETURN_IF_ERROR(ring_.Open(shape_, memory));
  const size_t list_bytes = CudaHostExpertListBytes(shape_, max_rows_);
  ASSIGN_OR_RETURN(lists_, memory->Allocate(list_bytes));
  ASSIGN_OR_RETURN(host_lists_, memory->AllocatePinned(list_bytes));
  decoded_ = reinterpret_cast<uint16_t*>(work);
  products_ = decoded_ + CudaDecodedExpertElements(shape_) * kMaxHostExperts;
  return absl::OkStatus();
}

HostExpertStream::~HostExpertStream() {
  ring_.Wait();
  for (void* memory : mapped_) cudaHostUnregister(memory);
}

void HostExpertStream::Abandon() {
  mapped_.clear();
  ring_.Abandon();
}

absl::StatusOr<double> HostExpertStream::Map(std::span<const std::byte> memory) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(memory.data()) / page * page;
  const auto end =
      (reinterpret_cast<uintptr_t>(memory.data()) + memory.size() + page - 1) / page * page;
  int device = 0;
  int read_only = 0;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, device);
  }
  void* const mapped = reinterpret_cast<void*>(first);  // NOLINT(performance-no-int-to-ptr)
  const cudaError_t error = cudaHostRegister(
      mapped, end - first, read_only != 0 ? cudaHostRegisterReadOnly : cudaHostRegisterDefault);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the device is well
    return CudaStatus(error, fmt::format("cudaHostRegister of {} bytes", end - first));
  }
  mapped_.push_back(mapped);
  ASSIGN_OR_RETURN(const double rate, ring_.MeasureRate(memory));
  bytes_per_second_ = std::max(bytes_per_second_, rate);
  return bytes_per_second_;
}

cudaError_t HostExpertStream::QueueLists(const HostExpertsArgs& args) {
  const size_t pairs = args.pair_rows.size();
  CHECK(args.pair_weights.size() == pairs &&
        pairs <= static_cast<size_t>(max_rows_) * static_cast<size_t>(shape_.top_k));
  const size_t bytes = pairs * sizeof(int32_t);
  std::memcpy(host_lists_, args.pair_rows.data(), bytes);
  std::memcpy(host_lists_ + bytes, args.pair_weights.data(), bytes);
  return cudaMemcpyAsync(lists_, host_lists_, 2 * bytes, cudaMemcpyHostToDevice, stream_);
}

// Where a batch's matrices lie: decoded, or as they came.
ExpertBatch HostExpertStream::BatchOf(const HostExpertsArgs& args,
                                      std::span<const HostExpert> experts, const uint16_t* rows,
                                      const HostExpertRing::Batch& packed) const {
  const PackedExpertLayout layout = LayoutOf(args);
  const int32_t first_pair = experts[0].first_pair;
  const auto* const pair_rows = reinterpret_cast<const int32_t*>(lists_);
  const auto* const pair_weights =
      reinterpret_cast<const float*>(pair_rows + args.pair_rows.size());
  const bool decoded = Decodes(args);
  const int32_t gate_stride =
      decoded ? static_cast<int32_t>(PaddedInputs(args.hidden_size)) : args.hidden_size;
  const int32_t down_stride = decoded ? static_cast<int32_t>(PaddedInputs(args.width)) : args.width;
  const int64_t gate_elements = PaddedElements(args.width, args.hidden_size);
  ExpertBatch batch;
  batch.num_experts = static_cast<int>(experts.size());
  batch.rows = rows;
  batch.hidden_size = args.hidden_size;
  batch.pair_rows = pair_rows + first_pair;
  batch.pair_weights = pair_weights + first_pair;
  batch.product_stride = static_cast<int32_t>(PaddedInputs(args.width));
  batch.hidden = args.hidden;
  uint16_t* products = products_;
  for (size_t i = 0; i < experts.size(); ++i) {
    ExpertBatch::Expert& expert = batch.experts[i];
    expert.first_pair = experts[i].first_pair - first_pair;
    expert.num_pairs = experts[i].num_pairs;
    expert.products = products;
    products += int64_t{expert.num_pairs} * batch.product_stride;
    const std::byte* const at = packed.experts[i];
    const uint16_t* const gate = decoded ? Decoded(i) : As16(at + layout.gate_offset);
    const uint16_t* const up = decoded ? gate + gate_elements : As16(at + layout.up_offset);
    const uint16_t* const down = decoded ? up + gate_elements : As16(at + layout.down_offset);
    expert.gate = {gate, args.width, args.hidden_size, gate_stride};
    expert.up = {up, args.width, args.hidden_size, gate_stride};
    expert.down = {down, args.hidden_size, args.width, down_stride};
  }
  return batch;
}

DecodeLaunch HostExpertStream::DecodeOf(const HostExpertsArgs& args,
                                        const HostExpertRing::Batch& packed) const {
  const PackedExpertLayout layout = LayoutOf(args);
  const auto panels = [](int32_t outputs) { return static_cast<int32_t>(NumPanels(outputs)); };
  const auto chunks = [](int32_t k) { return static_cast<int32_t>(NumChunks(k)); };
  const int64_t gate_elements = PaddedElements(args.width, args.hidden_size);
  DecodeLaunch decode;
  decode.format = args.format;
  decode.num_experts = static_cast<int>(packed.num_experts);
  std::copy(std::begin(kNF4Table), std::end(kNF4Table), decode.nf4_table);
  for (size_t i = 0; i < packed.num_experts; ++i) {
    decode.experts[i] = reinterpret_cast<const unsigned char*>(packed.experts[i]);
    decode.decoded[i] = Decoded(i);
  }
  decode.matrices[0] = {layout.gate_offset, 0, panels(args.width), chunks(args.hidden_size)};
  decode.matrices[1] = {layout.up_offset, gate_elements, panels(args.width),
                        chunks(args.hidden_size)};
  decode.matrices[2] = {layout.down_offset, 2 * gate_elements, panels(args.hidden_size),
                        chunks(args.width)};
  return decode;
}

cudaError_t HostExpertStream::QueueBatch(const HostExpertsArgs& args,
                                         std::span<const HostExpert> experts, const uint16_t* rows,
                                         const HostExpertRing::Batch& packed) {
  cudaError_t error = cudaSuccess;
  if (Decodes(args)) {
    error = DecodeExperts(DecodeOf(args, packed), stream_);
    // The next ones may come while these are multiplied.
    if (error == cudaSuccess) error = ring_.Empty(packed);
  }
  const ExpertBatch batch = BatchOf(args, experts, rows, packed);
  if (error == cudaSuccess) error = ExpertGateUp(batch, stream_);
  if (error == cudaSuccess) error = ExpertDown(batch, stream_);
  if (error == cudaSuccess && !Decodes(args)) error = ring_.Empty(packed);
  return error;
}

void HostExpertStream::Queue(const HostExpertsArgs& args, const uint16_t* rows, Outcome done) {
  if (args.experts.empty()) return;
  CHECK(args.hidden_size == shape_.hidden_size && args.width <= shape_.width);
  const auto expert_bytes = static_cast<size_t>(LayoutOf(args).bytes);
  cudaError_t error = QueueLists(args);
  for (size_t first = 0; first < args.experts.size() && error == cudaSuccess;) {
    // As many as one launch takes, and of pairs as many as there is room for their products.
    size_t end = first;
    int64_t pairs = 0;
    while (end < args.experts.size() && end - first < kMaxHostExperts &&
           pairs + args.experts[end].num_pairs <= max_rows_) {
      pairs += args.experts[end++].num_pairs;
    }
    CHECK(end > first);
    HostExpertRing::Batch packed;
    error = ring_.Take(args.experts.subspan(first, end - first), expert_bytes, &packed);
    const auto experts = args.experts.subspan(first, packed.num_experts);
    if (error == cudaSuccess) error = QueueBatch(args, experts, rows, packed);
    done(error, static_cast<int32_t>(pairs));
    first += packed.num_experts;
  }
}

cudaError_t HostExpertStream::ReadAhead(const HostExpertWeights& next) {
  const PackedExpertLayout layout = PackedExpertLayoutOf(next.format, next.hidden_size, next.width);
  return ring_.ReadAhead(next.experts, static_cast<size_t>(layout.bytes));
}

}  // namespace banyan::trunk::cuda
