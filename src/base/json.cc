#include "base/json.h"

#include <set>
#include <vector>

#include "base/file.h"

namespace lserve {

Result<Json> ParseJson(std::string_view text, std::string_view what, int max_depth) {
  bool too_deep = false;
  std::string twice;
  std::vector<std::set<std::string>> keys;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        too_deep = too_deep || depth >= max_depth;
        keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end: keys.pop_back(); break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second && twice.empty()) {
          twice = parsed.get<std::string>();
        }
        break;
      case Json::parse_event_t::value: break;
    }
    return !too_deep;
  };
  try {
    Json value = Json::parse(text, watch);
    if (too_deep) {
      return InvalidArgument("{} is nested deeper than {} levels", what, max_depth);
    }
    if (!twice.empty()) {
      return InvalidArgument("{} has the key \"{}\" twice in one object", what, twice);
    }
    return value;
  } catch (const Json::exception& error) {
    return InvalidArgument("{} is not valid JSON: {}", what, error.what());
  }
}

Result<Json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

const Json* FindKey(const Json& object, std::string_view key) {
  if (!object.is_object()) {
    return nullptr;
  }
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

std::string DumpJson(const OrderedJson& value) {
  return value.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

std::string DumpJsonLine(const OrderedJson& value) {
  return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace lserve
