#include "common/synth/synth_writer.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/generated_tensor.h"
#include "common/io/mapped_file.h"
#include "common/io/output_file.h"
#include "common/parallel/first_error.h"
#include "common/quant/bf16.h"
#include "common/quant/nf4.h"
#include "common/synth/quantise.h"

namespace banyan {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigName[] = "config.json";
constexpr char kIndexName[] = "model.safetensors.index.json";
// In every directory that is being written: what has it may be emptied by the next run.
constexpr char kMarkerName[] = ".banyan-synth";
constexpr int64_t kChunkElements = 1 << 20;      // that a thread holds at a time
constexpr int64_t kPlainItemElements = 1 << 22;  // of one item of work
constexpr int64_t kItemsPerReport = 8;           // of a thread
constexpr size_t kMaxCopyBytes = 256'000'000;

constexpr const char* kVocabularyNames[] = {"tokenizer.json", "vocab.json"};
constexpr const char* kTokenizerNames[] = {"tokenizer.json",      "vocab.json",
                                           "merges.txt",          "tokenizer_config.json",
                                           "added_tokens.json",   "special_tokens_map.json",
                                           "chat_template.jinja", "generation_config.json"};

// The directory that is written to.
class Staging {
 public:
  static absl::StatusOr<Staging> Make(const std::string& directory) {
    const std::string path = directory + ".partial";
    if (::mkdir(path.c_str(), 0777) != 0) {
      if (errno != EEXIST) return FileError(path, "mkdir", errno);
      if (::access((path + "/" + kMarkerName).c_str(), F_OK) != 0) {
        return FailedPreconditionF("{}: exists and is not of an unfinished synth; remove it", path);
      }
    }
    ASSIGN_OR_RETURN(std::optional<FileLock> lock, FileLock::TryLockDirectory(path));
    if (!lock) return FailedPreconditionF("{}: another process writes it", path);
    Staging staging(path, *std::move(lock));
    staging.RemoveFiles();
    ASSIGN_OR_RETURN(OutputFile marker, OutputFile::Create(staging.File(kMarkerName)));
    marker.Keep();
    return staging;
  }
  Staging(Staging&&) = default;
  Staging& operator=(Staging&&) = delete;
  ~Staging() {
    if (path_.empty()) return;
    RemoveFiles();
    ::unlink(File(kMarkerName).c_str());
    ::rmdir(path_.c_str());
  }

  std::string File(const std::string& name) const { return path_ + "/" + name; }

  absl::Status Rename(const std::string& directory) {
    RETURN_IF_ERROR(SyncDirectory(path_));
    if (::rename(path_.c_str(), directory.c_str()) != 0) {
      return FileError(directory, "rename", errno);
    }
    path_.clear();
    ::unlink((directory + "/" + kMarkerName).c_str());
    const std::string parent = fs::path(directory).parent_path().string();
    return SyncDirectory(parent.empty() ? "." : parent);
  }

 private:
  Staging(std::string path, FileLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  // All but the marker.
  void RemoveFiles() const {
    std::error_code error;
    fs::directory_iterator it(path_, error);
    for (; !error && it != fs::directory_iterator(); it.increment(error)) {
      if (it->path().filename() != kMarkerName) ::unlink(it->path().c_str());
    }
  }

  std::string path_;
  FileLock lock_;
};

class Writer {
 public:
  Writer(const SynthPlan& plan, WorkerPool& pool)
      : plan_(plan), pool_(pool), scratch_(static_cast<size_t>(pool.num_threads())) {
    for (size_t u = 0; u < plan_.units.size(); ++u) AddItems(static_cast<int32_t>(u));
  }

