# molt_add_module(NAME SOURCES file... [LIBRARIES target...] [EXPORT_ALL] [NO_CHECK])
#
# Builds NAME.so, a module that Molt can load and, above all, unload. Several things keep a library
# mapped for ever although dlclose() reports success. The flags below avoid those that can be
# avoided, and after the link `molt check` refuses the rest, by name:
#
#   another object bound to      only the descriptor is exported (molt-module.map): libstdc++ itself
#   a symbol of the module       would bind to the module's copy of an inline function of its own
#   STB_GNU_UNIQUE symbols       the same, and -fno-gnu-unique (gcc; clang never makes them)
#   DF_1_NODELETE                refused
#   thread_local destructors     refused
#
# A module that is refused is deleted, so that no later build takes it for good. NO_CHECK is for
# tests of such modules; EXPORT_ALL leaves molt-module.map out, for a module that has a version
# script of its own.

set(_molt_module_check ${CMAKE_CURRENT_LIST_DIR}/MoltCheckModule.cmake)
set(_molt_module_map ${CMAKE_CURRENT_LIST_DIR}/molt-module.map)

function(molt_add_module name)
  cmake_parse_arguments(arg "EXPORT_ALL;NO_CHECK" "" "SOURCES;LIBRARIES" ${ARGN})
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "molt_add_module(${name}): no SOURCES given")
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "molt_add_module(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()

  add_library(${name} MODULE ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES
    PREFIX ""
    SUFFIX ".so"
    C_VISIBILITY_PRESET hidden
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
  # No libstdc++ for programs that have none, unless it is used: to load and relocate it takes a process more
  # than all the rest of a small module.
  target_link_options(${name} PRIVATE -Wl,--build-id=sha1 -Wl,-z,now -Wl,--as-needed)
  if(NOT arg_EXPORT_ALL)
    target_link_options(${name} PRIVATE -Wl,--version-script=${_molt_module_map})
    set_property(TARGET ${name} APPEND PROPERTY LINK_DEPENDS ${_molt_module_map})
  endif()
  if(NOT MOLT_SANITIZE)
    target_link_options(${name} PRIVATE -Wl,-z,defs)
  endif()
  target_link_libraries(${name} PRIVATE molt::molt ${arg_LIBRARIES})

  # A sanitizer's own symbols are none of the module's.
  if(NOT arg_NO_CHECK AND NOT MOLT_SANITIZE)
    add_custom_command(TARGET ${name} POST_BUILD
      COMMAND ${CMAKE_COMMAND} -DMOLT=$<TARGET_FILE:molt::cli> -DMODULE=$<TARGET_FILE:${name}>
              -P ${_molt_module_check}
      VERBATIM)
    add_dependencies(${name} molt::cli)
  endif()
endfunction()
