# Every library that the program links, found once; floors name the imported targets.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(ZLIB REQUIRED)
find_package(dnnl REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)

if(LSERVE_TESTS)
  enable_testing()
  find_package(GTest REQUIRED)
  include(GoogleTest)
  # Seconds a test; the scalar backend takes minutes under a sanitizer.
  set(LSERVE_TEST_TIMEOUT 900)
  if(LSERVE_SANITIZE)
    set(LSERVE_TEST_TIMEOUT 1800)
  endif()
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE}")
endif()

# The oldest machine the program starts on; faster instructions are chosen at run time (Highway,
# target attributes), never by per-file flags.
add_library(lserve_options INTERFACE)
set(LSERVE_WARNINGS -Wall -Wextra -Wshadow -Wconversion -Werror)
set(LSERVE_HOST_OPTIONS -march=x86-64-v2 ${LSERVE_WARNINGS} -fno-math-errno)
target_compile_options(lserve_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${LSERVE_HOST_OPTIONS}>")
target_include_directories(lserve_options INTERFACE "${CMAKE_SOURCE_DIR}/src")
target_compile_definitions(lserve_options INTERFACE BOOST_ASIO_NO_DEPRECATED)
if(LSERVE_SANITIZE)
  target_compile_options(lserve_options INTERFACE
    -fsanitize=${LSERVE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all
    -Wno-maybe-uninitialized)  # false alarms in the compiler's own intrinsics, instrumented
  target_link_options(lserve_options INTERFACE -fsanitize=${LSERVE_SANITIZE})
endif()
