# banyan_test(NAME SOURCES ... [DEPS ...] [LABELS ...] [TIMEOUT s] [LAUNCHER program ...]): a GoogleTest program and its
# ctest entry, started by the launcher if there is one.
# Labels: unit (no network, no model, under a minute together), kernels, golden, integration, slow.
find_package(GTest REQUIRED)
if(BANYAN_BUILD_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()

set(_reference ${PROJECT_SOURCE_DIR}/../shared/golden)
if(NOT EXISTS ${_reference})
  set(_reference "")
endif()
set(BANYAN_REFERENCE_DATA "${_reference}" CACHE PATH
  "Other people's reference data (full-size tokenizer, chat templates); suites that need it are registered only where it exists")

# banyan_unregistered(NAME "why"): a suite that this tree cannot run; `run.sh test` names it.
set(BANYAN_UNREGISTERED_FILE ${PROJECT_BINARY_DIR}/unregistered-tests.txt)
file(WRITE ${BANYAN_UNREGISTERED_FILE} "")
function(banyan_unregistered NAME WHY)
  file(APPEND ${BANYAN_UNREGISTERED_FILE} "${NAME}: ${WHY}\n")
endfunction()

# What the sanitizers' run time reads, for the tests and for the programs they start.
set(BANYAN_TEST_ENVIRONMENT "")
if(BANYAN_SANITIZER STREQUAL "thread")
  list(APPEND BANYAN_TEST_ENVIRONMENT
    "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp second_deadlock_stack=1")
elseif(BANYAN_SANITIZER STREQUAL "address")
  list(APPEND BANYAN_TEST_ENVIRONMENT
    "UBSAN_OPTIONS=print_stacktrace=1" "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
endif()
# Waits of the tests in Python are multiplied by this; those of the others are long anyway.
if(BANYAN_SANITIZER)
  list(APPEND BANYAN_TEST_ENVIRONMENT "BANYAN_TEST_SLOWDOWN=8")
endif()

function(banyan_test NAME)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS;ARGS;LAUNCHER" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  target_include_directories(${NAME} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${NAME} PRIVATE
    BANYAN_SOURCE_DIR="${PROJECT_SOURCE_DIR}" BANYAN_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}"
    BANYAN_REFERENCE_DATA="${BANYAN_REFERENCE_DATA}")
  target_link_libraries(${NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main banyan_warnings banyan_sanitizers)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(BANYAN_SANITIZER)  # five to fifteen times slower
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 8")
  endif()
  add_test(NAME ${NAME} COMMAND ${ARG_LAUNCHER} $<TARGET_FILE:${NAME}> ${ARG_ARGS})
  set_tests_properties(${NAME} PROPERTIES
    LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${BANYAN_TEST_ENVIRONMENT}")
endfunction()

# banyan_benchmark(NAME SOURCES ... DEPS ...): a program in bin/; run by hand, never by ctest.
function(banyan_benchmark NAME)
  if(NOT BANYAN_BUILD_BENCHMARKS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  target_include_directories(${NAME} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${NAME} PRIVATE ${ARG_DEPS} banyan_warnings banyan_sanitizers)
endfunction()

# banyan_fuzzer(NAME SOURCE file.cc CORPUS dir DEPS ...): with the fuzz preset a libFuzzer program in bin/;
# in every preset the corpus runs through the same entry point as the unit test <NAME>_corpus.
function(banyan_fuzzer NAME)
  cmake_parse_arguments(ARG "" "SOURCE;CORPUS" "DEPS" ${ARGN})
  if(BANYAN_BUILD_FUZZERS)
    add_executable(${NAME} ${ARG_SOURCE})
    target_include_directories(${NAME} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${NAME} PRIVATE ${ARG_DEPS} banyan_warnings banyan_sanitizers)
    target_link_options(${NAME} PRIVATE -fsanitize=fuzzer)
  endif()
  if(BANYAN_BUILD_TESTS)
    add_executable(${NAME}_corpus ${ARG_SOURCE} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus_main.cc)
    target_include_directories(${NAME}_corpus PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${NAME}_corpus PRIVATE ${ARG_DEPS} banyan_warnings banyan_sanitizers)
    add_test(NAME ${NAME}_corpus COMMAND ${NAME}_corpus ${ARG_CORPUS})
    set_tests_properties(${NAME}_corpus PROPERTIES
      LABELS "unit" TIMEOUT 60 ENVIRONMENT "${BANYAN_TEST_ENVIRONMENT}")
  endif()
endfunction()
