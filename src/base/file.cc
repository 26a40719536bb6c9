#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace lserve {
namespace {

// The descriptor of a regular file and its size; the caller closes it.
struct OpenFile {
  int fd;
  int64_t size;
};

Result<OpenFile> OpenRegular(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return Status(errno == ENOENT ? StatusCode::kNotFound : StatusCode::kInternal,
                  fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  }
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return NotFound("{} is not a regular file", path);
  }
  return OpenFile{fd, static_cast<int64_t>(info.st_size)};
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  MappedFile mapped;
  mapped.path_ = path;
  if (file.size > 0) {
    const auto size = static_cast<size_t>(file.size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (address == MAP_FAILED) {
      const int error = errno;
      ::close(file.fd);
      return Internal("cannot map {} ({} bytes): {}", path, file.size, std::strerror(error));
    }
    mapped.bytes_ = {static_cast<const std::byte*>(address), size};
  }
  ::close(file.fd);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) {
    ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
}

Result<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  if (file.size > max_bytes) {
    ::close(file.fd);
    return InvalidArgument("{} has {} bytes, above the limit of {}", path, file.size, max_bytes);
  }
  std::string content(static_cast<size_t>(file.size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::read(file.fd, content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      break;
    }
    done += static_cast<size_t>(got);
  }
  ::close(file.fd);
  if (done != content.size()) {
    return Internal("cannot read {}: got {} of {} bytes", path, done, content.size());
  }
  return content;
}

Status WriteFileAtomically(const std::string& path, std::string_view content) {
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    out.flush();
    if (!out) {
      return Internal("cannot write {}", partial);
    }
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) {
    return Internal("cannot rename {} to {}: {}", partial, path, error.message());
  }
  return OkStatus();
}

bool FileExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

bool IsDirectory(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

std::string JoinPath(std::string_view dir, std::string_view name) {
  std::string path(dir);
  if (!path.empty() && path.back() != '/') {
    path += '/';
  }
  path += name;
  return path;
}

}  // namespace lserve
