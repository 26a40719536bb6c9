#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace lserve {
namespace {

constexpr std::string_view kScheme = "bearer ";

bool StartsWithScheme(std::string_view text) {
  if (text.size() < kScheme.size()) {
    return false;
  }
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = text[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c) != kScheme[i]) {
      return false;
    }
  }
  return true;
}

}  // namespace

ApiKeys::Digest ApiKeys::DigestOf(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    if (!key.empty()) {
      digests_.push_back(DigestOf(key));
    }
  }
}

bool ApiKeys::Accepts(std::string_view authorization) const {
  if (!required()) {
    return true;
  }
  if (!StartsWithScheme(authorization)) {
    return false;
  }
  const Digest given = DigestOf(authorization.substr(kScheme.size()));
  int matches = 0;
  for (const Digest& digest : digests_) {
    matches |= static_cast<int>(CRYPTO_memcmp(given.data(), digest.data(), digest.size()) == 0);
  }
  return matches != 0;
}

}  // namespace lserve
