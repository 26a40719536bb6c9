#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cctype>
#include <string>

#include "base/build_info.h"

namespace lserve {
namespace {

using prometheus::ClientMetric;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = Histogram::BucketBoundaries;

const Buckets& LatencyBuckets() {  // seconds; a prefill of a million tokens takes minutes
  static const Buckets buckets = {0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1,    2.5,  5,
                                  10,    20,   40,   80,   160, 320,  640, 1280, 2560, 7680};
  return buckets;
}

const Buckets& TokenLatencyBuckets() {
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                  0.2,   0.3,    0.4,   0.5,  0.75,  1,    2.5,   5,   10};
  return buckets;
}

const Buckets& LengthBuckets() {  // tokens
  static const Buckets buckets = [] {
    Buckets powers;
    for (double tokens = 1; tokens <= 2097152; tokens *= 2) {
      powers.push_back(tokens);
    }
    return powers;
  }();
  return buckets;
}

const Buckets& BytesBuckets() {
  static const Buckets buckets = [] {
    Buckets powers;
    for (double bytes = 65536; bytes <= 274877906944.0; bytes *= 4) {
      powers.push_back(bytes);
    }
    return powers;
  }();
  return buckets;
}

Labels ModelLabels(const std::string& model) { return {{"engine", "0"}, {"model_name", model}}; }

ClientMetric WithLabels(const Labels& labels) {
  ClientMetric metric;
  for (const auto& [name, value] : labels) {
    metric.label.push_back({name, value});
  }
  return metric;
}

// One family whose values are read from the engine.
class EngineFamily {
 public:
  EngineFamily(std::string name, std::string help, MetricType type) {
    family_.name = std::move(name);
    family_.help = std::move(help);
    family_.type = type;
  }

  void Add(const Labels& labels, double value) {
    ClientMetric metric = WithLabels(labels);
    if (family_.type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family_.metric.push_back(std::move(metric));
  }

  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

struct EngineFact {
  const char* name;
  const char* help;
  MetricType type;
  double (*value)(const EngineModelStats&);
};

double Number(int64_t value) { return static_cast<double>(value); }

constexpr EngineFact kEngineFacts[] = {
    {"vllm:num_requests_running", "Requests in the running batch.", MetricType::Gauge,
     [](const EngineModelStats& stats) { return Number(stats.running); }},
    {"vllm:num_requests_waiting", "Requests that wait for a place.", MetricType::Gauge,
     [](const EngineModelStats& stats) { return Number(stats.waiting); }},
    {"vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", MetricType::Gauge,
     [](const EngineModelStats& stats) {
       return stats.kv_pages > 0 ? Number(stats.kv_pages_used) / Number(stats.kv_pages) : 0.0;
     }},
    {"vllm:prompt_tokens_total", "Prompt tokens prefilled.", MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.prompt_tokens); }},
    {"vllm:generation_tokens_total", "Tokens generated.", MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.generation_tokens); }},
    {"vllm:num_preemptions_total", "Sequences put back for lack of pages.", MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.preemptions); }},
    {"lserve:kv_pages", "Retrieval pages of the pool (64 tokens each).", MetricType::Gauge,
     [](const EngineModelStats& stats) { return Number(stats.kv_pages); }},
    {"lserve:kv_pages_used", "Retrieval pages in use.", MetricType::Gauge,
     [](const EngineModelStats& stats) { return Number(stats.kv_pages_used); }},
    {"lserve:selection_lists_used_total", "Unit lists read by decode rows beyond the token budget.",
     MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.selection.uses); }},
    {"lserve:selection_lists_made_total", "Unit lists made: the others were reused.",
     MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.selection.made); }},
    {"lserve:prefill_blocks_scored_total",
     "KV blocks that tiles of query rows scored in dynamic prefill attention.", MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.selection.prefill.scored); }},
    {"lserve:prefill_blocks_weighed_total", "Of these, the blocks that were not left out.",
     MetricType::Counter,
     [](const EngineModelStats& stats) { return Number(stats.selection.prefill.weighed); }},
};

// What --audit-rate found, by layer.
struct AuditFact {
  const char* name;
  const char* help;
  MetricType type;
  double (*value)(const LayerAudit&);
};

