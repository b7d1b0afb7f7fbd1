#include "common/plan/trunk_arena.h"

#include "common/plan/op_scratch.h"

namespace banyan {

DeviceArena TrunkArena(const ModelConfig& config, const DecoderOptions& options,
                       const TrunkWeightSizes& weights) {
  const OpLimits limits = OpLimitsOf(config, options);
  DeviceArena arena;
  for (const uint64_t bytes : weights.matrices) arena.Add(bytes);
  for (const uint64_t bytes : weights.vectors) arena.Add(bytes);
  // Their last matrix is made to codes before anything else comes.
  if (options.trunk_format == TrunkFormat::kInt8) arena.AddForNow(2 * kCudaCodeStagingBytes);
  arena.Add(KvPageBytes(limits.attention) * static_cast<uint64_t>(options.num_pages),
            2 * int64_t{CountMixers(config, MixerKind::kFullAttention)});
  const int32_t linear = CountMixers(config, MixerKind::kLinearAttention);
  const auto slots =
      static_cast<uint64_t>(options.num_slots + options.num_state_copies) * sizeof(float);
  arena.Add(slots * static_cast<uint64_t>(limits.delta_net.state_floats()), linear);
  arena.Add(slots * static_cast<uint64_t>(limits.delta_net.conv_state_floats()), linear);
  ActivationSizesOf(config, options).ForEach([&arena](int64_t elements, size_t each) {
    arena.Add(static_cast<uint64_t>(elements) * each);
  });
  ForEachCudaScratch(limits, [&arena](size_t bytes) { arena.Add(bytes); });
  return arena;
}

}  // namespace banyan
