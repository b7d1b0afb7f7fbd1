#include "tests/fakes/safetensors_writer.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/check.h"
#include "common/io/checkpoint.h"

namespace banyan::test {
namespace {

// Text of a JSON string for any bytes: tests write broken UTF-8 too.
std::string Quote(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out + "\"";
}

std::string HeaderJson(const std::vector<TestTensor>& tensors) {
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
  uint64_t cursor = 0;
  for (const TestTensor& tensor : tensors) {
    const uint64_t begin = tensor.begin.value_or(cursor);
    const uint64_t end = tensor.end.value_or(begin + tensor.bytes.size());
    cursor = end;
    json += "," + Quote(tensor.name) + ":{\"dtype\":" + Quote(tensor.dtype) + ",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      json += (i > 0 ? "," : "") + std::to_string(tensor.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  }
  return json + "}";
}

}  // namespace

TestTensor MakeTensor(std::string name, std::string dtype, std::vector<int64_t> shape,
                      size_t num_bytes) {
  TestTensor tensor{std::move(name), std::move(dtype), std::move(shape), "", {}, {}};
  tensor.bytes.resize(num_bytes);
  for (size_t i = 0; i < num_bytes; ++i) tensor.bytes[i] = static_cast<char>(i % 251);
  return tensor;
}

std::string TestShard::ToBytes() const {
  const std::string json =
      header_json.value_or(HeaderJson(tensors)) + std::string(header_padding, ' ');
  const uint64_t length = header_length.value_or(json.size());
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(length >> (8 * i)));
  out += json;
  for (const TestTensor& tensor : tensors) out += tensor.bytes;
  out += trailing;
  if (truncate_to_bytes.has_value()) out.resize(std::min(out.size(), *truncate_to_bytes));
  return out;
}

TestCheckpoint TestCheckpoint::Read(const std::string& directory) {
  const auto opened = Checkpoint::Open(directory);
  if (!opened.ok()) std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
  CHECK(opened.ok());
  const Checkpoint& checkpoint = **opened;
  TestCheckpoint out;
  for (const std::string& name : checkpoint.files()) out.shards.emplace_back().file_name = name;
  std::vector<const Checkpoint::Entry*> by_place;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) by_place.push_back(&entry);
  std::sort(
      by_place.begin(), by_place.end(), [](const Checkpoint::Entry* a, const Checkpoint::Entry* b) {
        return a->file_idx != b->file_idx ? a->file_idx < b->file_idx : a->view.data < b->view.data;
      });
  for (const Checkpoint::Entry* entry : by_place) {
    TestTensor tensor;
    tensor.name = entry->name;
    tensor.dtype = DTypeName(entry->view.dtype);
    tensor.shape = entry->view.shape.dims();
    tensor.bytes.assign(reinterpret_cast<const char*>(entry->view.data), entry->view.size_bytes());
    out.shards[static_cast<size_t>(entry->file_idx)].tensors.push_back(std::move(tensor));
  }
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    const std::string name = file.path().filename().string();
    const std::string extension = file.path().extension().string();
    if ((extension == ".json" || extension == ".jinja") && name != "model.safetensors.index.json") {
      out.texts[name] = ReadFile(file.path().string());
    }
  }
  return out;
}

TestTensor* TestCheckpoint::Find(std::string_view name) {
  for (TestShard& shard : shards) {
    for (TestTensor& tensor : shard.tensors) {
      if (tensor.name == name) return &tensor;
    }
  }
  CHECK(!"no such tensor");
  return nullptr;
}

void TestCheckpoint::Remove(std::string_view name) {
  for (TestShard& shard : shards) {
    const auto gone = std::remove_if(shard.tensors.begin(), shard.tensors.end(),
                                     [&](const TestTensor& t) { return t.name == name; });
    shard.tensors.erase(gone, shard.tensors.end());
  }
}

std::string TestCheckpoint::MakeIndexJson() const {
  nlohmann::json map = nlohmann::json::object();
  size_t total_bytes = 0;
  for (const TestShard& shard : shards) {
    for (const TestTensor& tensor : shard.tensors) {
      map[tensor.name] = shard.file_name;
      total_bytes += tensor.bytes.size();
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", map}};
  return index.dump(1);
}

void TestCheckpoint::Write(const std::string& directory) const {
  for (const auto& [name, text] : texts) WriteFile(directory + "/" + name, text);
  for (const TestShard& shard : shards) {
    WriteFile(directory + "/" + shard.file_name, shard.ToBytes());
  }
  const bool single = shards.size() == 1 && shards.front().file_name == "model.safetensors";
  const std::string index = index_json.value_or(single ? "" : MakeIndexJson());
  if (!index.empty()) WriteFile(directory + "/model.safetensors.index.json", index);
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  CHECK(out.good());
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  CHECK(in.good());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace banyan::test
