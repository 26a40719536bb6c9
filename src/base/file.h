// Files: read-only memory maps, whole-file reads and atomic writes. Not thread-safe per object;
// a MappedFile's bytes may be read from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lserve {

// A whole file mapped read-only for its lifetime. Move-only. An empty file maps to no bytes.
class MappedFile {
 public:
  // Errors: kNotFound (no such regular file), kInternal (the mapping failed).
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;

  std::string path_;
  std::span<const std::byte> bytes_;
};

// The content of a regular file of at most max_bytes. Errors: kNotFound, kInvalidArgument (too
// large), kInternal (read failed).
Result<std::string> ReadFile(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// Writes beside `path` and renames, so that a reader sees the old or the new content, never half.
Status WriteFileAtomically(const std::string& path, std::string_view content);

bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);

// "dir/name", with exactly one slash between.
std::string JoinPath(std::string_view dir, std::string_view name);

}  // namespace lserve