  absl::Status Write(const Staging& staging, SynthProgressFn progress) {
    for (const SynthPlan::File& file : plan_.files) {
      ASSIGN_OR_RETURN(OutputFile out, OutputFile::Create(staging.File(file.name)));
      RETURN_IF_ERROR(out.Allocate(static_cast<int64_t>(file.bytes), "this file"));
      RETURN_IF_ERROR(out.Write(std::as_bytes(std::span(file.header)), 0));
      files_.push_back(std::move(out));
    }
    const auto num_items = static_cast<int64_t>(items_.size());
    const int64_t batch = kItemsPerReport * pool_.num_threads();
    FirstError error;
    for (int64_t first = 0; first < num_items; first += batch) {
      if (!progress({SynthProgress::Phase::kWrite, done_.load(), plan_.tensor_bytes})) {
        return absl::CancelledError("stopped");
      }
      pool_.ParallelFor(std::min(batch, num_items - first), [&](int64_t i, int thread) {
        if (error.failed()) return;
        const absl::Status status = WriteItem(items_[static_cast<size_t>(first + i)],
                                              scratch_[static_cast<size_t>(thread)]);
        if (!status.ok()) error.Set(status);
      });
      RETURN_IF_ERROR(error.Get());
    }
    CHECK(done_.load() == plan_.tensor_bytes);
    for (size_t i = 0; i < files_.size(); ++i) {
      if (!progress({SynthProgress::Phase::kSync, i, files_.size()})) {
        return absl::CancelledError("stopped");
      }
      RETURN_IF_ERROR(files_[i].Sync());
    }
    for (OutputFile& file : files_) file.Keep();
    return absl::OkStatus();
  }

 private:
  // Some elements of one source; of a quantised unit all of them.
  struct Item {
    int32_t unit = 0;
    int32_t source = 0;  // of the plan
    int64_t first = 0;
    int64_t count = 0;
    uint64_t offset = 0;  // of the unit's plain tensor
  };
  // Of one thread.
  struct Scratch {
    std::vector<std::byte> bf16;
    std::vector<float> values;
    std::vector<std::byte> codes;
  };

  void AddItems(int32_t unit_idx) {
    const SynthUnit& unit = plan_.units[static_cast<size_t>(unit_idx)];
    uint64_t offset = 0;
    for (const int32_t source : unit.sources) {
      const int64_t elements = plan_.sources[static_cast<size_t>(source)].shape.num_elements();
      const int64_t step = unit.kind == SynthUnit::Kind::kPlain ? kPlainItemElements
                                                                : std::max<int64_t>(elements, 1);
      for (int64_t first = 0; first < elements; first += step) {
        const int64_t count = std::min(step, elements - first);
        items_.push_back({unit_idx, source, first, count, offset});
        offset += static_cast<uint64_t>(count) * sizeof(BF16);
      }
    }
  }

  void Generate(int32_t source, int64_t first, std::span<std::byte> out) const {
    const auto i = static_cast<size_t>(source);
    GenerateBF16(plan_.seeds[i], plan_.sources[i].mean, plan_.sources[i].deviation, first, out);
  }

  // The same in f32, in scratch.values.
  std::span<const float> Values(int32_t source, int64_t first, int64_t count,
                                Scratch& scratch) const {
    const auto n = static_cast<size_t>(count);
    scratch.bf16.resize(std::max(scratch.bf16.size(), n * sizeof(BF16)));
    scratch.values.resize(std::max(scratch.values.size(), n));
    Generate(source, first, {scratch.bf16.data(), n * sizeof(BF16)});
    for (size_t i = 0; i < n; ++i) {
      BF16 value;
      std::memcpy(&value, scratch.bf16.data() + i * sizeof(BF16), sizeof(BF16));
      scratch.values[i] = ToFloat(value);
    }
    return {scratch.values.data(), n};
  }

  // `bytes` into tensor `i` of a unit.
  absl::Status Put(const SynthUnit& unit, int32_t i, uint64_t offset,
                   std::span<const std::byte> bytes) {
    const SynthTensor& tensor =
        plan_.tensors[static_cast<size_t>(unit.first_tensor) + static_cast<size_t>(i)];
    CHECK(i < unit.num_tensors && offset + bytes.size() <= tensor.bytes);
    const auto at = static_cast<int64_t>(tensor.offset + offset);
    const OutputFile& file = files_[static_cast<size_t>(tensor.file)];
    RETURN_IF_ERROR(file.Write(bytes, at));
    if (bytes.size() >= (1u << 20)) file.StartWriteback(at, static_cast<int64_t>(bytes.size()));
    done_.fetch_add(bytes.size(), std::memory_order_relaxed);
    return absl::OkStatus();
  }

