#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/json.h"
#include "checkpoint/error_text.h"
#include "checkpoint/safetensors_header.h"

namespace lserve {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::string ShapeText(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Shards lie beside their index: a plain file name.
bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

// Element i of unaligned storage.
template <typename T>
T LoadElement(std::span<const std::byte> bytes, size_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

// Appends every element of `bytes`, converted by `convert`.
template <typename T, typename Out, typename Convert>
void AppendAll(std::span<const std::byte> bytes, const Convert& convert, std::vector<Out>* out) {
  const size_t count = bytes.size() / sizeof(T);
  out->reserve(count);
  for (size_t i = 0; i < count; ++i) {
    out->push_back(convert(LoadElement<T>(bytes, i)));
  }
}

}  // namespace

struct Checkpoint::Entry {
  TensorInfo info;  // its dtype means nothing where type->dtype has no value
  const SafetensorsType* type;
};

Checkpoint::Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Result<Checkpoint> Checkpoint::Open(const std::string& model_dir) {
  if (!IsDirectory(model_dir)) {
    return NotFound("{} is not a folder", model_dir);
  }
  const std::string single = JoinPath(model_dir, kSingleFile);
  if (FileExists(single)) {
    return OpenFile(single);
  }
  const std::string index = JoinPath(model_dir, kIndexFile);
  if (!FileExists(index)) {
    return NotFound("{} has neither {} nor {}", model_dir, kSingleFile, kIndexFile);
  }
  Checkpoint checkpoint;
  checkpoint.path_ = index;
  RETURN_IF_ERROR(checkpoint.AddShards(model_dir, index));
  return checkpoint;
}

Result<Checkpoint> Checkpoint::OpenFile(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  RETURN_IF_ERROR(checkpoint.AddFile(path));
  checkpoint.SortEntries();
  return checkpoint;
}

Status Checkpoint::AddFile(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(SafetensorsHeader parsed, ParseSafetensorsHeader(path, file.bytes()));
  const std::span<const std::byte> data =
      file.bytes().subspan(static_cast<size_t>(parsed.data_begin));
  for (SafetensorsEntry& header : parsed.entries) {
    const auto size = static_cast<size_t>(header.end - header.begin);
    std::span<const std::byte> bytes = data.subspan(static_cast<size_t>(header.begin), size);
    // Old writers do not pad the header, so a tensor may lie at an odd address.
    if (reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uintptr_t>(header.type->bytes) !=
        0) {
      aligned_copies_.push_back(std::make_unique_for_overwrite<std::byte[]>(size));
      std::memcpy(aligned_copies_.back().get(), bytes.data(), size);
      bytes = {aligned_copies_.back().get(), size};
    }
    total_bytes_ += header.end - header.begin;
    entries_.push_back(
        {TensorInfo{std::move(header.name), header.type->dtype.value_or(DType::kUInt8),
                    std::move(header.shape), bytes},
         header.type});
  }
  files_.push_back(std::move(file));
  return OkStatus();
}

Status Checkpoint::AddShards(const std::string& model_dir, const std::string& index_path) {
  ASSIGN_OR_RETURN(const Json index, ReadJsonFile(index_path, kMaxSafetensorsHeaderBytes));
  const Json* weight_map = FindKey(index, "weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->empty()) {
    return InvalidArgument("{}: \"weight_map\" must be an object of tensor and shard names",
                           index_path);
  }
  std::set<std::string> shards;
  for (const auto& [name, value] : weight_map->items()) {
    if (!value.is_string() || !IsPlainFileName(value.get_ref<const std::string&>())) {
      return InvalidArgument("{}: tensor {} lies in {}, which is no plain file name", index_path,
                             QuotedForError(name), ShownForError(value));
    }
    shards.insert(value.get<std::string>());
  }
  std::map<std::string, std::string, std::less<>> shard_of;
  for (const std::string& shard : shards) {
    const size_t before = entries_.size();
    const Status added = AddFile(JoinPath(model_dir, shard));
    RETURN_IF_ERROR(added.ok() || added.code() != StatusCode::kNotFound
                        ? added
                        : added.Annotate(index_path + " names a shard"));
    for (size_t i = before; i < entries_.size(); ++i) {
      const std::string& name = entries_[i].info.name;
      const auto [twin, is_new] = shard_of.emplace(name, shard);
      if (!is_new) {
        return InvalidArgument("{}: tensor {} is in two shards, {} and {}", index_path,
                               QuotedForError(name), twin->second, shard);
      }
    }
  }
  for (const auto& [name, value] : weight_map->items()) {
    const auto found = shard_of.find(name);
    if (found == shard_of.end() || found->second != value.get_ref<const std::string&>()) {
      return InvalidArgument("{}: tensor {} is not in its shard {}", index_path,
                             QuotedForError(name), value.get_ref<const std::string&>());
    }
  }
  SortEntries();
  return OkStatus();
}

void Checkpoint::SortEntries() {
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
}

const Checkpoint::Entry* Checkpoint::FindEntry(std::string_view name) const {
  const auto found = std::lower_bound(
      entries_.begin(), entries_.end(), name,
      [](const Entry& entry, std::string_view key) { return entry.info.name < key; });
  return found != entries_.end() && found->info.name == name ? &*found : nullptr;
}

Result<const Checkpoint::Entry*> Checkpoint::NamedEntry(std::string_view name) const {
  const Entry* entry = FindEntry(name);
  if (entry == nullptr) {
    return NotFound("{}: no tensor {}", path_, QuotedForError(name));
  }
  return entry;
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const Entry* entry = FindEntry(name);
  return entry != nullptr && entry->type->dtype.has_value() ? &entry->info : nullptr;
}

Result<const TensorInfo*> Checkpoint::Get(std::string_view name,
                                          std::span<const int64_t> shape) const {
  ASSIGN_OR_RETURN(const Entry* entry, NamedEntry(name));
  const std::optional<DType> dtype = entry->type->dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    return InvalidArgument("{}: tensor {} must be F32, BF16 or F16, not {}", path_,
                           QuotedForError(name), entry->type->name);
  }
  if (!std::ranges::equal(entry->info.shape, shape)) {
    return InvalidArgument("{}: tensor {} must have the shape {}, not {}", path_,
                           QuotedForError(name), ShapeText(shape), ShapeText(entry->info.shape));
  }
  return &entry->info;
}

Result<std::vector<int64_t>> Checkpoint::ReadIntegers(std::string_view name) const {
  ASSIGN_OR_RETURN(const Entry* entry, NamedEntry(name));
  const std::span<const std::byte> bytes = entry->info.bytes;
  const std::string_view type = entry->type->name;
  const auto widen = [](auto x) { return static_cast<int64_t>(x); };
  std::vector<int64_t> out;
  if (type == "I64" || type == "U64") {
    AppendAll<int64_t>(bytes, widen, &out);
    if (type == "U64" && std::ranges::any_of(out, [](int64_t x) { return x < 0; })) {
      return InvalidArgument("{}: tensor {} holds a number above 2^63", path_,
                             QuotedForError(name));
    }
  } else if (type == "I32") {
    AppendAll<int32_t>(bytes, widen, &out);
  } else if (type == "U32") {
    AppendAll<uint32_t>(bytes, widen, &out);
  } else if (type == "I16") {
    AppendAll<int16_t>(bytes, widen, &out);
  } else if (type == "U16") {
    AppendAll<uint16_t>(bytes, widen, &out);
  } else if (type == "I8") {
    AppendAll<int8_t>(bytes, widen, &out);
  } else if (type == "U8" || type == "BOOL") {
    AppendAll<uint8_t>(bytes, widen, &out);
  } else {
    return InvalidArgument("{}: tensor {} must hold integers, not {}", path_, QuotedForError(name),
                           type);
  }
  return out;
}

Result<std::vector<float>> Checkpoint::ReadFloats(std::string_view name) const {
  ASSIGN_OR_RETURN(const Entry* entry, NamedEntry(name));
  const std::span<const std::byte> bytes = entry->info.bytes;
  const std::string_view type = entry->type->name;
  std::vector<float> out;
  if (type == "F32") {
    AppendAll<float>(
        bytes, [](float x) { return x; }, &out);
  } else if (type == "BF16") {
    AppendAll<BFloat16>(
        bytes, [](BFloat16 x) { return ToFloat(x); }, &out);
  } else if (type == "F16") {
    AppendAll<Float16>(
        bytes, [](Float16 x) { return ToFloat(x); }, &out);
  } else if (type == "F64") {
    AppendAll<double>(
        bytes, [](double x) { return static_cast<float>(x); }, &out);
  } else {
    return InvalidArgument("{}: tensor {} must hold floats, not {}", path_, QuotedForError(name),
                           type);
  }
  return out;
}

std::vector<std::string> Checkpoint::Names() const {
  std::vector<std::string> names;
  names.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    names.push_back(entry.info.name);
  }
  return names;
}

}  // namespace lserve
