// Attention of one layer against the machine's ceilings: prefill of a whole prompt, chunk by chunk,
// and decode at its end, for layers with all, some or no retrieval heads. Keys, values and queries
// are random; operations are counted from the pairs that are causally visible.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/build_info.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "ceilings.h"
#include "kv/two_lane_cache.h"

namespace lserve::bench {
namespace {

struct Arguments {
  std::string device = "cpu";
  std::string json;
  std::vector<int64_t> lengths = {16384, 65536};
  int32_t q_heads = 8;
  int32_t kv_heads = 4;
  int32_t head_dim = 64;
  int32_t chunk = 2048;
  int32_t repeat = 3;
  int32_t threads = 0;
};

// One layer's attention with `retrieval` retrieval heads, its cache full of random numbers.
class Layer {
 public:
  Layer(Backend& backend, const Arguments& arguments, int32_t retrieval, int64_t length)
      : backend_(backend), arguments_(arguments), stream_(backend.MakeStream()) {
    CacheConfig config;
    config.retrieval_heads = {retrieval};
    config.kv_heads = arguments.kv_heads;
    config.head_dim = arguments.head_dim;
    config.score = PageScore::kMinMax;
    config.sink_tokens = 128;
    config.local_tokens = 256;
    config.max_model_len = length;
    config.retrieval_pages = TwoLaneCache::PagesFor(length);
    config.max_chunk_pages = arguments.chunk / kPageTokens + 2;
    cache_ = TwoLaneCache::Make(backend, *stream_, config).value();
    slot_ = cache_->OpenSlot().value();
    CHECK_OK(cache_->Reserve(slot_, length));
    const RetrievalLane lane = cache_->retrieval(0);
    const StreamingLane ring = cache_->streaming(0);
    Fill(lane.pages, config.retrieval_pages * lane.layout.page_bytes());
    Fill(lane.open, lane.layout.page_bytes());
    Fill(ring.pages, (ring.sink_pages + ring.ring_pages) * ring.layout.page_bytes());
    Fill(ring.chunk_pages, config.max_chunk_pages * ring.layout.page_bytes());

    const int64_t rows = arguments.chunk + kRowSlack;
    const int64_t width = int64_t{arguments.q_heads} * arguments.head_dim * 2;
    q_ = backend.Allocate(rows * width).value();
    output_ = backend.Allocate(rows * width).value();
    Fill(q_.data(), rows * width);
    step_ = backend.Allocate(4096 + 3 * rows * 4).value();
    int32_t* words = step_.As<int32_t>();
    batch_ = BatchView{.counts = words,
                       .row_slot = words + 256,
                       .row_position = words + 256 + rows,
                       .row_token = words + 256 + 2 * rows,
                       .chunks = reinterpret_cast<const PrefillChunk*>(words + 64),
                       .logit_row = words + 128,
                       .max_rows = arguments.chunk,
                       .max_decode_rows = 1,
                       .max_chunks = 1,
                       .max_logit_rows = 1,
                       .max_slots = 1};
    units_ = backend.Allocate(int64_t{arguments.kv_heads} * kPolicy.token_budget * 4).value();
    counts_ = backend.Allocate(4096).value();
    prompt_tokens_ = backend.Allocate(64).value();
  }

  // Seconds of AttendPrefill over a whole prompt.
  double Prefill(int64_t length) {
    AttendPrefillParams params{.batch = batch_,
                               .q = q_.data(),
                               .output = output_.data(),
                               .retrieval = cache_->retrieval(0),
                               .streaming = cache_->streaming(0),
                               .block_offsets = nullptr,
                               .block_ids = nullptr,
                               .dtype = DType::kBFloat16,
                               .q_heads = arguments_.q_heads,
                               .group = arguments_.q_heads / arguments_.kv_heads,
                               .workspace = nullptr};
    Grow(backend_.ops().attend_prefill.workspace_bytes(params));
    params.workspace = workspace_.data();
    double seconds = 0;
    for (int64_t first = 0; first < length; first += arguments_.chunk) {
      SetStep(0, static_cast<int32_t>(first), std::min<int64_t>(arguments_.chunk, length - first));
      const double start = NowSeconds();
      backend_.ops().attend_prefill.run(*stream_, params);
      CHECK_OK(stream_->Synchronize());
      seconds += NowSeconds() - start;
    }
    return seconds;
  }

