#include "kernels/cuda/cublas_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <memory>

#include "base/check.h"

namespace lserve::cuda {
namespace {

// The functions that are used, by their own names.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) multiply;
  decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithms;
  decltype(&cublasLtMatmulDescCreate) create_product;
  decltype(&cublasLtMatmulDescDestroy) destroy_product;
  decltype(&cublasLtMatmulDescSetAttribute) set_product;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  cublasLtHandle_t handle = nullptr;
};

#define LSERVE_STRING_INNER(x) #x
#define LSERVE_STRING(x) LSERVE_STRING_INNER(x)

// Null if the machine has no such library, or an older one.
std::unique_ptr<const Library> LoadLibrary() {
  void* file = dlopen("libcublasLt.so." LSERVE_STRING(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) {
    return nullptr;
  }
  auto library = std::make_unique<Library>();
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    complete = complete && function != nullptr;
  };
  find(library->create, "cublasLtCreate");
  find(library->multiply, "cublasLtMatmul");
  find(library->find_algorithms, "cublasLtMatmulAlgoGetHeuristic");
  find(library->create_product, "cublasLtMatmulDescCreate");
  find(library->destroy_product, "cublasLtMatmulDescDestroy");
  find(library->set_product, "cublasLtMatmulDescSetAttribute");
  find(library->create_layout, "cublasLtMatrixLayoutCreate");
  find(library->destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(library->create_preference, "cublasLtMatmulPreferenceCreate");
  find(library->destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(library->set_preference, "cublasLtMatmulPreferenceSetAttribute");
  if (!complete || library->create(&library->handle) != CUBLAS_STATUS_SUCCESS) {
    return nullptr;
  }
  return library;
}

const Library* TheLibrary() {
  static const std::unique_ptr<const Library> library = LoadLibrary();
  return library.get();
}

void Check(cublasStatus_t status, const char* what) {
  CHECK_MSG(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt, {}: status {}", what,
            static_cast<int>(status));
}

// The algorithm is chosen for this many rows and serves any number, so that a row's sums do not
// depend on the rows beside it.
constexpr int64_t kTypicalRows = 2048;

// A matrix as cuBLASLt sees one, column by column.
class Layout {
 public:
  Layout(const Library& library, cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride)
      : library_(library) {
    Check(library_.create_layout(&layout_, type, static_cast<uint64_t>(rows),
                                 static_cast<uint64_t>(columns), stride),
          "layout");
  }
  ~Layout() { library_.destroy_layout(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  const Library& library_;
  cublasLtMatrixLayout_t layout_ = nullptr;
};

// What is multiplied, and which algorithms may.
class Description {
 public:
  explicit Description(const Library& library) : library_(library) {
    Check(library_.create_product(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description");
    Check(library_.create_preference(&preference_), "preference");
  }
  ~Description() {
    library_.destroy_preference(preference_);
    library_.destroy_product(product_);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Check(library_.set_product(product_, attribute, &value, sizeof(value)), "description");
  }
  template <typename T>
  void Prefer(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    Check(library_.set_preference(preference_, attribute, &value, sizeof(value)), "preference");
  }
  cublasLtMatmulDesc_t product() const { return product_; }
  cublasLtMatmulPreference_t preference() const { return preference_; }

 private:
  const Library& library_;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

bool HasCublasLt() { return TheLibrary() != nullptr; }

// Row-major output^T = weight input^T is column-major: the weight is stored as its transpose.
void MultiplyByCublasLt(const CublasLtProduct& p, cudaStream_t stream) {
  const Library* library = TheLibrary();
  CHECK(library != nullptr);
  const cudaDataType_t output_type = p.output_dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
  const Layout weight(*library, CUDA_R_16BF, p.depth, p.columns, p.weight_stride);
  const Layout input(*library, CUDA_R_16BF, p.depth, p.rows, p.depth);
  const Layout output(*library, output_type, p.columns, p.rows, p.columns);
  const Layout typical_input(*library, CUDA_R_16BF, p.depth, kTypicalRows, p.depth);
  const Layout typical_output(*library, output_type, p.columns, kTypicalRows, p.columns);

  Description description(*library);
  description.Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (p.bias != nullptr) {
    description.Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    description.Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  description.Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                     static_cast<uint64_t>(kCublasLtWorkspace));
  description.Prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                     static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
  constexpr uint32_t kAlignment = 16;  // of rows, which start anywhere in a buffer
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    description.Prefer(attribute, kAlignment);
  }

  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  Check(library->find_algorithms(library->handle, description.product(), weight.get(),
                                 typical_input.get(), typical_output.get(), typical_output.get(),
                                 description.preference(), 1, &found, &count),
        "no algorithm");
  CHECK_EQ(count, 1);
  const float one = 1.0f;
  const float kept = p.accumulate ? 1.0f : 0.0f;
  Check(
      library->multiply(library->handle, description.product(), &one, p.weight, weight.get(),
                        p.input, input.get(), &kept, p.output, output.get(), p.output, output.get(),
                        &found.algo, p.workspace, static_cast<size_t>(kCublasLtWorkspace), stream),
      "product");
}

}  // namespace lserve::cuda
