// A model's weights as they lie on disk: safetensors files, memory-mapped and fully checked.
// Format: an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range),
// then the tensors' bytes without gaps (https://github.com/huggingface/safetensors).
// The model loader owns a Checkpoint while it packs weights. Immutable after Open, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace lserve {

// One tensor, row-major. `bytes` points into the Checkpoint that gave it (it stays valid when the
// Checkpoint is moved) and is aligned for `dtype`.
struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

class Checkpoint {
 public:
  // The folder's model.safetensors, or else model.safetensors.index.json and the shards that it
  // names. Errors: kNotFound (folder or a file absent), kInvalidArgument (a file that is broken in
  // any way; one line that names file, tensor and value).
  static Result<Checkpoint> Open(const std::string& model_dir);

  // One safetensors file, whatever its name. Errors as for Open.
  static Result<Checkpoint> OpenFile(const std::string& path);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  // Null if absent, or if no kernel reads its element type (I64, F64, BOOL, ...): such tensors are
  // listed by Names and read through ReadIntegers and ReadFloats.
  const TensorInfo* Find(std::string_view name) const;

  // The tensor with exactly that shape and a floating dtype (F32, BF16, F16).
  // Errors: kNotFound (absent), kInvalidArgument (naming wanted and found shape or dtype).
  Result<const TensorInfo*> Get(std::string_view name, std::span<const int64_t> shape) const;

  // A tensor's elements, flat, converted. ReadIntegers takes BOOL, U8 to U64 and I8 to I64;
  // ReadFloats takes F32, BF16, F16 and F64 (rounded to float).
  // Errors: kNotFound (absent), kInvalidArgument (other dtype; a U64 above the int64 range).
  Result<std::vector<int64_t>> ReadIntegers(std::string_view name) const;
  Result<std::vector<float>> ReadFloats(std::string_view name) const;

  // Every tensor, in ascending order.
  std::vector<std::string> Names() const;

  // Bytes of all tensors; headers not counted.
  int64_t total_bytes() const { return total_bytes_; }

 private:
  struct Entry;  // a tensor and its element type as the file names it

  Checkpoint();

  // Maps and checks one file and appends its entries, unsorted.
  Status AddFile(const std::string& path);
  // Maps the shards of an index and checks that they hold what its weight_map says.
  Status AddShards(const std::string& model_dir, const std::string& index_path);
  void SortEntries();

  const Entry* FindEntry(std::string_view name) const;
  Result<const Entry*> NamedEntry(std::string_view name) const;

  std::string path_;  // what was opened, for errors
  std::vector<MappedFile> files_;
  std::vector<std::unique_ptr<std::byte[]>> aligned_copies_;  // of tensors misaligned in their file
  std::vector<Entry> entries_;                                // ascending by name
  int64_t total_bytes_ = 0;
};

}  // namespace lserve