  absl::Status WriteItem(const Item& item, Scratch& scratch) {
    const SynthUnit& unit = plan_.units[static_cast<size_t>(item.unit)];
    switch (unit.kind) {
      case SynthUnit::Kind::kPlain:
        return WritePlain(unit, item, scratch);
      case SynthUnit::Kind::kNF4:
      case SynthUnit::Kind::kNF4Single:
        return WriteNF4(unit, item, scratch);
      case SynthUnit::Kind::kInt8:
        return WriteInt8(unit, item, scratch);
      case SynthUnit::Kind::kFP8:
        return WriteFP8(unit, item, scratch);
    }
    return absl::OkStatus();
  }

  absl::Status WritePlain(const SynthUnit& unit, const Item& item, Scratch& scratch) {
    for (int64_t done = 0; done < item.count; done += kChunkElements) {
      const auto bytes =
          static_cast<size_t>(std::min(kChunkElements, item.count - done)) * sizeof(BF16);
      scratch.bf16.resize(std::max(scratch.bf16.size(), bytes));
      const std::span<std::byte> out(scratch.bf16.data(), bytes);
      Generate(item.source, item.first + done, out);
      RETURN_IF_ERROR(Put(unit, 0, item.offset + static_cast<uint64_t>(done) * sizeof(BF16), out));
    }
    return absl::OkStatus();
  }

  absl::Status WriteNF4(const SynthUnit& unit, const Item& item, Scratch& scratch) {
    static_assert(kChunkElements % kNF4BlockSize == 0);
    std::vector<float> absmax(
        static_cast<size_t>((item.count + kNF4BlockSize - 1) / kNF4BlockSize));
    for (int64_t done = 0; done < item.count; done += kChunkElements) {
      const int64_t n = std::min(kChunkElements, item.count - done);
      const std::span<const float> values = Values(item.source, done, n, scratch);
      const auto bytes = static_cast<size_t>((n + 1) / 2);
      scratch.codes.resize(std::max(scratch.codes.size(), bytes));
      QuantiseNF4(values, scratch.codes.data(), absmax.data() + done / kNF4BlockSize);
      RETURN_IF_ERROR(Put(unit, 0, static_cast<uint64_t>(done) / 2, {scratch.codes.data(), bytes}));
    }
    int32_t next = 1;
    float offset = 0;
    if (unit.kind == SynthUnit::Kind::kNF4) {
      const NestedScales scales = NestScales(absmax);
      offset = scales.offset;
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(std::span(scales.codes))));
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(std::span(kNF4Table))));
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(std::span(scales.nested_absmax))));
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(DynamicMap())));
    } else {
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(std::span(absmax))));
      RETURN_IF_ERROR(Put(unit, next++, 0, std::as_bytes(std::span(kNF4Table))));
    }
    const Shape& shape = plan_.sources[static_cast<size_t>(item.source)].shape;
    const std::string state = QuantStateText(unit.kind, shape, offset);
    return Put(unit, next, 0, std::as_bytes(std::span(state)));
  }

  absl::Status WriteInt8(const SynthUnit& unit, const Item& item, Scratch& scratch) {
    const Shape& shape = plan_.sources[static_cast<size_t>(item.source)].shape;
    const int64_t cols = shape.dim(1);
    const int64_t step = std::max<int64_t>(1, kChunkElements / cols);
    std::vector<float> scb(static_cast<size_t>(shape.dim(0)));
    for (int64_t row = 0; row < shape.dim(0); row += step) {
      const int64_t n = std::min(step, shape.dim(0) - row) * cols;
      const std::span<const float> values = Values(item.source, row * cols, n, scratch);
      scratch.codes.resize(std::max(scratch.codes.size(), values.size()));
      QuantiseInt8Rows(values, cols, scratch.codes.data(), scb.data() + row);
      RETURN_IF_ERROR(
          Put(unit, 0, static_cast<uint64_t>(row * cols), {scratch.codes.data(), values.size()}));
    }
    RETURN_IF_ERROR(Put(unit, 1, 0, std::as_bytes(std::span(scb))));
    const std::byte row_order[1] = {};
    return Put(unit, 2, 0, row_order);
  }

  absl::Status WriteFP8(const SynthUnit& unit, const Item& item, Scratch& scratch) {
    const Shape& shape = plan_.sources[static_cast<size_t>(item.source)].shape;
    const int64_t cols = shape.dim(1);
    const int64_t scale_cols = (cols + kFP8Block - 1) / kFP8Block;
    const int64_t scale_rows = (shape.dim(0) + kFP8Block - 1) / kFP8Block;
    std::vector<BF16> scales(static_cast<size_t>(scale_rows * scale_cols));
    for (int64_t row = 0; row < shape.dim(0); row += kFP8Block) {
      const int64_t n = std::min(kFP8Block, shape.dim(0) - row) * cols;
      const std::span<const float> values = Values(item.source, row * cols, n, scratch);
      scratch.codes.resize(std::max(scratch.codes.size(), values.size()));
      QuantiseFP8Rows(values, cols, scratch.codes.data(),
                      scales.data() + row / kFP8Block * scale_cols);
      RETURN_IF_ERROR(
          Put(unit, 0, static_cast<uint64_t>(row * cols), {scratch.codes.data(), values.size()}));
    }
    return Put(unit, 1, 0, std::as_bytes(std::span(scales)));
  }

  const SynthPlan& plan_;
  WorkerPool& pool_;
  std::vector<Scratch> scratch_;
  std::vector<Item> items_;
  std::vector<OutputFile> files_;  // of the plan
  std::atomic<uint64_t> done_{0};
};

