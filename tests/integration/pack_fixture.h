// A folder of packs and what tests do with them, whatever they are packs of.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/fakes/temp_dir.h"

namespace banyan::test {

// A shell that runs `setup` and then the program that follows.
std::vector<std::string> ShellThat(const std::string& setup);

class PackFixture : public ::testing::Test {
 protected:
  // The pack of that name below the folder; "" when there is none. `but`: not this one.
  std::string PackPath(const std::string& name, const std::string& but = "") const;
  // Exit code and words of `banyan verify path`.
  std::pair<int, std::string> Verify(const std::string& path) const;
  // The sound pack with a flipped bit of its header.
  std::string WithDamagedHeader() const;
  // Damages of the sound pack, one of them without its last `cut` bytes, and what is said of them.
  std::vector<std::pair<std::string, std::string>> Damages(size_t cut) const;

  TempDir packs_;
  std::string path_;  // of the sound pack
  std::string pack_;  // its bytes
};

}  // namespace banyan::test
