# BANYAN_SANITIZER=address adds ASan and UBSan, thread adds TSan; applied to everything we compile.
add_library(banyan_sanitizers INTERFACE)
if(BANYAN_SANITIZER STREQUAL "address")
  set(_flags -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(BANYAN_SANITIZER STREQUAL "thread")
  set(_flags -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT BANYAN_SANITIZER STREQUAL "")
  message(FATAL_ERROR "BANYAN_SANITIZER=${BANYAN_SANITIZER}: expected address, thread or nothing")
endif()
if(BANYAN_BUILD_FUZZERS)
  list(APPEND _flags -fsanitize=fuzzer-no-link)
endif()
target_compile_options(banyan_sanitizers INTERFACE ${_flags})
target_link_options(banyan_sanitizers INTERFACE ${_flags})

# ThreadSanitizer does not see into Debian's abseil: our calls of its mutex go through wrappers that tell
# it what they order. One list: the symbols that the source names.
if(BANYAN_SANITIZER STREQUAL "thread")
  set(_mutex_source ${PROJECT_SOURCE_DIR}/cmake/tsan_absl_mutex.cc)
  file(STRINGS ${_mutex_source} _lines REGEX "\"_Z[A-Za-z0-9_]+\"")
  string(REGEX MATCHALL "_ZN?K?[0-9][A-Za-z0-9_]+" _symbols "${_lines}")
  list(REMOVE_DUPLICATES _symbols)
  list(GET _symbols 0 _first_symbol)
  list(TRANSFORM _symbols PREPEND "LINKER:--wrap=")
  add_library(banyan_tsan_absl_mutex STATIC ${_mutex_source})
  target_link_libraries(banyan_tsan_absl_mutex PUBLIC absl::synchronization)
  target_link_libraries(banyan_sanitizers INTERFACE banyan_tsan_absl_mutex)
  # Abseil's own libraries refer to the wrapped names too, after the archive has been passed by: take its
  # only member in any case.
  target_link_options(banyan_sanitizers INTERFACE ${_symbols} LINKER:--undefined=__wrap_${_first_symbol})
endif()
