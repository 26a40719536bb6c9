# lserve_floor(NAME DEPS floor... LIBS target...)
#   The library lserve_NAME of this directory's .cc files, and the test program NAME_test of its
#   *_test.cc files (label: unit). DEPS repeats the order of the floors, so an include that climbs
#   fails to link as well as to pass scripts/style.
function(lserve_floor NAME)
  cmake_parse_arguments(ARG "" "TEST_LABELS" "DEPS;LIBS;TEST_DEPS;TEST_LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS *.cc)
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(TRANSFORM ARG_DEPS PREPEND lserve_)
  list(TRANSFORM ARG_TEST_DEPS PREPEND lserve_)

  if(sources)
    add_library(lserve_${NAME} STATIC ${sources})
    target_link_libraries(lserve_${NAME} PUBLIC lserve_options ${ARG_DEPS} ${ARG_LIBS})
  else()
    add_library(lserve_${NAME} INTERFACE)
    target_link_libraries(lserve_${NAME} INTERFACE lserve_options ${ARG_DEPS} ${ARG_LIBS})
  endif()

  if(LSERVE_TESTS AND tests)
    if(NOT ARG_TEST_LABELS)
      set(ARG_TEST_LABELS unit)
    endif()
    add_executable(${NAME}_test ${tests})
    target_link_libraries(${NAME}_test PRIVATE
      lserve_${NAME} ${ARG_TEST_DEPS} ${ARG_TEST_LIBS} GTest::gmock GTest::gtest_main)
    target_compile_definitions(${NAME}_test PRIVATE LSERVE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    gtest_discover_tests(${NAME}_test DISCOVERY_MODE PRE_TEST
      PROPERTIES LABELS "${ARG_TEST_LABELS}" TIMEOUT 300)
  endif()
endfunction()
