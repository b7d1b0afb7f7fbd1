// Load time and encoding speed, one thread:
//   tokenizer_bench --tokenizer DIR --text FILE [--chunk_bytes N] [--repeats R]
// The file is encoded as one text and as a list of texts of about N bytes, R times each; the median
// counts. Prints one JSON object, which compare_hf.py sets beside Hugging Face tokenizers.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "common/tokenizer/bpe_tokenizer.h"

namespace {

using banyan::AddedTokens;

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  std::string directory;
  std::string path;
  size_t chunk_bytes = 2048;
  int repeats = 5;
  CLI::App app{"Tokenizer load time and encoding speed on one thread"};
  app.add_option("--tokenizer", directory, "Directory with tokenizer.json")->required();
  app.add_option("--text", path, "UTF-8 text to encode")->required();
  app.add_option("--chunk_bytes", chunk_bytes, "Size of the texts of the batch")
      ->check(CLI::PositiveNumber);
  app.add_option("--repeats", repeats, "Runs of each; the median counts")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);

  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (text.empty()) {
    std::fprintf(stderr, "%s: no text\n", path.c_str());
    return 1;
  }
  std::vector<double> load_s;
  for (int i = 0; i < repeats; ++i) {
    bool ok = false;
    load_s.push_back(Seconds([&] { ok = banyan::BpeTokenizer::Load(directory).ok(); }));
    if (!ok) {
      std::fprintf(stderr, "%s: cannot be loaded\n", directory.c_str());
      return 1;
    }
  }
  const auto tokenizer = banyan::BpeTokenizer::Load(directory);
  // Texts end at a space, so that they hold whole characters.
  std::vector<std::string_view> chunks;
  for (size_t pos = 0; pos < text.size();) {
    const size_t space = text.find(' ', std::min(pos + chunk_bytes, text.size()));
    const size_t end = space == std::string::npos ? text.size() : space;
    chunks.push_back(std::string_view(text).substr(pos, end - pos));
    pos = end;
  }
  size_t num_tokens = 0;
  std::vector<double> one_s;
  std::vector<double> batch_s;
  for (int i = 0; i < repeats; ++i) {
    one_s.push_back(Seconds([&] {
      std::vector<int32_t> ids;
      (*tokenizer)->Encode(text, AddedTokens::kAll, ids);
      num_tokens = ids.size();
    }));
    batch_s.push_back(Seconds([&] {
      for (const std::string_view chunk : chunks) {
        std::vector<int32_t> ids;
        (*tokenizer)->Encode(chunk, AddedTokens::kAll, ids);
      }
    }));
  }
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::printf(
      "{\"load_s\": %.4f, \"bytes\": %zu, \"tokens\": %zu, \"texts\": %zu, \"one_text_mb_s\": "
      "%.2f, "
      "\"batch_mb_s\": %.2f}\n",
      Median(load_s), text.size(), num_tokens, chunks.size(), megabytes / Median(one_s),
      megabytes / Median(batch_s));
  return 0;
}
