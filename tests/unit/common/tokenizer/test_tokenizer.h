// A byte-level tokenizer.json with few merges, to be bent by tests.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "common/tokenizer/byte_alphabet.h"
#include "common/tokenizer/pre_tokenizer.h"
#include "common/tokenizer/utf8.h"

namespace banyan {

// Ids: bytes 0..255 in order of the alphabet's characters, then one per merge, then added tokens
// <|end|> (special), <|en (special), <think> (ordinary).
inline nlohmann::json SmallTokenizerJson(
    const std::vector<std::pair<std::string, std::string>>& merges = {
        {"h", "e"}, {"t", "he"}, {"\xC4\xA0", "the"}, {"l", "l"}, {"a", "a"}, {"aa", "aa"}}) {
  nlohmann::json vocab = nlohmann::json::object();
  int id = 0;
  for (uint32_t c = 0; c < 0x144; ++c) {
    if (ByteOfAlphabetCharacter(c) < 0) continue;
    std::string character;
    AppendUtf8(c, character);
    vocab[character] = id++;
  }
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [left, right] : merges) {
    if (!vocab.contains(left + right)) vocab[left + right] = id++;
    list.push_back({left, right});
  }
  nlohmann::json added = nlohmann::json::array();
  for (const auto& [content, special] : std::vector<std::pair<std::string, bool>>{
           {"<|end|>", true}, {"<|en", true}, {"<think>", false}}) {
    added.push_back({{"id", id++},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", special}});
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", std::string(kQwenPattern)}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", list}}}};
}

}  // namespace banyan
