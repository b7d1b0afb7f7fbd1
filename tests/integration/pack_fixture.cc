#include "tests/integration/pack_fixture.h"

#include <filesystem>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/integration/process.h"

namespace banyan::test {

std::vector<std::string> ShellThat(const std::string& setup) {
  return {"/bin/sh", "-c", setup + "; exec \"$@\"", "sh"};
}

std::string PackFixture::PackPath(const std::string& name, const std::string& but) const {
  for (const auto& file : std::filesystem::recursive_directory_iterator(packs_.path())) {
    if (file.path().filename() == name && file.path() != but) return file.path().string();
  }
  return "";
}

std::pair<int, std::string> PackFixture::Verify(const std::string& path) const {
  Process verify({BinaryPath("banyan"), "verify", path});
  const absl::StatusOr<int> code = verify.WaitExit(absl::Seconds(60));
  EXPECT_TRUE(code.ok()) << code.status();
  return {code.value_or(-1), verify.Log()};
}

std::string PackFixture::WithDamagedHeader() const {
  std::string bytes = pack_;
  bytes[90] = static_cast<char>(bytes[90] ^ 0x20);
  return bytes;
}

std::vector<std::pair<std::string, std::string>> PackFixture::Damages(size_t cut) const {
  return {
      {pack_.substr(0, pack_.size() - cut), "it was cut"},
      {pack_.substr(0, 1000), "it was cut"},
      {"", "too short"},
      {std::string(pack_.size(), 'x'), "not a pack"},
      {WithDamagedHeader(), "the header is damaged"},
  };
}

}  // namespace banyan::test
