# BANYAN_ENABLE_CUDA: AUTO (where nvcc is found), ON or OFF. Off leaves no trace: no file of ops/cuda is
# compiled. Nothing links the CUDA driver or cuBLAS; the run-time library is linked statically and looks
# for the driver when the backend is made, so the same program starts on machines without a GPU.
set(BANYAN_ENABLE_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set(BANYAN_CUDA_ARCHITECTURES "" CACHE STRING
  "CUDA architectures, such as 90-real for a quick build; empty: those of the environment's CUDAARCHS, or 80, 89, 90, 120 as far as nvcc knows them, and PTX")

set(BANYAN_CUDA OFF)
if(BANYAN_ENABLE_CUDA STREQUAL "OFF")
  return()
endif()
find_program(BANYAN_NVCC nvcc HINTS $ENV{CUDACXX} $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
if(NOT BANYAN_NVCC)
  if(BANYAN_ENABLE_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA backend: off (nvcc not found)")
    return()
  endif()
  message(FATAL_ERROR "BANYAN_ENABLE_CUDA=${BANYAN_ENABLE_CUDA}: nvcc not found; set CUDACXX or CUDA_PATH")
endif()

set(_architectures ${BANYAN_CUDA_ARCHITECTURES})
if(NOT _architectures)
  set(_architectures $ENV{CUDAARCHS})
endif()
if(NOT _architectures)
  execute_process(COMMAND ${BANYAN_NVCC} --list-gpu-code OUTPUT_VARIABLE _known ERROR_QUIET)
  # Machine code for each; PTX of 90 and of 120 for what comes after them.
  foreach(_arch 80-real 89-real 90 120)
    string(REGEX MATCH "^[0-9]+" _number ${_arch})
    if(_known MATCHES "sm_${_number}(\n|$)")
      list(APPEND _architectures ${_arch})
    endif()
  endforeach()
endif()
set(CMAKE_CUDA_COMPILER ${BANYAN_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${_architectures})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 does not know how nvcc is told C++20
set(CMAKE_CUDA_EXTENSIONS OFF)
# The run-time library as nvcc sees it. FindCUDAToolkit wants libraries of every part of the toolkit, which NVIDIA's
# wheels (docker/cuda-wheels.txt) do not bring together.
find_library(BANYAN_CUDART_STATIC cudart_static HINTS ${CMAKE_CUDA_HOST_IMPLICIT_LINK_DIRECTORIES}
  PATHS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}/.. PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH REQUIRED)
find_package(Threads REQUIRED)
add_library(banyan_cudart INTERFACE)
target_include_directories(banyan_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(banyan_cudart INTERFACE ${BANYAN_CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
add_library(banyan::cudart ALIAS banyan_cudart)
set(BANYAN_CUDA ON)

# Several GPUs: only the header is needed here; the library, libnccl.so.2, is opened when it is used.
find_path(BANYAN_NCCL_INCLUDE nccl.h HINTS ENV NCCL_HOME PATH_SUFFIXES include PATHS ${CUDAToolkit_INCLUDE_DIRS})
if(BANYAN_NCCL_INCLUDE)
  set(_nccl "NCCL: ${BANYAN_NCCL_INCLUDE}/nccl.h")
else()
  set(_nccl "without NCCL, hence on one GPU at a time: nccl.h not found; set NCCL_HOME")
  set(BANYAN_NCCL_INCLUDE "")
endif()
message(STATUS "CUDA backend: on (${BANYAN_NVCC} ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${_architectures}; ${_nccl})")
