#include "services/client/chat/conversation.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/strings.h"
#include "proto/inference/v1/inference.pb.h"

namespace banyan::client {
namespace {

using nlohmann::ordered_json;

// Text typed in a terminal may be anything; JSON wants UTF-8, so the rest becomes U+FFFD.
std::string Dump(const ordered_json& json) {
  return json.dump(1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

void Conversation::AddExchange(std::string question, std::string answer) {
  messages_.push_back({"user", std::move(question)});
  messages_.push_back({"assistant", std::move(answer)});
}

bool Conversation::Undo() {
  if (messages_.size() < 2) return false;
  messages_.resize(messages_.size() - 2);
  return true;
}

void Conversation::FillPrompt(std::string_view question, inference::v1::ChatPrompt& chat) const {
  const auto add = [&chat](std::string_view role, std::string_view content) {
    auto* message = chat.add_messages();
    message->set_role(std::string(role));
    message->set_content(std::string(content));
  };
  if (!system_.empty()) add("system", system_);
  for (const Message& message : messages_) add(message.role, message.content);
  add("user", question);
}

absl::Status Conversation::Save(const std::string& path) const {
  ordered_json list = ordered_json::array();
  if (!system_.empty()) list.push_back({{"role", "system"}, {"content", system_}});
  for (const Message& message : messages_) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  const std::string part = path + ".part";
  {
    std::ofstream out(part, std::ios::binary | std::ios::trunc);
    out << Dump({{"messages", std::move(list)}}) << "\n";
    out.flush();
    if (!out) {
      const int error = errno;
      std::remove(part.c_str());
      return StatusF(absl::StatusCode::kUnknown, "cannot write {}: {}", path, strerror(error));
    }
  }
  if (std::rename(part.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(part.c_str());
    return StatusF(absl::StatusCode::kUnknown, "cannot write {}: {}", path, strerror(error));
  }
  return absl::OkStatus();
}

absl::StatusOr<Conversation> Conversation::Load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in) {
    return StatusF(absl::StatusCode::kNotFound, "cannot read {}: {}", path, strerror(errno));
  }
  const ordered_json json = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array()) {
    return InvalidArgumentF("{}: expected an object with a list \"messages\"", path);
  }
  Conversation conversation;
  size_t index = 0;
  for (const ordered_json& entry : json["messages"]) {
    if (!entry.is_object() || !entry.contains("role") || !entry["role"].is_string() ||
        !entry.contains("content") || !entry["content"].is_string()) {
      return InvalidArgumentF("{}: message {}: expected strings \"role\" and \"content\"", path,
                              index);
    }
    const std::string role = entry["role"];
    if (role == "system" && index == 0) {
      conversation.system_ = entry["content"];
    } else {
      const std::string expected = conversation.messages_.size() % 2 == 0 ? "user" : "assistant";
      if (role != expected) {
        return InvalidArgumentF("{}: message {}: role '{}', expected {}", path, index,
                                Printable(role, 40), expected);
      }
      conversation.messages_.push_back({role, entry["content"]});
    }
    ++index;
  }
  if (conversation.messages_.size() % 2 != 0) {
    return InvalidArgumentF("{}: the last message is a question without an answer", path);
  }
  return conversation;
}

}  // namespace banyan::client
