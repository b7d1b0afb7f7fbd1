# banyan_proto_library(NAME PROTO file.proto [GRPC] [DEPS ...]): messages, and service stubs with GRPC.
# Paths are relative to the repository root, as in the `import` lines.
find_program(BANYAN_PROTOC protoc REQUIRED)
find_program(BANYAN_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

function(banyan_proto_library NAME)
  cmake_parse_arguments(ARG "GRPC" "PROTO" "DEPS" ${ARGN})
  set(_gen ${PROJECT_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${_gen})
  string(REGEX REPLACE "\\.proto$" "" _stem ${ARG_PROTO})
  set(_out ${_gen}/${_stem}.pb.cc ${_gen}/${_stem}.pb.h)
  set(_args --proto_path=${PROJECT_SOURCE_DIR} --cpp_out=${_gen})
  if(ARG_GRPC)
    list(APPEND _out ${_gen}/${_stem}.grpc.pb.cc ${_gen}/${_stem}.grpc.pb.h)
    list(APPEND _args --grpc_out=${_gen} --plugin=protoc-gen-grpc=${BANYAN_GRPC_CPP_PLUGIN})
  endif()
  add_custom_command(OUTPUT ${_out}
    COMMAND ${BANYAN_PROTOC} ${_args} ${PROJECT_SOURCE_DIR}/${ARG_PROTO}
    DEPENDS ${PROJECT_SOURCE_DIR}/${ARG_PROTO} VERBATIM)
  add_library(banyan_${NAME} STATIC ${_out})
  add_library(banyan::${NAME} ALIAS banyan_${NAME})
  set_target_properties(banyan_${NAME} PROPERTIES CXX_CLANG_TIDY "")  # not ours to mend
  target_include_directories(banyan_${NAME} SYSTEM PUBLIC ${_gen})
  target_link_libraries(banyan_${NAME} PUBLIC protobuf::libprotobuf ${ARG_DEPS} PRIVATE banyan_sanitizers)
  if(ARG_GRPC)
    target_link_libraries(banyan_${NAME} PUBLIC gRPC::grpc++)
  endif()
endfunction()
