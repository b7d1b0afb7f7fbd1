// How a pack of any kind is found, made once, written and verified: docs/formats/expert_pack.md.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/status_macros.h"
#include "common/io/checkpoint.h"
#include "common/io/mapped_file.h"
#include "common/io/output_file.h"
#include "common/io/pack_header.h"
#include "common/io/trunk_pack.h"
#include "common/parallel/worker_pool.h"

namespace banyan {

struct PackProgress {
  enum class Phase : uint8_t { kWait, kConvert, kVerify };  // kWait: another process packs it
  Phase phase = Phase::kConvert;
  uint64_t bytes_done = 0;  // of the checkpoint in kConvert, of the pack in kVerify
  uint64_t bytes_total = 0;
};
// Called from the thread that asked; false ends the work with kCancelled.
using PackProgressFn = absl::FunctionRef<bool(const PackProgress&)>;

// Where the time of a build went; the three parts are summed over threads.
struct PackStats {
  uint64_t source_bytes = 0;
  uint64_t pack_bytes = 0;
  double seconds = 0;  // of reading, converting and writing
  double sync_seconds = 0;
  double verify_seconds = 0;
  double read_seconds = 0;
  double convert_seconds = 0;
  double write_seconds = 0;
  int num_threads = 0;
};

// What EnsurePackFile needs of a kind of pack. Called by one thread.
class PackMaker {
 public:
  virtual ~PackMaker() = default;
  // Opens the pack at `path`, and keeps it, if it is whole and fits the checkpoint as it is now.
  virtual absl::Status OpenFitting(const std::string& path) = 0;
  // Whether what is there is whole and of another model, shard, format or newer version.
  virtual absl::Status CheckNotForeign(const std::string& path) const = 0;
  // Makes it anew, under the name that WritePack commits to.
  virtual absl::Status Build(const std::string& path) = 0;
};

struct EnsuredPack {
  // Why what lay there was not used; OK when nothing lay there or it is used.
  absl::Status rejected;
  bool built = false;
};

// The pack that is there if it is whole (header and size) and fits, else a new one; but a whole
// pack of something else is an error (CheckNotForeign) and stays, unless `rebuild` asks for a new
// one whatever is there. Under a file lock, so that neither a crash nor a second process leaves a
// half pack under the name. What a killed run left in the folder is removed.
absl::StatusOr<EnsuredPack> EnsurePackFile(const std::string& path, PackMaker& maker,
                                           PackProgressFn progress, bool rebuild);

// A status of CheckNotForeign, with what to do about it.
absl::Status ForeignPack(const absl::Status& what, std::string_view replace_by);

// kFailedPrecondition: the checkpoint's files were rewritten since the pack at `path` was made.
absl::Status CheckPackFresh(const std::string& path, uint64_t source_stamp, uint64_t wanted_stamp);

// A pack that was found or made.
template <typename Pack>
struct FoundPack {
  Pack pack;
  absl::Status rejected;  // why what lay there was not used; OK when nothing did or it is used
  std::optional<PackStats> built;  // unset: the pack was there
};

// What makers have in common. `Pack` has Open(path) and header().source_stamp.
template <typename Pack>
class FittingPackMaker : public PackMaker {
 public:
  absl::Status OpenFitting(const std::string& path) override {
    ASSIGN_OR_RETURN(Pack pack, Pack::Open(path));
    RETURN_IF_ERROR(CheckIsOf(pack));
    RETURN_IF_ERROR(CheckPackFresh(path, pack.header().source_stamp, wanted_stamp_));
    pack_.emplace(std::move(pack));
    return absl::OkStatus();
  }

  // A whole pack that is not an older or damaged state of the wanted one, but somebody else's.
  // docs/adr/foreign-packs.md.
  absl::Status CheckNotForeign(const std::string& path) const override {
    const absl::StatusOr<Pack> there = Pack::Open(path);
    absl::Status status = absl::IsUnimplemented(there.status()) ? there.status() : absl::OkStatus();
    if (there.ok()) status = CheckIsOf(*there);
    return status.ok() ? status : ForeignPack(status, replace_by_);
  }

  // What EnsurePackFile has left here.
  FoundPack<Pack> Take(const EnsuredPack& ensured) {
    FoundPack<Pack> found{*std::move(pack_), ensured.rejected, {}};
    if (ensured.built) found.built = stats_;
    return found;
  }

 protected:
  // `replace_by`: what else to do about a foreign pack; borrowed.
  FittingPackMaker(uint64_t wanted_stamp, std::string_view replace_by)
      : wanted_stamp_(wanted_stamp), replace_by_(replace_by) {}
  // kFailedPrecondition names what the pack is of instead.
  virtual absl::Status CheckIsOf(const Pack& pack) const = 0;

  PackStats stats_;  // filled in by Build

 private:
  const uint64_t wanted_stamp_;
  const std::string_view replace_by_;
  std::optional<Pack> pack_;
};

// A pack whose payload is sound too: what `ensure(rebuild)` finds there is verified, and made anew
// if it is damaged.
template <typename Ensure, typename Verify>
auto EnsureSoundPack(const Ensure& ensure, const Verify& verify)
    -> decltype(ensure(/*rebuild=*/false)) {
  ASSIGN_OR_RETURN(auto found, ensure(/*rebuild=*/false));
  if (found.built) return found;
  const absl::Status verified = verify(found.pack);
  if (verified.ok()) return found;
  if (!absl::IsDataLoss(verified)) return verified;
  ASSIGN_OR_RETURN(found, ensure(/*rebuild=*/true));
  found.rejected = verified;
  return found;
}

// The log's line of a pack that was made: docs/logging.md.
void LogPacked(const std::string& path, const PackStats& stats);

// Allocates PATH.tmp, has its payload and then its header written, syncs it, has it read back and
// renames it over `path`. Errors leave what was there and no temporary file. Fills in sync_seconds,
// verify_seconds, seconds and pack_bytes.
struct PackWriteSteps {
  const Checkpoint* checkpoint = nullptr;  // must not change meanwhile
  int64_t file_bytes = 0;
  std::function<absl::Status(const OutputFile&)> payload;
  std::function<std::vector<std::byte>()> header;  // after the payload
  std::function<absl::Status(const std::string& path)> verify;
};
absl::Status WritePack(const std::string& path, const PackWriteSteps& steps, PackStats* stats);

// Reads every piece and compares its checksum. kDataLoss names the first damaged one and says how
// many of these `things` there are.
absl::Status VerifyPieces(const MappedFile& file, std::span<const PackPiece> pieces,
                          absl::FunctionRef<std::string(int64_t idx)> name, std::string_view things,
                          WorkerPool& pool, PackProgressFn progress);

// The same of a whole trunk pack.
absl::Status VerifyTrunkPack(const TrunkPack& pack, WorkerPool& pool, PackProgressFn progress);

}  // namespace banyan
