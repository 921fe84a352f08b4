# molt_gtest(NAME SOURCES file... [LIBRARIES target...] [LABELS label...] [TIMEOUT seconds] [SERIAL]
#            [ENVIRONMENT name=value...])
#
# A GoogleTest program; every case becomes a CTest test of its own, so that the counts are counts of
# cases. LIBRARIES are usually layers (molt_hook) or molt::molt. Label `sanitize` marks what the
# sanitizer builds run too; `sanitize_address` what only the address sanitizer's does, since it has
# one thread. SERIAL: never beside another test (timing, or all cores in use).
#
# The address sanitizer's build is of the whole tree, since warnings are errors in it; the thread
# sanitizer's, of what it runs.
#
# molt_script_test(NAME COMMAND argument... [LABELS label...] [TIMEOUT seconds] [SERIAL]
#                  [ENVIRONMENT name=value...])
#
# Any program: exit 0 passed, exit 77 skipped (the last line it printed is the reason).
#
# Both get MOLT_BIN and MOLT_LIB, the folders with this build's programs and libraries, in their
# environment.

find_package(GTest REQUIRED)
include(GoogleTest)

set(_molt_test_environment
    MOLT_BIN=${CMAKE_RUNTIME_OUTPUT_DIRECTORY} MOLT_LIB=${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
if(MOLT_SANITIZE MATCHES thread)
  list(APPEND _molt_test_environment
       TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)
endif()

function(molt_gtest name)
  cmake_parse_arguments(arg "SERIAL" "TIMEOUT" "SOURCES;LIBRARIES;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  set(environment ${_molt_test_environment} ${arg_ENVIRONMENT})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} GTest::gtest_main)
  if(MOLT_SANITIZE MATCHES thread AND NOT sanitize IN_LIST arg_LABELS)
    set_property(TARGET ${name} PROPERTY EXCLUDE_FROM_ALL ON)
    return()
  endif()
  # Names are read when the tests run: a build alone never executes what it built.
  gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)

  # gtest_discover_tests(PROPERTIES) cannot carry lists, such as two labels.
  set(properties ${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake)
  file(WRITE ${properties} "foreach(test IN LISTS ${name}_TESTS)
  set_tests_properties(\${test} PROPERTIES
    TIMEOUT ${arg_TIMEOUT}
    RUN_SERIAL ${arg_SERIAL}
    LABELS \"${arg_LABELS}\"
    ENVIRONMENT \"${environment}\")
endforeach()
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${properties})
endfunction()

function(molt_script_test name)
  cmake_parse_arguments(arg "SERIAL" "TIMEOUT" "COMMAND;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  set(environment ${_molt_test_environment} ${arg_ENVIRONMENT})
  add_test(NAME ${name} COMMAND ${arg_COMMAND})
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${arg_TIMEOUT}
    RUN_SERIAL ${arg_SERIAL}
    LABELS "${arg_LABELS}"
    SKIP_RETURN_CODE 77
    ENVIRONMENT "${environment}")
endfunction()

# molt_broken_sources(OUT MUTATION file...): those of the files that have a line for MOLT_MUTATE_<MUTATION>.
# A negative control is a program that compiles them once more, with that macro, before the archive that
# has them whole.
function(molt_broken_sources out mutation)
  set(broken)
  foreach(source IN LISTS ARGN)
    file(STRINGS ${source} lines REGEX "def MOLT_MUTATE_${mutation}( |$)")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    if(lines)
      list(APPEND broken ${source})
    endif()
  endforeach()
  if(NOT broken)
    message(FATAL_ERROR "No source has a line for MOLT_MUTATE_${mutation}.")
  endif()
  set(${out} ${broken} PARENT_SCOPE)
endfunction()
