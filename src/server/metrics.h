// Metrics of the server in Prometheus' text format: vLLM's names, which routers and dashboards
// know, and under "lserve:" what is ours. Engine facts are read at each scrape; request facts are
// observed as requests end. Owned by the Service. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"

namespace lserve {

// A request that got an answer or lost its client.
struct FinishedRequest {
  std::string model;
  FinishReason reason = FinishReason::kNone;
  RequestStats stats;
  double e2e_seconds = 0;   // from the request's arrival to its last token
  int64_t max_tokens = -1;  // as asked; -1: not said
  std::vector<double> inter_token_seconds;
};

class Metrics {
 public:
  Metrics();
  ~Metrics();

  // Shows a model's counters from the start, before anything was counted.
  void AddModel(const std::string& name);

  void ObserveRequest(const FinishedRequest& request);
  // route: one of the server's own routes, never text of the client's.
  void ObserveHttp(std::string_view method, std::string_view route, int status, double seconds);

  // Shown as labels of lserve:settings_info.
  void SetSettings(const std::vector<std::pair<std::string, std::string>>& settings);

  // The page. `engine` may be null (not loaded yet); model_names: one for each of its models.
  std::string Scrape(const Engine* engine, std::span<const std::string> model_names,
                     int32_t connections) const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace lserve
