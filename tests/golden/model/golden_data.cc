#include "tests/golden/model/golden_data.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "common/base/check.h"
#include "common/io/mapped_file.h"
#include "common/io/safetensors.h"

namespace banyan::test {
namespace {

template <typename To, typename From>
std::vector<To> Convert(const std::byte* data, size_t count) {
  std::vector<To> out(count);
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, data + i * sizeof(From), sizeof(From));
    out[i] = static_cast<To>(value);
  }
  return out;
}

class Reader {
 public:
  explicit Reader(const std::string& path) {
    auto file = MappedFile::Open(path);
    if (!file.ok()) std::fprintf(stderr, "%s\n", file.status().ToString().c_str());
    CHECK(file.ok());
    file_.emplace(*std::move(file));
    auto header = ParseSafetensors(file_->bytes(), path);
    CHECK(header.ok());
    header_ = *std::move(header);
  }

  const SafetensorsTensor& Find(const std::string& name) const {
    for (const SafetensorsTensor& tensor : header_.tensors) {
      if (tensor.name == name) return tensor;
    }
    std::fprintf(stderr, "golden.safetensors: no tensor %s\n", name.c_str());
    std::abort();
  }

  template <typename To>
  std::vector<To> Read(const std::string& name) const {
    const SafetensorsTensor& tensor = Find(name);
    const std::byte* data = file_->bytes().data() + header_.data_offset + tensor.begin;
    const auto count = static_cast<size_t>(tensor.shape.num_elements());
    switch (tensor.dtype) {
      case DType::kF32:
        return Convert<To, float>(data, count);
      case DType::kI32:
        return Convert<To, int32_t>(data, count);
      case DType::kI64:
        return Convert<To, int64_t>(data, count);
      default:
        CHECK(!"golden tensors are F32, I32 or I64");
        return {};
    }
  }

 private:
  std::optional<MappedFile> file_;
  SafetensorsHeader header_;
};

}  // namespace

GoldenData ReadGolden(const std::string& directory) {
  const Reader reader(directory + "/golden.safetensors");
  GoldenData out;
  out.num_tokens = reader.Find("prompt").shape.num_elements();
  out.num_decoded = reader.Find("decode_ids").shape.num_elements();
  out.prompt = reader.Read<int32_t>("prompt");
  out.prefill_logits = reader.Read<float>("prefill_logits");
  out.decode_ids = reader.Read<int32_t>("decode_ids");
  out.decode_logits = reader.Read<float>("decode_logits");
  out.hidden_states = reader.Read<float>("hidden_states");
  out.router_ids = reader.Read<int32_t>("router_topk_ids");
  out.router_weights = reader.Read<float>("router_topk_weights");
  return out;
}

}  // namespace banyan::test
