# conclave_text_data: link it to get CONCLAVE_TEXT_DATA_DIR, where tokenizer_data.tar.xz is unpacked
# (qwen3/tokenizer.json, qwen3/tokenizer_config.json, golden/*.jsonl).
include_guard(GLOBAL)
set(text_data_archive ${CMAKE_CURRENT_LIST_DIR}/tokenizer_data.tar.xz)
set(text_data_dir ${CMAKE_BINARY_DIR}/test_data/text)
set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
             ${text_data_archive})
if(NOT EXISTS ${text_data_dir}/qwen3 OR ${text_data_archive} IS_NEWER_THAN ${text_data_dir}/stamp)
  file(MAKE_DIRECTORY ${text_data_dir})
  file(ARCHIVE_EXTRACT INPUT ${text_data_archive} DESTINATION ${text_data_dir})
  file(TOUCH ${text_data_dir}/stamp)
endif()
add_library(conclave_text_data INTERFACE)
target_compile_definitions(conclave_text_data INTERFACE
  CONCLAVE_TEXT_DATA_DIR="${text_data_dir}")
