#include "common/io/checkpoint.h"

#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/safetensors.h"
#include "common/io/safetensors_index.h"

namespace banyan {
namespace {

constexpr char kConfigName[] = "config.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr size_t kMaxConfigBytes = 16'000'000;
constexpr char kGeneratedName[] = "generated";  // in place of a file's name
constexpr uint64_t kGeneratorVersion = 2;       // other values, another number

// XXH3-128 over length-prefixed parts, so that bytes cannot move from one part to the next.
class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState(), &XXH3_freeState) {
    CHECK(state_ != nullptr);
    XXH3_128bits_reset(state_.get());
  }
  void Add(std::string_view part) {
    AddNumber(part.size());
    XXH3_128bits_update(state_.get(), part.data(), part.size());
  }
  void AddNumber(uint64_t number) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(number >> (8 * i));
    XXH3_128bits_update(state_.get(), bytes, sizeof(bytes));
  }
  uint64_t Low() const { return XXH3_128bits_digest(state_.get()).low64; }
  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

bool IsShardName(std::string_view name) {
  constexpr std::string_view kPrefix = "model-";
  constexpr std::string_view kSuffix = ".safetensors";
  return name.size() > kPrefix.size() + kSuffix.size() &&
         name.substr(0, kPrefix.size()) == kPrefix &&
         name.substr(name.size() - kSuffix.size()) == kSuffix &&
         name.find("-of-") != std::string_view::npos;
}

struct DirectoryListing {
  bool has_index = false;
  bool has_single = false;
  std::vector<std::string> shards;  // model-*-of-*.safetensors, sorted
};

absl::StatusOr<DirectoryListing> ListDirectory(const std::string& directory) {
  DirectoryListing listing;
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    listing.has_index |= name == kIndexName;
    listing.has_single |= name == kSingleName;
    if (IsShardName(name)) listing.shards.push_back(std::move(name));
  }
  if (error) {
    const bool absent =
        error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory;
    return StatusF(absent ? absl::StatusCode::kNotFound : absl::StatusCode::kPermissionDenied,
                   "{}: cannot be read as a checkpoint directory: {}", directory, error.message());
  }
  std::sort(listing.shards.begin(), listing.shards.end());
  return listing;
}

// "a, b, c and 4 more"
std::string NameSome(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    if (i > 0) text += ", ";
    text += Printable(names[i]);
  }
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

absl::Status CheckNoStrayShards(const DirectoryListing& listing,
                                const std::vector<std::string>& listed,
                                const std::string& index_path) {
  std::vector<std::string> stray;
  std::set_difference(listing.shards.begin(), listing.shards.end(), listed.begin(), listed.end(),
                      std::back_inserter(stray));
  if (stray.empty()) return absl::OkStatus();
  return DataLossF("{}: does not list {} shard file(s) of its directory: {}", index_path,
                   stray.size(), NameSome(stray));
}

