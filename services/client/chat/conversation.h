// The messages of a chat so far, and their file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan::inference::v1 {
class ChatPrompt;
}

namespace banyan::client {

// Thread-compatible.
class Conversation {
 public:
  struct Message {
    std::string role;  // user, assistant
    std::string content;
  };

  const std::string& system() const { return system_; }
  void set_system(std::string text) { system_ = std::move(text); }
  const std::vector<Message>& messages() const { return messages_; }

  void Reset() { messages_.clear(); }
  void AddExchange(std::string question, std::string answer);
  // Drops the last question and answer; false when there is none.
  bool Undo();

  // Everything so far, then the question.
  void FillPrompt(std::string_view question, inference::v1::ChatPrompt& chat) const;

  // {"messages": [{"role": ..., "content": ...}, ...]}, the system message first. The file is
  // replaced as a whole or not at all.
  absl::Status Save(const std::string& path) const;
  // kInvalidArgument says what is no conversation: roles must be system (first only), then user and
  // assistant by turns, ending with the assistant.
  static absl::StatusOr<Conversation> Load(const std::string& path);

 private:
  std::string system_;
  std::vector<Message> messages_;
};

}  // namespace banyan::client
