# lserve_floor(NAME DEPS floor... LIBS target...)
#   The library lserve_NAME of this directory's .cc files, and the test program NAME_test of its
#   *_test.cc files (label: unit; those whose name matches THREAD_TESTS also: thread). DEPS repeats
#   the order of the floors, so an include that climbs fails to link as well as to pass
#   scripts/style.
function(lserve_floor NAME)
  cmake_parse_arguments(ARG "" "THREAD_TESTS" "DEPS;LIBS;TEST_DEPS;TEST_LIBS" ${ARGN})
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
    add_executable(${NAME}_test ${tests})
    target_link_libraries(${NAME}_test PRIVATE
      lserve_${NAME} ${ARG_TEST_DEPS} ${ARG_TEST_LIBS} GTest::gmock GTest::gtest_main)
    target_compile_definitions(${NAME}_test PRIVATE LSERVE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    gtest_discover_tests(${NAME}_test DISCOVERY_MODE PRE_TEST NO_PRETTY_VALUES
      PROPERTIES LABELS unit TIMEOUT ${LSERVE_TEST_TIMEOUT})
    if(ARG_THREAD_TESTS)
      configure_file("${CMAKE_SOURCE_DIR}/cmake/thread_tests.cmake.in" thread_tests.cmake @ONLY)
      set_property(DIRECTORY APPEND PROPERTY
        TEST_INCLUDE_FILES "${CMAKE_CURRENT_BINARY_DIR}/thread_tests.cmake")
    endif()
  endif()
endfunction()
# lserve_instruction_levels(TEST FILTER LABEL)
#   Runs the tests of the program TEST that match FILTER on each weaker instruction set too, as
#   TEST.<level>: a machine with AMX tests what one without it computes.
function(lserve_instruction_levels TEST FILTER LABEL)
  foreach(level ssse3 avx2 avx512bf16)
    add_test(NAME ${TEST}.${level} COMMAND ${TEST} --gtest_filter=${FILTER} --gtest_brief=1)
    set_tests_properties(${TEST}.${level} PROPERTIES
      LABELS ${LABEL} TIMEOUT ${LSERVE_TEST_TIMEOUT} ENVIRONMENT LSERVE_MAX_CPU_ISA=${level})
  endforeach()
endfunction()
