// Writes checkpoints for tests, sound or broken on purpose.
//   TestCheckpoint model = TestCheckpoint::Read(demo_directory);
//   model.Find("model.norm.weight")->shape = {127};   // now the header contradicts itself
//   model.Write(temp.path());
// Everything written is what the fields say: nothing is checked or repaired.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace banyan::test {

struct TestTensor {
  std::string name;
  std::string dtype = "BF16";  // any text
  std::vector<int64_t> shape;
  std::string bytes;
  // Place in the data area; unset: right after the tensor before it.
  std::optional<uint64_t> begin;
  std::optional<uint64_t> end;
};

// A tensor of `num_bytes` bytes with values 0, 1, 2, ... modulo 251.
TestTensor MakeTensor(std::string name, std::string dtype, std::vector<int64_t> shape,
                      size_t num_bytes);

struct TestShard {
  std::string file_name;
  std::vector<TestTensor> tensors;
  size_t header_padding = 0;                // spaces after the JSON text
  std::optional<std::string> header_json;   // instead of the text made from `tensors`
  std::optional<uint64_t> header_length;    // instead of its true length
  std::string trailing;                     // after the data area
  std::optional<size_t> truncate_to_bytes;  // of the whole file

  std::string ToBytes() const;
};

struct TestCheckpoint {
  std::map<std::string, std::string> texts;  // config.json and others, by name
  std::vector<TestShard> shards;
  // Unset: made from the shards. An empty string: none is written.
  std::optional<std::string> index_json;

  // A sound checkpoint directory as a value; aborts when it is not one.
  static TestCheckpoint Read(const std::string& directory);

  // The first tensor of that name; aborts when there is none.
  TestTensor* Find(std::string_view name);
  void Remove(std::string_view name);
  std::string MakeIndexJson() const;
  void Write(const std::string& directory) const;
};

void WriteFile(const std::string& path, std::string_view bytes);
std::string ReadFile(const std::string& path);

}  // namespace banyan::test
