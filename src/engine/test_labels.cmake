# Read by ctest, when the tests of engine_test are known: those that run the engine's thread also
# run under the thread sanitizer (label thread; a list does not survive gtest_discover_tests).
foreach(test IN LISTS engine_test_TESTS)
  if(test MATCHES "^Engine")
    set_tests_properties("${test}" PROPERTIES LABELS "unit;thread")
  endif()
endforeach()
