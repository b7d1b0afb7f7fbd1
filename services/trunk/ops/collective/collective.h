// What devices that share a model say to each other while they compute.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace banyan::trunk {

// One device's end of a group. All of the group call the same operations in the same order with the
// same counts, each from a thread of its own. Lives as long as the group that lent it.
class Collective {
 public:
  virtual ~Collective() = default;

  virtual int32_t rank() const = 0;  // 0 <= rank < size
  virtual int32_t size() const = 0;

  // x [count] f32 becomes the sum of everyone's x, the same bits everywhere: a value is added in
  // the order of ranks, wherever in x it lies and however many there are. Queued on `stream` (a
  // cudaStream_t) where x is memory of a GPU; done on return where it is the host's. Of a GPU
  // `scratch` holds ScratchFloats(size, count). An array lives until everyone has returned and
  // everything queued is done. Error: the group's failure.
  virtual absl::Status AllReduce(float* x, int64_t count, float* scratch, void* stream) = 0;

  // Ends the group: calls that wait return, they and all later ones with `why`. The first one
  // counts. What is queued on a GPU may then wait for another rank for ever: wait for it with a
  // limit, and end the process. Any thread.
  virtual void Abort(const absl::Status& why) = 0;
  // OK until then. Any thread.
  virtual absl::Status status() const = 0;
};

// Everyone's end, and what they share.
class CollectiveGroup {
 public:
  virtual ~CollectiveGroup() = default;
  virtual int32_t size() const = 0;
  virtual Collective* rank(int32_t rank) const = 0;
};

}  // namespace banyan::trunk
