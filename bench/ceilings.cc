#include "ceilings.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <string_view>
#include <vector>

#include "bandwidth.h"
#include "base/clock.h"
#include "graph_timer.h"
#include "linear_layers.h"

namespace lserve::bench {
namespace {

double ProductGflops(int64_t size, dnnl::memory::data_type type, int32_t repeat) {
  try {
    using dnnl::memory;
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    const memory::desc a({size, size}, type, memory::format_tag::ab);
    const memory::desc b({size, size}, type, memory::format_tag::any);
    const memory::desc c({size, size}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), engine);
    const dnnl::matmul product(description);
    memory left(description.src_desc(), engine);
    memory right(description.weights_desc(), engine);
    memory result(description.dst_desc(), engine);
    std::memset(left.get_data_handle(), 0, description.src_desc().get_size());
    std::memset(right.get_data_handle(), 0, description.weights_desc().get_size());
    double best = 1e30;
    for (int32_t i = 0; i <= repeat; ++i) {
      const double start = NowSeconds();
      product.execute(stream,
                      {{DNNL_ARG_SRC, left}, {DNNL_ARG_WEIGHTS, right}, {DNNL_ARG_DST, result}});
      stream.wait();
      best = i == 0 ? best : std::min(best, NowSeconds() - start);  // the first run warms up
    }
    const auto n = static_cast<double>(size);
    return 2 * n * n * n / best / 1e9;
  } catch (const dnnl::error&) {
    return 0;
  }
}

double ReadGbps(int32_t threads, int32_t repeat) {
  const std::vector<uint64_t> data((size_t{1} << 30) / sizeof(uint64_t), 1);
  double best = 1e30;
  volatile uint64_t sink = 0;
  for (int32_t i = 0; i < repeat; ++i) {
    const double start = NowSeconds();
    uint64_t sum = 0;
    const auto count = static_cast<int64_t>(data.size());
#pragma omp parallel for simd num_threads(threads) reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) {
      sum += data[static_cast<size_t>(j)];
    }
    sink = sink + sum;
    best = std::min(best, NowSeconds() - start);
  }
  return static_cast<double>(data.size() * sizeof(uint64_t)) / best / 1e9;
}

void MeasureBackendProduct(Backend& backend, int32_t repeat, Ceilings& ceilings) {
  constexpr int32_t kSize = 8192;
  LinearLayers layers(backend,
                      {.out_features = kSize, .in_features = kSize, .copies = 1, .rows = kSize});
  layers.Start(RowKind::kPrefill, kSize);
  const double seconds = MedianSeconds(layers.stream(), 1, [&](int32_t i) { layers.Run(i); },
                                       {.run_seconds = 20e-3, .runs = repeat});
  ceilings.bf16_product_gflops = 2.0 * kSize * kSize * kSize / seconds / 1e9;
  ceilings.bf16_product_variant = layers.variant();
}

}  // namespace

Ceilings MeasureCeilings(Backend& backend, int32_t repeat) {
  Ceilings ceilings;
  if (backend.name() == std::string_view("cuda")) {
    const Bandwidth bandwidth = MeasureCudaBandwidth(repeat);
    ceilings.copy_gbps = bandwidth.copy_gbps;
    ceilings.read_gbps = bandwidth.read_gbps;
    MeasureBackendProduct(backend, repeat, ceilings);
    return ceilings;
  }
  const int32_t threads = backend.facts().threads;
  omp_set_num_threads(threads);
  ceilings.bf16_product_gflops = ProductGflops(4096, dnnl::memory::data_type::bf16, repeat);
  ceilings.f32_product_gflops = ProductGflops(2048, dnnl::memory::data_type::f32, repeat);
  ceilings.read_gbps = ReadGbps(threads, repeat);
  return ceilings;
}

}  // namespace lserve::bench
