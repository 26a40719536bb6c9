#include "sparse/head_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/file.h"
#include "base/json.h"

namespace lserve {
namespace {

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  for (size_t end = text.find(separator); end != std::string_view::npos;
       end = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

// An optional field of a plan's config.json.
Result<std::optional<int64_t>> WindowSize(const Json& config, const char* field, int64_t low,
                                          const std::string& path) {
  const Json* value = FindKey(config, field);
  if (value == nullptr || value->is_null()) {
    return std::optional<int64_t>();
  }
  constexpr int64_t kHigh = 1 << 20;
  if (!value->is_number_integer() || *value < low || *value > kHigh) {
    return InvalidArgument("{}: {} {} is no integer of {} to {}", path, field, value->dump(), low,
                           kHigh);
  }
  return std::optional<int64_t>(value->get<int64_t>());
}

}  // namespace

HeadPlan HeadPlan::AllRetrieval(int32_t layers, int32_t kv_heads) {
  const HeadGates gates(static_cast<size_t>(layers),
                        std::vector<double>(static_cast<size_t>(kv_heads), 1.0));
  return FromGates(gates, 0.0);
}

HeadPlan HeadPlan::FromGates(const HeadGates& gates, double share) {
  CHECK(!gates.empty() && !gates[0].empty());
  CHECK_MSG(share >= 0 && share <= 1, "streaming share {}", share);
  const size_t kv_heads = gates[0].size();
  std::vector<std::pair<size_t, size_t>> ranked;  // (layer, head), lowest gate first
  for (size_t layer = 0; layer < gates.size(); ++layer) {
    CHECK_EQ(gates[layer].size(), kv_heads);
    for (size_t head = 0; head < kv_heads; ++head) {
      ranked.emplace_back(layer, head);
    }
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](const auto& a, const auto& b) {
    return gates[a.first][a.second] < gates[b.first][b.second];
  });
  const auto streaming_count =
      static_cast<size_t>(std::floor(share * static_cast<double>(ranked.size()) + 0.5));
  std::vector<std::vector<bool>> streams(gates.size(), std::vector<bool>(kv_heads, false));
  for (size_t i = 0; i < streaming_count; ++i) {
    streams[ranked[i].first][ranked[i].second] = true;
  }

  HeadPlan plan;
  plan.kv_heads_ = static_cast<int32_t>(kv_heads);
  for (const std::vector<bool>& layer : streams) {
    std::vector<int32_t> order(kv_heads);
    std::iota(order.begin(), order.end(), 0);
    const auto first_streaming =
        std::stable_partition(order.begin(), order.end(),
                              [&](int32_t head) { return !layer[static_cast<size_t>(head)]; });
    plan.retrieval_heads_.push_back(static_cast<int32_t>(first_streaming - order.begin()));
    plan.order_.push_back(std::move(order));
  }
  return plan;
}

int32_t HeadPlan::total_retrieval_heads() const {
  return std::accumulate(retrieval_heads_.begin(), retrieval_heads_.end(), 0);
}

Result<HeadGates> ReadHeadGates(const std::string& path, int32_t layers, int32_t kv_heads) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, int64_t{16} << 20));
  HeadGates gates;
  int32_t number = 0;
  for (std::string_view line : Split(text, '\n')) {
    ++number;
    if (!line.empty() && line.back() == '\r') {
      line.remove_suffix(1);
    }
    if (line.empty()) {
      continue;
    }
    std::vector<double> row;
    for (const std::string_view field : Split(line, '\t')) {
      double value = 0;
      const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
      if (error != std::errc() || end != field.data() + field.size() || !std::isfinite(value)) {
        return InvalidArgument("{} line {}: \"{}\" is not a number", path, number,
                               field.substr(0, 64));
      }
      row.push_back(std::clamp(value, 0.0, 1.0));
    }
    if (row.size() != static_cast<size_t>(kv_heads)) {
      return InvalidArgument("{} line {} has {} gates, the model has {} KV heads", path, number,
                             row.size(), kv_heads);
    }
    gates.push_back(std::move(row));
  }
  if (gates.size() != static_cast<size_t>(layers)) {
    return InvalidArgument("{} has {} lines of gates, the model has {} layers", path, gates.size(),
                           layers);
  }
  return gates;
}

std::string FormatHeadGates(const HeadGates& gates) {
  std::string text;
  for (const std::vector<double>& row : gates) {
    for (size_t head = 0; head < row.size(); ++head) {
      text += fmt::format("{}{:.6f}", head > 0 ? "\t" : "", row[head]);
    }
    text += "\n";
  }
  return text;
}

Result<HeadPlanFiles> FindHeadPlan(const std::string& path) {
  HeadPlanFiles files;
  if (!IsDirectory(path)) {
    files.gates = path;
    return files;
  }
  files.gates = JoinPath(path, "full_attention_heads.tsv");
  if (!FileExists(files.gates)) {
    return NotFound("the head plan {} is a folder without full_attention_heads.tsv", path);
  }
  const std::string config_path = JoinPath(path, "config.json");
  if (!FileExists(config_path)) {
    return files;
  }
  ASSIGN_OR_RETURN(const Json config, ReadJsonFile(config_path, int64_t{1} << 20));
  ASSIGN_OR_RETURN(files.sink_tokens, WindowSize(config, "sink_size", 0, config_path));
  ASSIGN_OR_RETURN(files.local_tokens, WindowSize(config, "recent_size", 1, config_path));
  return files;
}

}  // namespace lserve