// The index against the headers, both in name order.
absl::Status CheckIndexAgrees(const SafetensorsIndex& index,
                              std::span<const Checkpoint::Entry> entries,
                              const std::string& index_path) {
  size_t i = 0;
  size_t j = 0;
  while (i < index.tensors.size() || j < entries.size()) {
    const bool in_index = j == entries.size() ||
                          (i < index.tensors.size() && index.tensors[i].name <= entries[j].name);
    const bool in_header = i == index.tensors.size() ||
                           (j < entries.size() && entries[j].name <= index.tensors[i].name);
    if (!in_header) {
      return DataLossF("{}: lists tensor '{}' in {}, but no shard has it", index_path,
                       Printable(index.tensors[i].name),
                       index.files[static_cast<size_t>(index.tensors[i].file_idx)]);
    }
    if (!in_index) {
      return DataLossF("{}: does not list tensor '{}', which is in {}", index_path,
                       Printable(entries[j].name),
                       index.files[static_cast<size_t>(entries[j].file_idx)]);
    }
    if (index.tensors[i].file_idx != entries[j].file_idx) {
      return DataLossF("{}: lists tensor '{}' in {}, but it is in {}", index_path,
                       Printable(entries[j].name),
                       index.files[static_cast<size_t>(index.tensors[i].file_idx)],
                       index.files[static_cast<size_t>(entries[j].file_idx)]);
    }
    ++i;
    ++j;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  ASSIGN_OR_RETURN(const DirectoryListing listing, ListDirectory(directory));
  ASSIGN_OR_RETURN(const std::string config,
                   ReadTextFile(directory + "/" + kConfigName, kMaxConfigBytes));

  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->directory_ = directory;

  const std::string index_path = directory + "/" + kIndexName;
  std::optional<SafetensorsIndex> index;
  if (listing.has_index) {
    ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxSafetensorsIndexBytes));
    ASSIGN_OR_RETURN(index, ParseSafetensorsIndex(text, index_path));
    RETURN_IF_ERROR(CheckNoStrayShards(listing, index->files, index_path));
    if (listing.has_single &&
        !std::binary_search(index->files.begin(), index->files.end(), kSingleName)) {
      return DataLossF("{}: does not list {}, which is there too: ambiguous weights", index_path,
                       kSingleName);
    }
    checkpoint->file_names_ = index->files;
  } else if (listing.has_single) {
    if (!listing.shards.empty()) {
      return DataLossF("{}: has {} and shard file(s) {}, but no {}: ambiguous weights", directory,
                       kSingleName, NameSome(listing.shards), kIndexName);
    }
    checkpoint->file_names_ = {kSingleName};
  } else if (!listing.shards.empty()) {
    return StatusF(absl::StatusCode::kNotFound, "{}: no {}, although shard file(s) are there: {}",
                   directory, kIndexName, NameSome(listing.shards));
  } else {
    return StatusF(absl::StatusCode::kNotFound, "{}: no weights: neither {} nor {}", directory,
                   kSingleName, kIndexName);
  }

  Fingerprint fingerprint;
  fingerprint.Add(config);
  std::string header_bytes;
  for (const std::string& name : checkpoint->file_names_) {
    const std::string path = directory + "/" + name;
    absl::StatusOr<MappedFile> opened = MappedFile::Open(path);
    if (absl::IsNotFound(opened.status()) && index.has_value()) {
      return StatusF(absl::StatusCode::kNotFound, "{}: listed in {} but absent", path, kIndexName);
    }
    ASSIGN_OR_RETURN(MappedFile file, std::move(opened));
    ASSIGN_OR_RETURN(SafetensorsHeader header, ReadSafetensorsHeader(file, path, &header_bytes));
    fingerprint.Add(name);
    fingerprint.AddNumber(file.bytes().size());
    fingerprint.Add(header_bytes);
    const std::byte* const data = file.bytes().data() + header.data_offset;
    const auto file_idx = static_cast<int32_t>(checkpoint->files_.size());
    for (SafetensorsTensor& tensor : header.tensors) {
      checkpoint->entries_.push_back(
          {std::move(tensor.name),
           TensorView{tensor.dtype, std::move(tensor.shape), data + tensor.begin}, file_idx});
    }
    checkpoint->files_.push_back(std::move(file));
  }
  checkpoint->fingerprint_ = fingerprint.Hex();

  std::vector<Entry>& entries = checkpoint->entries_;
  const auto by_name = [](const Entry& a, const Entry& b) {
    const int order = a.name.compare(b.name);
    return order != 0 ? order < 0 : a.file_idx < b.file_idx;
  };
  if (!std::is_sorted(entries.begin(), entries.end(), by_name)) {
    std::sort(entries.begin(), entries.end(), by_name);
  }
  RETURN_IF_ERROR(checkpoint->CheckUniqueNames());
  if (index.has_value()) RETURN_IF_ERROR(CheckIndexAgrees(*index, entries, index_path));
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Generate(
    const std::string& directory, std::span<const GeneratedTensor> tensors) {
  ASSIGN_OR_RETURN(const std::string config,
                   ReadTextFile(directory + "/" + kConfigName, kMaxConfigBytes));
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->directory_ = directory;
  checkpoint->file_names_ = {kGeneratedName};
  Fingerprint fingerprint;
  fingerprint.Add(config);
  fingerprint.Add(kGeneratedName);
  fingerprint.AddNumber(kGeneratorVersion);
  checkpoint->fingerprint_ = fingerprint.Hex();

  constexpr size_t kAlignment = 64;
  const auto bytes_of = [](const GeneratedTensor& tensor) {
    return static_cast<size_t>(tensor.shape.num_elements()) * DTypeSizeBytes(DType::kBF16);
  };
  size_t total = 0;
  for (const GeneratedTensor& tensor : tensors) {
    total += (bytes_of(tensor) + kAlignment - 1) / kAlignment * kAlignment;
  }
  void* const memory = ::mmap(nullptr, std::max<size_t>(total, 1), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return StatusF(absl::StatusCode::kResourceExhausted,
                   "{}: {} bytes of address space for generated weights: {}", directory, total,
                   std::strerror(errno));
  }
  (void)::madvise(memory, std::max<size_t>(total, 1), MADV_HUGEPAGE);
  checkpoint->memory_ = memory;
  checkpoint->memory_bytes_ = std::max<size_t>(total, 1);
  const auto* next = static_cast<const std::byte*>(memory);
  for (const GeneratedTensor& tensor : tensors) {
    const size_t bytes = bytes_of(tensor);
    checkpoint->entries_.push_back({tensor.name, TensorView{DType::kBF16, tensor.shape, next}, 0});
    checkpoint->generated_.push_back(
        {next, bytes, GeneratedTensorSeed(tensor.name), tensor.mean, tensor.deviation});
    next += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::sort(checkpoint->entries_.begin(), checkpoint->entries_.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  RETURN_IF_ERROR(checkpoint->CheckUniqueNames());
  return checkpoint;
}

Checkpoint::~Checkpoint() {
  if (memory_ != nullptr) ::munmap(memory_, memory_bytes_);
}

void Checkpoint::Generate(std::span<const std::byte> range, std::byte* out) const {
  const auto after = std::upper_bound(
      generated_.begin(), generated_.end(), range.data(),
      [](const std::byte* at, const Generated& tensor) { return at < tensor.begin; });
  CHECK(after != generated_.begin());
  const Generated& tensor = *std::prev(after);
  const auto offset = static_cast<size_t>(range.data() - tensor.begin);
  CHECK(offset % 2 == 0 && offset + range.size() <= tensor.bytes);
  GenerateBF16(tensor.seed, tensor.mean, tensor.deviation, static_cast<int64_t>(offset / 2),
               {out, range.size()});
}

void Checkpoint::Fill(std::span<const std::byte> range) const {
  if (generated_.empty() || range.empty()) return;
  const ptrdiff_t at = range.data() - static_cast<const std::byte*>(memory_);
  Generate(range, static_cast<std::byte*>(memory_) + at);
}

absl::Status Checkpoint::CheckUniqueNames() const {
  const auto twice =
      std::adjacent_find(entries_.begin(), entries_.end(),
                         [](const Entry& a, const Entry& b) { return a.name == b.name; });
  if (twice == entries_.end()) return absl::OkStatus();
  return DataLossF("{}: tensor '{}' is in two shards: {} and {}", directory_,
                   Printable(twice->name), FileOf(*twice), FileOf(*std::next(twice)));
}

const Checkpoint::Entry* Checkpoint::Find(std::string_view name) const {
  const auto found =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const Entry& entry, std::string_view key) { return entry.name < key; });
  return found != entries_.end() && found->name == name ? &*found : nullptr;
}