  // Seconds of one decode step: selection, unless dense, and attention.
  double Decode(int64_t length, bool dense) {
    SetStep(1, static_cast<int32_t>(length - 1), 0);
    const RetrievalLane lane = cache_->retrieval(0);
    UnitLists lists{};
    if (!dense) {
      lists = UnitLists{.units = units_.As<int32_t>(),
                        .counts = counts_.As<int32_t>(),
                        .slot_lists = std::max(lane.layout.heads, 1),
                        .first_list = 0,
                        .capacity = kPolicy.token_budget / kPolicy.unit_tokens};
    }
    SelectUnitsParams select{.batch = batch_,
                             .q = q_.data(),
                             .retrieval = lane,
                             .lists = lists,
                             .prompt_tokens = prompt_tokens_.As<int32_t>(),
                             .scores = nullptr,
                             .policy = kPolicy,
                             .dtype = DType::kBFloat16,
                             .q_heads = arguments_.q_heads,
                             .group = arguments_.q_heads / arguments_.kv_heads,
                             .workspace = nullptr};
    AttendDecodeParams attend{.batch = batch_,
                              .q = q_.data(),
                              .output = output_.data(),
                              .retrieval = lane,
                              .streaming = cache_->streaming(0),
                              .lists = lists,
                              .policy = kPolicy,
                              .dtype = DType::kBFloat16,
                              .q_heads = arguments_.q_heads,
                              .group = arguments_.q_heads / arguments_.kv_heads,
                              .workspace = nullptr};
    Grow(std::max(backend_.ops().select_units.workspace_bytes(select),
                  backend_.ops().attend_decode.workspace_bytes(attend)));
    select.workspace = attend.workspace = workspace_.data();
    const double start = NowSeconds();
    if (!dense && lane.layout.heads > 0) {
      backend_.ops().select_units.run(*stream_, select);
    }
    backend_.ops().attend_decode.run(*stream_, attend);
    CHECK_OK(stream_->Synchronize());
    return NowSeconds() - start;
  }

 private:
  static constexpr SelectionPolicy kPolicy{
      .token_budget = 4096, .unit_tokens = 64, .reuse_interval = 1};

  static void Fill(std::byte* data, int64_t bytes) {
    std::mt19937 random(static_cast<uint32_t>(bytes));
    std::normal_distribution<float> normal;
    std::vector<BFloat16> block(1 << 14);
    for (BFloat16& element : block) {
      element = ToBFloat16(normal(random));
    }
    for (int64_t i = 0; i < bytes / 2; ++i) {
      reinterpret_cast<BFloat16*>(data)[i] = block[static_cast<size_t>((i * 7919) % (1 << 14))];
    }
  }

  void Grow(int64_t bytes) {
    if (workspace_.bytes() < bytes) {
      workspace_ = backend_.Allocate(bytes).value();
    }
  }

  void SetStep(int32_t decode_rows, int32_t position, int64_t rows) {
    int32_t* words = step_.As<int32_t>();
    words[kDecodeRows] = decode_rows;
    words[kPrefillRows] = static_cast<int32_t>(rows);
    words[kChunks] = rows > 0 ? 1 : 0;
    words[kLogitRows] = 0;
    *reinterpret_cast<PrefillChunk*>(words + 64) = PrefillChunk{.slot = slot_,
                                                                .first_position = position,
                                                                .first_row = 0,
                                                                .rows = static_cast<int32_t>(rows),
                                                                .first_chunk_page = 0,
                                                                .first_query_block = 0};
    for (int32_t row = 0; row < std::max<int32_t>(decode_rows, static_cast<int32_t>(rows)); ++row) {
      const_cast<int32_t*>(batch_.row_slot)[row] = slot_;
      const_cast<int32_t*>(batch_.row_position)[row] = position + row;
    }
  }

