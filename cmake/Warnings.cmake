# Warnings are errors in every preset, nvcc's own too. Generated protobuf code is exempt (cmake/Protos.cmake).
add_library(banyan_warnings INTERFACE)
target_compile_options(banyan_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough -Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 reports false positives for these inside inlined standard library code.
  target_compile_options(banyan_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
    -Wno-maybe-uninitialized -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds
    -Wno-stringop-overread>)
endif()
target_compile_options(banyan_warnings INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings>)
