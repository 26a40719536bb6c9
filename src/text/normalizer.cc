#include "text/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>

#include "text/utf8.h"

namespace lserve {
namespace {

void NormalizeForm(utf8proc_option_t options, TrustedText* text) {
  const std::string& in = text->text;
  const bool marked = !text->trust.empty();
  TrustedText out;
  out.text.reserve(in.size());
  size_t i = 0;
  // ASCII is its own normal form and never joins what stands before it, so each stretch from an
  // ASCII character up to the next one is normalised alone.
  const auto is_ascii = [&](size_t at) { return static_cast<unsigned char>(in[at]) < 0x80; };
  while (i < in.size()) {
    size_t end = i + 1;
    if (is_ascii(i) && (end == in.size() || is_ascii(end))) {
      out.text.push_back(in[i]);
      if (marked) {
        out.trust.push_back(text->trust[i]);
      }
      i = end;
      continue;
    }
    while (end < in.size() && !is_ascii(end)) {
      ++end;
    }
    utf8proc_uint8_t* mapped = nullptr;
    const utf8proc_ssize_t length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(in.data() + i),
                     static_cast<utf8proc_ssize_t>(end - i), &mapped, options);
    CHECK_MSG(length >= 0, "utf8proc_map: {}", utf8proc_errmsg(length));
    const std::string_view result(reinterpret_cast<const char*>(mapped),
                                  static_cast<size_t>(length));
    out.text.append(result);
    if (marked && result == std::string_view(in).substr(i, end - i)) {
      out.trust.append(text->trust, i, end - i);
    } else if (marked) {
      out.trust.append(result.size(), text->IsTrusted(i, end) ? '\1' : '\0');
    }
    std::free(mapped);  // NOLINT: utf8proc allocates with malloc
    i = end;
  }
  *text = std::move(out);
}

void Replace(const std::string& pattern, const std::string& content, TrustedText* text) {
  TrustedText out;
  out.text.reserve(text->text.size());
  size_t done = 0;
  while (true) {
    const size_t found = text->text.find(pattern, done);
    const size_t end = found == std::string::npos ? text->text.size() : found;
    out.text.append(text->text, done, end - done);
    if (!text->trust.empty()) {
      out.trust.append(text->trust, done, end - done);
    }
    if (found == std::string::npos) {
      break;
    }
    done = found + pattern.size();
    out.text.append(content);
    if (!text->trust.empty()) {
      out.trust.append(content.size(), text->IsTrusted(found, done) ? '\1' : '\0');
    }
  }
  *text = std::move(out);
}

}  // namespace

Result<Normalizer> Normalizer::FromJson(const Json& normalizer) {
  Normalizer result;
  RETURN_IF_ERROR(result.Add(normalizer, 0));
  return result;
}

Status Normalizer::Add(const Json& normalizer, int depth) {
  if (normalizer.is_null()) {
    return OkStatus();
  }
  const Json* type = FindKey(normalizer, "type");
  if (type == nullptr || !type->is_string() || depth > 4) {
    return InvalidArgument("the tokenizer has a normalizer without a type, or nested too deep");
  }
  const auto& name = type->get_ref<const std::string&>();
  if (name == "Sequence") {
    const Json* parts = FindKey(normalizer, "normalizers");
    if (parts == nullptr || !parts->is_array()) {
      return InvalidArgument("the tokenizer's normalizer Sequence has no \"normalizers\" list");
    }
    for (const Json& part : *parts) {
      RETURN_IF_ERROR(Add(part, depth + 1));
    }
  } else if (name == "NFC") {
    steps_.push_back({Kind::kNfc, "", ""});
  } else if (name == "NFD") {
    steps_.push_back({Kind::kNfd, "", ""});
  } else if (name == "NFKC") {
    steps_.push_back({Kind::kNfkc, "", ""});
  } else if (name == "NFKD") {
    steps_.push_back({Kind::kNfkd, "", ""});
  } else if (name == "Prepend") {
    const Json* prepend = FindKey(normalizer, "prepend");
    if (prepend == nullptr || !prepend->is_string()) {
      return InvalidArgument("the tokenizer's normalizer Prepend has no \"prepend\" text");
    }
    steps_.push_back({Kind::kPrepend, "", prepend->get<std::string>()});
  } else if (name == "Replace") {
    const Json* pattern = FindKey(normalizer, "pattern");
    const Json* content = FindKey(normalizer, "content");
    const Json* literal = pattern == nullptr ? nullptr : FindKey(*pattern, "String");
    if (content == nullptr || !content->is_string()) {
      return InvalidArgument("the tokenizer's normalizer Replace has no \"content\" text");
    }
    if (literal == nullptr || !literal->is_string() || *literal == "") {
      return Unimplemented(
          "the tokenizer's normalizer Replace has the pattern {}; supported is a "
          "String that is not empty",
          pattern ? pattern->dump() : "null");
    }
    steps_.push_back({Kind::kReplace, literal->get<std::string>(), content->get<std::string>()});
  } else {
    return Unimplemented("the tokenizer's normalizer is of type \"{}\", which is not supported",
                         name);
  }
  return OkStatus();
}

void Normalizer::Apply(TrustedText* text) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc:
        NormalizeForm(static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE), text);
        break;
      case Kind::kNfd:
        NormalizeForm(static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), text);
        break;
      case Kind::kNfkc:
        NormalizeForm(
            static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT),
            text);
        break;
      case Kind::kNfkd:
        NormalizeForm(
            static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT),
            text);
        break;
      case Kind::kPrepend:
        if (!text->text.empty()) {
          text->text.insert(0, step.content);
          if (!text->trust.empty()) {
            text->trust.insert(0, step.content.size(), text->trust[0]);
          }
        }
        break;
      case Kind::kReplace: Replace(step.pattern, step.content, text); break;
    }
  }
}

std::string Normalizer::Apply(std::string_view text) const {
  TrustedText plain{std::string(text), ""};
  Apply(&plain);
  return std::move(plain.text);
}

}  // namespace lserve
