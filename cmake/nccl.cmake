# Whether there is NCCL's header to build the real NCCL transport with: sets CONCLAVE_HAVE_NCCL and
# CONCLAVE_NCCL_INCLUDE_DIR. The library itself is looked for at run time.

set(CONCLAVE_NCCL AUTO CACHE STRING
    "Build the NCCL transport: AUTO (if CUDA is built and nccl.h is found), ON or OFF")
set_property(CACHE CONCLAVE_NCCL PROPERTY STRINGS AUTO ON OFF)

set(CONCLAVE_HAVE_NCCL OFF)
if(NOT CONCLAVE_NCCL STREQUAL "OFF")
  if(CONCLAVE_HAVE_CUDA)
    find_path(CONCLAVE_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    if(CONCLAVE_NCCL_INCLUDE_DIR)
      set(CONCLAVE_HAVE_NCCL ON)
      message(STATUS "NCCL: ${CONCLAVE_NCCL_INCLUDE_DIR}/nccl.h")
    endif()
  endif()
  if(NOT CONCLAVE_HAVE_NCCL)
    if(CONCLAVE_NCCL STREQUAL "ON")
      message(FATAL_ERROR "CONCLAVE_NCCL is ON and there is no CUDA compiler or no nccl.h "
                          "(CONCLAVE_NCCL_INCLUDE_DIR says where else it is)")
    endif()
    message(STATUS "NCCL: left out, no CUDA or no nccl.h")
  endif()
endif()
