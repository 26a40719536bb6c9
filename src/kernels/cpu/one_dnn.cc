#include "kernels/cpu/one_dnn.h"

#include <omp.h>

#include <algorithm>
#include <dnnl.hpp>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "kernels/cpu/instructions.h"
#include "kernels/cpu/linear.h"

namespace lserve::cpu {
namespace {

using dnnl::memory;

// oneDNN plans for as many threads as OpenMP has when a primitive is made; ours run on one.
class OneThread {
 public:
  OneThread() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() { omp_set_num_threads(saved_); }

 private:
  int saved_;
};

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Product {
  int64_t columns = 0;
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul primitive;
};

Product MakeProduct(int64_t depth, int64_t columns) {
  using Tag = memory::format_tag;
  const memory::desc input({kTileRows, depth}, memory::data_type::bf16, Tag::ab);
  const memory::desc panels({depth, columns}, memory::data_type::bf16, Tag::BA16a16b2a);
  const memory::desc output({kTileRows, columns}, memory::data_type::f32, Tag::ab);
  dnnl::primitive_attr attributes;
  // The library's own scratchpad belongs to the thread that made the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  Product product;
  product.columns = columns;
  product.desc =
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(input, panels, output), attributes, Engine());
  product.primitive = dnnl::matmul(product.desc);
  return product;
}

}  // namespace

struct OneDnnProduct::State {
  Product full;
  Product last;
  int64_t scratch_bytes = 0;  // asking the library allocates
};

OneDnnProduct::OneDnnProduct(std::unique_ptr<State> state) : state_(std::move(state)) {}
OneDnnProduct::~OneDnnProduct() = default;

std::unique_ptr<OneDnnProduct> OneDnnProduct::Make(int64_t depth, int64_t columns,
                                                   int64_t last_columns) {
  if (!HasAvx512()) {
    return nullptr;
  }
  const OneThread one_thread;
  try {
    auto state = std::make_unique<State>();
    state->full = MakeProduct(depth, columns);
    state->last = last_columns == columns ? state->full : MakeProduct(depth, last_columns);
    if (std::string_view(state->full.desc.impl_info_str()).find("ref") != std::string_view::npos) {
      return nullptr;
    }
    state->scratch_bytes =
        static_cast<int64_t>(std::max(state->full.desc.scratchpad_desc().get_size(),
                                      state->last.desc.scratchpad_desc().get_size()));
    return std::unique_ptr<OneDnnProduct>(new OneDnnProduct(std::move(state)));
  } catch (const dnnl::error&) {
    return nullptr;
  }
}

int64_t OneDnnProduct::scratch_bytes() const { return state_->scratch_bytes; }

void OneDnnProduct::Run(int64_t columns, const BFloat16* input, const BFloat16* panels,
                        float* output, std::byte* scratch) const {
  const Product& product = columns == state_->full.columns ? state_->full : state_->last;
  CHECK_EQ(columns, product.columns);
  try {
    static thread_local dnnl::stream stream(Engine());
    const auto wrap = [](const memory::desc& desc, const void* data) {
      return memory(desc, Engine(), const_cast<void*>(data));
    };
    product.primitive.execute(
        stream, {{DNNL_ARG_SRC, wrap(product.desc.src_desc(), input)},
                 {DNNL_ARG_WEIGHTS, wrap(product.desc.weights_desc(), panels)},
                 {DNNL_ARG_DST, wrap(product.desc.dst_desc(), output)},
                 {DNNL_ARG_SCRATCHPAD, wrap(product.desc.scratchpad_desc(), scratch)}});
  } catch (const dnnl::error& error) {
    CHECK_MSG(false, "oneDNN failed: {}", error.what());
  }
}

}  // namespace lserve::cpu