constexpr AuditFact kAuditFacts[] = {
    {"lserve:audit_rows_total", "Decode rows whose selection was compared with dense attention.",
     MetricType::Counter, [](const LayerAudit& layer) { return Number(layer.rows); }},
    {"lserve:audit_captured_mass_total",
     "Sum over audited rows of the attention mass that the selected units hold.",
     MetricType::Counter, [](const LayerAudit& layer) { return layer.captured_sum; }},
    {"lserve:audit_captured_mass_min", "The least of them.", MetricType::Gauge,
     [](const LayerAudit& layer) { return layer.captured_least; }},
    {"lserve:audit_output_error_total",
     "Sum over audited rows of the retrieval heads' relative output error.", MetricType::Counter,
     [](const LayerAudit& layer) { return layer.error_sum; }},
    {"lserve:audit_output_error_max", "The largest of them.", MetricType::Gauge,
     [](const LayerAudit& layer) { return layer.error_most; }},
};

// A setting's name as a label: "token-budget" becomes "token_budget".
std::string LabelName(std::string_view name) {
  std::string label;
  for (const char c : name) {
    label.push_back(std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_');
  }
  return label;
}

}  // namespace

struct Metrics::Families {
  prometheus::Registry registry;

  Family<Histogram>& Histograms(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }

  Family<Histogram>& ttft =
      Histograms("vllm:time_to_first_token_seconds", "From arrival to the first token.");
  Family<Histogram>& inter_token =
      Histograms("vllm:inter_token_latency_seconds", "Between two tokens of a request.");
  Family<Histogram>& per_token = Histograms("vllm:request_time_per_output_token_seconds",
                                            "Mean time of a token after the first.");
  Family<Histogram>& e2e =
      Histograms("vllm:e2e_request_latency_seconds", "From arrival to the last token.");
  Family<Histogram>& queue =
      Histograms("vllm:request_queue_time_seconds", "From arrival to the first chunk.");
  Family<Histogram>& prefill =
      Histograms("vllm:request_prefill_time_seconds", "From the first chunk to the first token.");
  Family<Histogram>& decode =
      Histograms("vllm:request_decode_time_seconds", "From the first token to the last.");
  Family<Histogram>& inference =
      Histograms("vllm:request_inference_time_seconds", "From the first chunk to the last token.");
  Family<Histogram>& prompt_tokens =
      Histograms("vllm:request_prompt_tokens", "Tokens of a prompt.");
  Family<Histogram>& generation_tokens =
      Histograms("vllm:request_generation_tokens", "Tokens of an answer.");
  Family<Histogram>& max_tokens =
      Histograms("vllm:request_params_max_tokens", "max_tokens, where a request names it.");
  Family<Histogram>& kv_bytes =
      Histograms("lserve:request_kv_bytes", "Bytes of KV cache in use at a request's end.");
  Family<Counter>& success = prometheus::BuildCounter()
                                 .Name("vllm:request_success_total")
                                 .Help("Requests that ended, by reason.")
                                 .Register(registry);
  Family<Counter>& http = prometheus::BuildCounter()
                              .Name("http_requests_total")
                              .Help("Replies, by method, route and status.")
                              .Register(registry);
  Family<Histogram>& http_seconds =
      Histograms("http_request_duration_seconds", "From a request's header to its reply's head.");
  Family<Gauge>& build =
      prometheus::BuildGauge().Name("lserve:build_info").Help("The program.").Register(registry);
  Family<Gauge>& settings = prometheus::BuildGauge()
                                .Name("lserve:settings_info")
                                .Help("The settings in force.")
                                .Register(registry);
};

Metrics::Metrics() : families_(std::make_unique<Families>()) {
  families_->build.Add({{"version", BuildVersion()}, {"commit", BuildCommit()}}).Set(1);
}

Metrics::~Metrics() = default;

void Metrics::AddModel(const std::string& name) {
  const Labels labels = ModelLabels(name);
  for (const FinishReason reason : {FinishReason::kStop, FinishReason::kLength,
                                    FinishReason::kCancelled, FinishReason::kError}) {
    Labels with_reason = labels;
    with_reason["finished_reason"] = FinishReasonName(reason);
    families_->success.Add(with_reason);
  }
  families_->ttft.Add(labels, LatencyBuckets());
  families_->e2e.Add(labels, LatencyBuckets());
}