absl::StatusOr<TensorView> Checkpoint::Get(std::string_view name, const Shape& shape,
                                           std::span<const DType> dtypes) const {
  const Entry* const entry = Find(name);
  if (entry == nullptr) {
    return StatusF(absl::StatusCode::kNotFound, "{}: no tensor '{}'", directory_, name);
  }
  if (entry->view.shape != shape) {
    return DataLossF("{}: shape {}, expected {} ({})", name, entry->view.shape.ToString(),
                     shape.ToString(), FileOf(*entry));
  }
  if (std::find(dtypes.begin(), dtypes.end(), entry->view.dtype) == dtypes.end()) {
    std::string expected;
    for (DType dtype : dtypes) {
      if (!expected.empty()) expected += " or ";
      expected += DTypeName(dtype);
    }
    return DataLossF("{}: dtype {}, expected {} ({})", name, DTypeName(entry->view.dtype), expected,
                     FileOf(*entry));
  }
  return entry->view;
}

uint64_t Checkpoint::Stamp() const {
  Fingerprint stamp;
  for (size_t i = 0; i < files_.size(); ++i) {
    stamp.Add(file_names_[i]);
    stamp.AddNumber(files_[i].bytes().size());
    stamp.AddNumber(static_cast<uint64_t>(files_[i].modified_ns()));
  }
  return stamp.Low();
}

absl::Status Checkpoint::Read(std::span<const std::byte> range, std::span<std::byte> out) const {
  CHECK(range.size() == out.size());
  if (!generated_.empty()) {
    Generate(range, out.data());
    return absl::OkStatus();
  }
  for (const MappedFile& file : files_) {
    const std::span<const std::byte> bytes = file.bytes();
    if (range.data() < bytes.data() || range.data() >= bytes.data() + bytes.size()) continue;
    return file.Read(static_cast<uint64_t>(range.data() - bytes.data()), out);
  }
  CHECK(!"a range of this checkpoint");
  return absl::OkStatus();
}

void Checkpoint::Prefetch(const TensorView& view) const {
  MappedFile::Prefetch({view.data, view.size_bytes()});
}

absl::Status Checkpoint::CheckFilesUnchanged() const {
  for (const MappedFile& file : files_) RETURN_IF_ERROR(file.CheckUnchanged());
  return absl::OkStatus();
}

}  // namespace banyan
