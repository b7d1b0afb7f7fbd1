// A private directory for sockets and the cluster file of one `banyan serve`, gone with it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace banyan::client {

// Holds a lock on the directory for as long as it lives, so that a later supervisor can tell one
// that was left behind by a crash (it is then removed by Create) from one in use.
class RunDirectory {
 public:
  // A new directory PARENT/banyan-<uid>-XXXXXX, readable by its owner only.
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Create(const std::string& parent);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const;
  absl::Status Write(std::string_view name, std::string_view content) const;

  // Removes the directories of supervisors that died; returns how many.
  static int RemoveAbandoned(const std::string& parent);

 private:
  RunDirectory(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}

  const std::string path_;
  const int lock_fd_;
};

}  // namespace banyan::client