void Metrics::ObserveRequest(const FinishedRequest& request) {
  Families& all = *families_;
  const Labels labels = ModelLabels(request.model);
  Labels with_reason = labels;
  with_reason["finished_reason"] = FinishReasonName(request.reason);
  all.success.Add(with_reason).Increment();
  const RequestStats& stats = request.stats;
  const auto observe = [&](Family<Histogram>& family, const Buckets& buckets, double value) {
    family.Add(labels, buckets).Observe(value);
  };
  observe(all.prompt_tokens, LengthBuckets(), Number(stats.prompt_tokens));
  observe(all.generation_tokens, LengthBuckets(), Number(stats.generated_tokens));
  observe(all.e2e, LatencyBuckets(), request.e2e_seconds);
  observe(all.queue, LatencyBuckets(), stats.queue_seconds);
  if (request.max_tokens > 0) {
    observe(all.max_tokens, LengthBuckets(), Number(request.max_tokens));
  }
  if (stats.kv_bytes > 0) {
    observe(all.kv_bytes, BytesBuckets(), Number(stats.kv_bytes));
  }
  if (stats.generated_tokens > 0) {
    observe(all.ttft, LatencyBuckets(), stats.queue_seconds + stats.prefill_seconds);
    observe(all.prefill, LatencyBuckets(), stats.prefill_seconds);
    observe(all.decode, LatencyBuckets(), stats.decode_seconds);
    observe(all.inference, LatencyBuckets(), stats.prefill_seconds + stats.decode_seconds);
  }
  if (stats.generated_tokens > 1) {
    observe(all.per_token, TokenLatencyBuckets(),
            stats.decode_seconds / Number(stats.generated_tokens - 1));
  }
  for (const double seconds : request.inter_token_seconds) {
    observe(all.inter_token, TokenLatencyBuckets(), seconds);
  }
}

void Metrics::ObserveHttp(std::string_view method, std::string_view route, int status,
                          double seconds) {
  const std::string handler(route);
  families_->http
      .Add({{"method", std::string(method)},
            {"handler", handler},
            {"status", std::to_string(status)}})
      .Increment();
  families_->http_seconds
      .Add({{"method", std::string(method)}, {"handler", handler}}, LatencyBuckets())
      .Observe(seconds);
}

void Metrics::SetSettings(const std::vector<std::pair<std::string, std::string>>& settings) {
  Labels labels;
  for (const auto& [name, value] : settings) {
    labels[LabelName(name)] = value;
  }
  families_->settings.Add(labels).Set(1);
}

std::string Metrics::Scrape(const Engine* engine, std::span<const std::string> model_names,
                            int32_t connections) const {
  std::vector<MetricFamily> families;
  if (engine != nullptr) {
    for (const EngineFact& fact : kEngineFacts) {
      EngineFamily family(fact.name, fact.help, fact.type);
      for (int32_t model = 0; model < engine->num_models(); ++model) {
        const auto index = static_cast<size_t>(model);
        if (index < model_names.size()) {
          family.Add(ModelLabels(model_names[index]), fact.value(engine->stats(model)));
        }
      }
      families.push_back(family.Take());
    }
  }
  for (const AuditFact& fact : kAuditFacts) {
    EngineFamily family(fact.name, fact.help, fact.type);
    bool any = false;
    for (int32_t model = 0; engine != nullptr && model < engine->num_models(); ++model) {
      for (const LayerAudit& layer : engine->stats(model).selection.layers) {
        Labels labels = ModelLabels(model_names[static_cast<size_t>(model)]);
        labels.emplace("layer", std::to_string(layer.layer));
        family.Add(labels, fact.value(layer));
        any = true;
      }
    }
    if (any) {
      families.push_back(family.Take());
    }
  }
  EngineFamily open("lserve:connections", "Open client connections.", MetricType::Gauge);
  open.Add({}, connections);
  families.push_back(open.Take());
  for (MetricFamily& family : families_->registry.Collect()) {
    families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace lserve
