# Toolchain settings and the few functions that every folder's CMakeLists.txt uses.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
# For a GPU machine that has nvcc, CMake and ninja, but no gRPC: Abseil (and GoogleTest) are enough.
option(CONCLAVE_KERNELS_ONLY "Build common/, kernels/ and their tests alone" OFF)
if(NOT CONCLAVE_KERNELS_ONLY)
  find_package(Protobuf REQUIRED)
  find_package(gRPC CONFIG REQUIRED)
  find_package(spdlog REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(CLI11 REQUIRED)
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
  # Debian ships no CMake packages for these.
  find_library(CARES cares REQUIRED)
  find_library(PROMETHEUS_CORE prometheus-cpp-core REQUIRED)
  find_library(PROMETHEUS_PULL prometheus-cpp-pull REQUIRED)
endif()

set(CONCLAVE_SANITIZER "" CACHE STRING "address, thread or empty")
if(CONCLAVE_SANITIZER STREQUAL "address")
  # Not enum: grpc::Status holds whatever code a peer sent, and its header reads it as an enum.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize=enum -fno-sanitize-recover=all
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(CONCLAVE_SANITIZER STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()

set(CONCLAVE_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror)

# conclave_library(<folder> [DEPS target...]): one static library of the folder's *.cc (main.cc and
# cuda/ apart, which are built on their own), whose headers must compile alone (target
# conclave_<folder>_verify_interface_header_sets).
function(conclave_library folder)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS *.cc)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS *.h)
  list(FILTER sources EXCLUDE REGEX
       "/main\\.cc$|^${CMAKE_CURRENT_SOURCE_DIR}/cuda/")
  list(FILTER headers EXCLUDE REGEX "^${CMAKE_CURRENT_SOURCE_DIR}/cuda/emulation/")
  add_library(conclave_${folder} STATIC ${sources})
  target_include_directories(conclave_${folder} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(conclave_${folder} PRIVATE ${CONCLAVE_WARNINGS})
  target_link_libraries(conclave_${folder} PUBLIC ${ARG_DEPS})
  if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.24)
    target_sources(conclave_${folder} PUBLIC FILE_SET HEADERS
                   BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers})
    set_target_properties(conclave_${folder} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  endif()
endfunction()

# conclave_binary(<name> DEPS target...): bin/<name> from this folder's main.cc.
function(conclave_binary name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  add_executable(${name} main.cc)
  target_compile_options(${name} PRIVATE ${CONCLAVE_WARNINGS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  if(CONCLAVE_SANITIZER STREQUAL "thread")  # tests start it, and read what it says
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/support/absl_tsan.cc)
    target_link_options(${name} PRIVATE -rdynamic)
  endif()
  # ./dev bundle puts libraries there. RPATH, not RUNPATH: it also serves the libraries' own needs.
  set_target_properties(${name} PROPERTIES BUILD_RPATH "$ORIGIN/../lib")
  target_link_options(${name} PRIVATE -Wl,--disable-new-dtags)
endfunction()

# conclave_tests(<folder> DEPS target...): every *_test.cc of this folder in one binary,
# bin/<folder>_tests; each TEST becomes one ctest entry.
function(conclave_tests folder)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS *_test.cc)
  add_executable(${folder}_tests ${sources})
  target_compile_options(${folder}_tests PRIVATE ${CONCLAVE_WARNINGS})
  target_link_libraries(${folder}_tests PRIVATE ${ARG_DEPS} conclave_test_support GTest::gmock
                        GTest::gtest_main)
  gtest_discover_tests(${folder}_tests TEST_PREFIX ${folder}. NO_PRETTY_VALUES
                       DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 600)
endfunction()
