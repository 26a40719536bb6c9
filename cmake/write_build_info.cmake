# Writes OUT with the commit that is built; only if it changed, so that nothing recompiles otherwise.
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR commit STREQUAL "")
  set(commit "unknown")
endif()
set(content "#include \"base/build_info.h\"\n\nnamespace lserve {\nconst char* BuildCommit() { return \"${commit}\"; }\nconst char* BuildVersion() { return \"${VERSION}\"; }\n}  // namespace lserve\n")
set(old "")
if(EXISTS "${OUT}")
  file(READ "${OUT}" old)
endif()
if(NOT old STREQUAL content)
  file(WRITE "${OUT}" "${content}")
endif()
