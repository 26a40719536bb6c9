#include "checkpoint/error_text.h"

namespace lserve {

std::string ShownForError(const Json& value) {
  constexpr size_t kLongest = 200;
  // Only ASCII comes out, so that cutting never splits a character.
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongest) {
    text = text.substr(0, kLongest) + "...";
  }
  return text;
}

std::string QuotedForError(std::string_view text) { return ShownForError(Json(text)); }

}  // namespace lserve
