# Whether the CUDA backend is built (LSERVE_WITH_CUDA), and how its files compile: target
# lserve_cuda_options. Without a CUDA compiler the program is the same, less that backend.
set(LSERVE_WITH_CUDA OFF)
if(NOT LSERVE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(LSERVE_WITH_CUDA ON)
  elseif(LSERVE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LSERVE_CUDA is ON, but there is no CUDA compiler")
  endif()
endif()

if(LSERVE_WITH_CUDA)
  # Machine code of the named architectures only: a driver compiles nothing at start-up.
  list(TRANSFORM LSERVE_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows no C++20 of nvcc's
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${CCACHE}")
  endif()
  list(JOIN LSERVE_HOST_OPTIONS "," host_options)
  add_library(lserve_cuda_options INTERFACE)
  # fmt 9 takes nvcc for a compiler without constexpr, and its consteval strings for non-constant.
  target_compile_options(lserve_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-lineinfo;--expt-relaxed-constexpr;-DFMT_USE_CONSTEXPR=1;-DFMT_CONSTEVAL=;-Xcompiler=${host_options}>")
endif()
message(STATUS "CUDA backend: ${LSERVE_WITH_CUDA}")
