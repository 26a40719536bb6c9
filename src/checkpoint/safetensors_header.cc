#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/json.h"
#include "checkpoint/error_text.h"

namespace lserve {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr auto kMaxHeaderBytes = static_cast<uint64_t>(kMaxSafetensorsHeaderBytes);

constexpr std::array<SafetensorsType, 17> kTypes = {{
    {"F32", 4, DType::kFloat32},
    {"BF16", 2, DType::kBFloat16},
    {"F16", 2, DType::kFloat16},
    {"I32", 4, DType::kInt32},
    {"U8", 1, DType::kUInt8},
    {"BOOL", 1, std::nullopt},
    {"I8", 1, std::nullopt},
    {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},
    {"U32", 4, std::nullopt},
    {"I64", 8, std::nullopt},
    {"U64", 8, std::nullopt},
    {"F64", 8, std::nullopt},
    {"F8_E4M3", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt},
    {"F8_E8M0", 1, std::nullopt},
    {"C64", 8, std::nullopt},
}};

const SafetensorsType* FindType(std::string_view name) {
  for (const SafetensorsType& type : kTypes) {
    if (type.name == name) {
      return &type;
    }
  }
  return nullptr;
}

// A whole number from 0 to the int64 maximum.
std::optional<int64_t> AsSize(const Json& value) {
  if (!value.is_number_unsigned()) {
    return std::nullopt;
  }
  const auto number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return static_cast<int64_t>(number);
}

// `where` names file and tensor.
Result<SafetensorsEntry> ParseEntry(const std::string& where, const std::string& name,
                                    const Json& value) {
  SafetensorsEntry entry;
  entry.name = name;
  if (!value.is_object()) {
    return InvalidArgument("{}: the header entry must be an object, not {}", where,
                           ShownForError(value));
  }
  const Json* dtype = FindKey(value, "dtype");
  const Json* shape = FindKey(value, "shape");
  const Json* offsets = FindKey(value, "data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr) {
    return InvalidArgument("{}: the header entry lacks \"{}\"", where,
                           dtype == nullptr   ? "dtype"
                           : shape == nullptr ? "shape"
                                              : "data_offsets");
  }
  entry.type = dtype->is_string() ? FindType(dtype->get_ref<const std::string&>()) : nullptr;
  if (entry.type == nullptr) {
    return InvalidArgument("{}: unknown dtype {}", where, ShownForError(*dtype));
  }
  if (!shape->is_array()) {
    return InvalidArgument("{}: shape must be a list, not {}", where, ShownForError(*shape));
  }
  int64_t bytes = entry.type->bytes;
  for (const Json& dimension : *shape) {
    const std::optional<int64_t> size = AsSize(dimension);
    if (!size.has_value()) {
      return InvalidArgument("{}: shape {} has the dimension {}", where, ShownForError(*shape),
                             ShownForError(dimension));
    }
    if (__builtin_mul_overflow(bytes, *size, &bytes)) {
      return InvalidArgument("{}: shape {} overflows", where, ShownForError(*shape));
    }
    entry.shape.push_back(*size);
  }
  const bool is_pair = offsets->is_array() && offsets->size() == 2;
  const std::optional<int64_t> begin = is_pair ? AsSize((*offsets)[0]) : std::nullopt;
  const std::optional<int64_t> end = is_pair ? AsSize((*offsets)[1]) : std::nullopt;
  if (!begin.has_value() || !end.has_value() || *begin > *end) {
    return InvalidArgument("{}: data_offsets must be [begin, end] with 0 <= begin <= end, not {}",
                           where, ShownForError(*offsets));
  }
  if (*end - *begin != bytes) {
    return InvalidArgument("{}: data_offsets {} span {} bytes, shape {} of {} takes {}", where,
                           ShownForError(*offsets), *end - *begin, ShownForError(*shape),
                           entry.type->name, bytes);
  }
  entry.begin = *begin;
  entry.end = *end;
  return entry;
}

// The header's text, its length checked against the file.
Result<std::string_view> HeaderText(const std::string& path, std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return InvalidArgument("{}: {} bytes are too few for a safetensors file", path, file.size());
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    return InvalidArgument("{}: header length {} is above the limit of {} bytes", path, length,
                           kMaxHeaderBytes);
  }
  if (length > file.size() - kLengthBytes) {
    return InvalidArgument("{}: header length {} reaches beyond the file of {} bytes", path, length,
                           file.size());
  }
  return std::string_view(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                          static_cast<size_t>(length));
}

// The entries in ascending order of offset, which cover the `data_bytes` after the header exactly.
Result<std::vector<SafetensorsEntry>> ParseEntries(const std::string& path, std::string_view text,
                                                   int64_t data_bytes) {
  ASSIGN_OR_RETURN(const Json header, ParseJson(text, path + ": the header"));
  if (!header.is_object()) {
    return InvalidArgument("{}: the header must be a JSON object, not {}", path,
                           ShownForError(header));
  }
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      continue;
    }
    const std::string where = fmt::format("{}: tensor {}", path, QuotedForError(name));
    ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(where, name, value));
    if (entry.end > data_bytes) {
      return InvalidArgument("{}: ends at byte {} of the data, of which the file has {}", where,
                             entry.end, data_bytes);
    }
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
            });
  int64_t covered = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin < covered) {
      return InvalidArgument("{}: tensor {} begins at byte {} and overlaps {}, which ends at {}",
                             path, QuotedForError(entry.name), entry.begin,
                             QuotedForError(previous->name), covered);
    }
    if (entry.begin > covered) {
      return InvalidArgument("{}: {} bytes before tensor {} belong to no tensor", path,
                             entry.begin - covered, QuotedForError(entry.name));
    }
    covered = entry.end;
    previous = &entry;
  }
  if (covered != data_bytes) {
    return InvalidArgument("{}: {} bytes after the last tensor belong to no tensor", path,
                           data_bytes - covered);
  }
  return entries;
}

}  // namespace

Result<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path,
                                                 std::span<const std::byte> file) {
  ASSIGN_OR_RETURN(const std::string_view text, HeaderText(path, file));
  SafetensorsHeader header;
  header.data_begin = static_cast<int64_t>(kLengthBytes + text.size());
  ASSIGN_OR_RETURN(header.entries,
                   ParseEntries(path, text, static_cast<int64_t>(file.size()) - header.data_begin));
  return header;
}

}  // namespace lserve