absl::Status WriteText(const std::string& path, std::string_view text) {
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path));
  RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(text)), 0));
  RETURN_IF_ERROR(file.Sync());
  file.Keep();
  return absl::OkStatus();
}

// An empty directory may be replaced; rename(2) does that.
absl::Status CheckFree(const std::string& directory) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(directory, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (error) return FileError(directory, "stat", error.value());
  if (!fs::is_directory(status)) return FailedPreconditionF("{}: is there already", directory);
  if (!fs::is_empty(directory, error) || error) {
    return FailedPreconditionF("{}: is there already and not empty", directory);
  }
  return absl::OkStatus();
}

absl::Status CheckSpace(const std::string& directory, uint64_t bytes) {
  struct statvfs info;
  if (::statvfs(directory.c_str(), &info) != 0) return FileError(directory, "statvfs", errno);
  const uint64_t available = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (bytes <= available) return absl::OkStatus();
  return StatusF(absl::StatusCode::kResourceExhausted,
                 "{}: the checkpoint needs {} bytes, {} bytes are free", directory, bytes,
                 available);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> TokenizerFiles(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const char* name : kTokenizerNames) {
    if (fs::is_regular_file(directory + "/" + name, error)) names.push_back(name);
  }
  for (const char* vocabulary : kVocabularyNames) {
    if (std::find(names.begin(), names.end(), vocabulary) != names.end()) return names;
  }
  return StatusF(absl::StatusCode::kNotFound, "{}: neither a tokenizer.json nor a vocab.json",
                 directory);
}

absl::Status WriteSynth(const SynthPlan& plan, const std::vector<std::string>& copies,
                        const std::string& directory, WorkerPool& pool, SynthProgressFn progress) {
  std::string target = directory;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  std::vector<std::pair<std::string, std::string>> texts;
  uint64_t bytes = plan.total_bytes;
  for (const std::string& path : copies) {
    ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kMaxCopyBytes));
    bytes += text.size();
    texts.emplace_back(fs::path(path).filename().string(), std::move(text));
  }
  RETURN_IF_ERROR(CheckFree(target));
  ASSIGN_OR_RETURN(Staging staging, Staging::Make(target));
  RETURN_IF_ERROR(CheckSpace(staging.File(""), bytes));
  Writer writer(plan, pool);
  RETURN_IF_ERROR(writer.Write(staging, progress));
  for (const auto& [name, text] : texts) RETURN_IF_ERROR(WriteText(staging.File(name), text));
  if (!plan.index.empty()) RETURN_IF_ERROR(WriteText(staging.File(kIndexName), plan.index));
  // Without it nothing loads.
  RETURN_IF_ERROR(WriteText(staging.File(kConfigName), plan.config));
  return staging.Rename(target);
}

}  // namespace banyan
