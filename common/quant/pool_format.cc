#include "common/quant/pool_format.h"

#include <initializer_list>

#include "common/base/check.h"
#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "common/quant/nf4.h"

namespace banyan {
std::string_view PoolFormatName(PoolFormat format) {
  switch (format) {
    case PoolFormat::kBF16:
      return "bf16";
    case PoolFormat::kInt8:
      return "int8";
    case PoolFormat::kNF4:
      return "nf4";
    case PoolFormat::kInt4:
      return "int4";
  }
  return "unknown";
}

std::optional<PoolFormat> ParsePoolFormat(std::string_view name) {
  for (const PoolFormat format :
       {PoolFormat::kBF16, PoolFormat::kInt8, PoolFormat::kNF4, PoolFormat::kInt4}) {
    if (name == PoolFormatName(format)) return format;
  }
  return std::nullopt;
}

int64_t PoolFormatGroup(PoolFormat format) {
  switch (format) {
    case PoolFormat::kBF16:
      return 1;
    case PoolFormat::kInt8:
      return kInt8GroupSize;
    case PoolFormat::kNF4:
      return kNF4BlockSize;
    case PoolFormat::kInt4:
      return kInt4GroupSize;
  }
  CHECK(false);
}

int64_t ChunkBytes(PoolFormat format) {
  switch (format) {
    case PoolFormat::kBF16:
      return 0;
    case PoolFormat::kInt8:
      return kInt8ChunkBytes;
    case PoolFormat::kNF4:
      return kNF4ChunkBytes;
    case PoolFormat::kInt4:
      return kInt4ChunkBytes;
  }
  CHECK(false);
}

int64_t PackedMatrixBytes(PoolFormat format, int64_t num_outputs, int64_t k) {
  CHECK(num_outputs >= 1 && k >= 1);
  if (format == PoolFormat::kBF16) return num_outputs * k * 2;
  return NumPanels(num_outputs) * NumChunks(k) * ChunkBytes(format);
}

}  // namespace banyan
