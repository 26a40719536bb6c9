// API keys, compared in constant time. A value, immutable, thread-safe.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace lserve {

class ApiKeys {
 public:
  // No keys: everybody may come in. Empty keys are passed over.
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool required() const { return !digests_.empty(); }

  // `authorization`: the header's value, "Bearer KEY". The time taken does not depend on how much
  // of a key is right, nor on which key it is.
  bool Accepts(std::string_view authorization) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest DigestOf(std::string_view text);

  std::vector<Digest> digests_;
};

}  // namespace lserve