  Backend& backend_;
  const Arguments& arguments_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;
  int32_t slot_ = 0;
  Buffer q_, output_, step_, units_, counts_, prompt_tokens_, workspace_;
  BatchView batch_{};
};

// KV blocks that one head's query blocks visit over a prompt.
int64_t Blocks(int64_t length, bool streaming) {
  int64_t blocks = 0;
  for (int64_t q0 = 0; q0 < length; q0 += kQueryBlockTokens) {
    const int64_t last = (std::min(q0 + kQueryBlockTokens, length) - 1) / kPageTokens;
    const int64_t local = std::max<int64_t>(q0 - 255, 0) / kPageTokens;
    const int64_t sink = std::min<int64_t>(2, local);
    blocks += streaming ? last - local + 1 + sink : last + 1;
  }
  return blocks;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("attention of one layer against the machine's ceilings");
  app.add_option("--device", arguments.device)->capture_default_str();
  app.add_option("--lengths", arguments.lengths)->delimiter(',')->capture_default_str();
  app.add_option("--q-heads", arguments.q_heads)->capture_default_str();
  app.add_option("--kv-heads", arguments.kv_heads)->capture_default_str();
  app.add_option("--head-dim", arguments.head_dim)->capture_default_str();
  app.add_option("--chunk", arguments.chunk)->capture_default_str();
  app.add_option("--repeat", arguments.repeat)->capture_default_str();
  app.add_option("--threads", arguments.threads)->capture_default_str();
  app.add_option("--json", arguments.json);
  CLI11_PARSE(app, argc, argv);
  const auto backend = MakeBackend(arguments.device, BackendOptions{arguments.threads}).value();
  OrderedJson rows = OrderedJson::array();
  OrderedJson ceilings_json = OrderedJson::array();
  std::printf("%8s %9s %12s %12s %9s %10s %9s %10s\n", "length", "retrieval", "prefill ms",
              "GFLOP/s", "of bf16", "promised", "reached", "decode ms");
  for (const int64_t length : arguments.lengths) {
    const Ceilings ceilings = MeasureCeilings(backend->facts().threads, arguments.repeat);
    ceilings_json.push_back({{"length", length},
                             {"bf16_product_gflops", ceilings.bf16_product_gflops},
                             {"f32_product_gflops", ceilings.f32_product_gflops},
                             {"read_gbps", ceilings.read_gbps}});
    const auto n = static_cast<double>(length);
    const double dense_flop = n * (n + 1) / 2 * 4.0 * arguments.head_dim * arguments.q_heads;
    // The layers interleaved, repetition by repetition; the best of each.
    std::vector<int32_t> retrieval = {arguments.kv_heads, arguments.kv_heads - 1, 0};
    std::vector<double> prefill(3, 1e30), decode(3, 1e30);
    std::vector<std::unique_ptr<Layer>> layers;
    for (const int32_t heads : retrieval) {
      layers.push_back(std::make_unique<Layer>(*backend, arguments, heads, length));
    }
    for (int32_t i = 0; i < arguments.repeat; ++i) {
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        prefill[layer] = std::min(prefill[layer], layers[layer]->Prefill(length));
        for (int32_t j = 0; j < 10; ++j) {
          decode[layer] = std::min(decode[layer], layers[layer]->Decode(length, layer == 0));
        }
      }
    }
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      const int64_t streaming = arguments.kv_heads - retrieval[layer];
      const double promised = static_cast<double>(arguments.kv_heads * Blocks(length, false)) /
                              static_cast<double>(retrieval[layer] * Blocks(length, false) +
                                                  streaming * Blocks(length, true));
      const double speed_up = prefill[0] / prefill[layer];
      const double gflops = dense_flop / promised / prefill[layer] / 1e9;
      std::printf("%8ld %5d of %d %12.1f %12.1f %8.0f%% %9.2fx %8.0f%% %10.3f\n",
                  static_cast<long>(length), retrieval[layer], arguments.kv_heads,
                  prefill[layer] * 1e3, gflops, 100 * gflops / ceilings.bf16_product_gflops,
                  promised, 100 * speed_up / promised, decode[layer] * 1e3);
      rows.push_back({{"length", length},
                      {"retrieval_heads", retrieval[layer]},
                      {"kv_heads", arguments.kv_heads},
                      {"prefill_ms", prefill[layer] * 1e3},
                      {"gflops", gflops},
                      {"share_of_bf16_product", gflops / ceilings.bf16_product_gflops},
                      {"promised_speed_up", promised},
                      {"speed_up", speed_up},
                      {"share_of_promise", speed_up / promised},
                      {"decode_ms", decode[layer] * 1e3}});
    }
    // The share of 0.875 of a six-layer model: one layer with one streaming head, five of them
    // only.
    const double dense_ms = 6 * prefill[0];
    const double lserve_ms = prefill[1] + 5 * prefill[2];
    const double promise =
        24.0 * static_cast<double>(Blocks(length, false)) /
        static_cast<double>(3 * Blocks(length, false) + 21 * Blocks(length, true));
    std::printf("%8ld six layers, 21 of 24 KV heads streaming: %.2fx of %.2fx promised, %.0f%%\n",
                static_cast<long>(length), dense_ms / lserve_ms, promise,
                100 * dense_ms / lserve_ms / promise);
    std::printf(
        "         ceilings: bf16 product %.0f, float32 product %.0f GFLOP/s, read %.1f GB/s\n",
        ceilings.bf16_product_gflops, ceilings.f32_product_gflops, ceilings.read_gbps);
  }
  if (!arguments.json.empty()) {
    const OrderedJson result = {{"commit", BuildCommit()},
                                {"device", backend->facts().name},
                                {"instructions", backend->facts().instructions},
                                {"threads", backend->facts().threads},
                                {"q_heads", arguments.q_heads},
                                {"kv_heads", arguments.kv_heads},
                                {"head_dim", arguments.head_dim},
                                {"chunk", arguments.chunk},
                                {"repeat", arguments.repeat},
                                {"ceilings", ceilings_json},
                                {"rows", rows}};
    CHECK_OK(WriteFileAtomically(arguments.json, DumpJson(result)));
  }
  return 0;
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
