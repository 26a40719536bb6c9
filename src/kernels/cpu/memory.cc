#include "kernels/cpu/memory.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "kernels/cpu/instructions.h"

namespace lserve::cpu {
namespace {

constexpr int64_t kMapFromBytes = int64_t{1} << 20;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// The text after "key" and its colon in a file of /proc, up to the end of the line.
std::string_view FieldOf(std::string_view text, std::string_view key) {
  for (size_t at = text.find(key); at != text.npos; at = text.find(key, at + 1)) {
    if (at != 0 && text[at - 1] != '\n') {
      continue;
    }
    const size_t colon = text.find(':', at);
    const size_t end = text.find('\n', at);
    if (colon == text.npos || (end != text.npos && colon > end)) {
      continue;
    }
    const size_t begin = std::min(text.find_first_not_of(" \t", colon + 1), text.size());
    return text.substr(begin, std::min(end, text.size()) - begin);
  }
  return {};
}

std::optional<int64_t> ParseInt(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end != text.data() ? std::optional(value) : std::nullopt;
}

// The content of a file of the kernel's, whose size is known only by reading; empty if there is
// none.
std::string ReadKernelFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The first number in a file; nothing if there is no such file or no number ("max").
std::optional<int64_t> ReadNumber(const char* path) { return ParseInt(ReadKernelFile(path)); }

struct MemoryBytes {
  int64_t total;
  int64_t available;
};

// Lowers `memory` to the limit of the process's control group, version 2 or 1, if there is one.
void ApplyControlGroup(MemoryBytes& memory) {
  const char* const kLimits[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
       "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
  };
  for (const auto& [limit_path, usage_path] : kLimits) {
    if (const std::optional<int64_t> limit = ReadNumber(limit_path);
        limit && *limit < memory.total) {
      memory.total = *limit;
      const int64_t left = *limit - ReadNumber(usage_path).value_or(0);
      memory.available = std::clamp<int64_t>(left, 0, memory.available);
    }
  }
}

}  // namespace

Result<Buffer> AllocateZeroed(int64_t bytes) {
  if (bytes < 0) {
    return InvalidArgument("cannot allocate {} bytes", bytes);
  }
  if (bytes < kMapFromBytes) {
    const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 64));
    void* data = ::operator new (size, std::align_val_t{64}, std::nothrow);
    if (data == nullptr) {
      return ResourceExhausted("cannot allocate {} bytes of host memory", bytes);
    }
    std::memset(data, 0, size);
    return Buffer(static_cast<std::byte*>(data), bytes, [](std::byte* block, int64_t) {
      ::operator delete (block, std::align_val_t{64});
    });
  }
  // Mapped with room to start on a huge page, so that huge pages can back all of it.
  const int64_t mapped = bytes + kHugePageBytes;
  void* map = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    return ResourceExhausted("cannot allocate {} bytes of host memory", bytes);
  }
  const auto address = reinterpret_cast<uintptr_t>(map);
  const uintptr_t aligned =
      (address + kHugePageBytes - 1) / uintptr_t{kHugePageBytes} * uintptr_t{kHugePageBytes};
  madvise(reinterpret_cast<void*>(aligned), static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return Buffer(reinterpret_cast<std::byte*>(aligned), bytes,
                [map, mapped](std::byte*, int64_t) { munmap(map, static_cast<size_t>(mapped)); });
}

int32_t AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
    return CPU_COUNT(&set);
  }
  return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
}

DeviceFacts ReadHostFacts(int32_t threads) {
  DeviceFacts facts;
  facts.threads = threads;
  facts.instructions = InstructionSummary();
  facts.name = "CPU";
  const std::string cpus = ReadKernelFile("/proc/cpuinfo");
  if (const std::string_view name = FieldOf(cpus, "model name"); !name.empty()) {
    facts.name = name;
  }
  const std::string meminfo = ReadKernelFile("/proc/meminfo");
  MemoryBytes memory{ParseInt(FieldOf(meminfo, "MemTotal")).value_or(0) * 1024,
                     ParseInt(FieldOf(meminfo, "MemAvailable")).value_or(0) * 1024};
  ApplyControlGroup(memory);
  facts.memory_bytes = memory.total;
  facts.free_bytes = memory.available;
  return facts;
}

}  // namespace lserve::cpu
