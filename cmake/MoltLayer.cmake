# molt_layer(NAME [DEPENDS layer...] [LIBRARIES target...] [EXCEPTIONS])
#
# One target, molt_NAME, per folder of src/. A layer sees its own headers, those of the layers it
# depends on (transitively) and include/, and nothing else: an include that is not an edge of the
# layer graph does not compile. What makes that work is one directory per layer that holds nothing
# but a link to the layer,
#
#     <build>/layers/NAME/NAME -> src/NAME
#
# so that `#include "hook/chain.hpp"` is found through -I<build>/layers/hook alone. With a single
# -Isrc every layer would see every other.
#
# LIBRARIES are outside dependencies. Only the tools may use EXCEPTIONS (and RTTI).
# main.cpp is left out: it belongs to the program made from the layer, and unit tests that link the
# layer have a main of their own.

function(molt_layer name)
  cmake_parse_arguments(arg "EXCEPTIONS" "" "DEPENDS;LIBRARIES" ${ARGN})
  set(target molt_${name})
  set(folder ${CMAKE_CURRENT_SOURCE_DIR}/${name})
  set(view ${PROJECT_BINARY_DIR}/layers/${name})
  list(TRANSFORM arg_DEPENDS PREPEND molt_)

  file(MAKE_DIRECTORY ${view})
  file(CREATE_LINK ${folder} ${view}/${name} SYMBOLIC)

  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(REMOVE_ITEM sources ${folder}/main.cpp)

  if(sources)
    add_library(${target} STATIC ${sources})
    set(scope PUBLIC)
    if(NOT arg_EXCEPTIONS)
      # Thread-locals of the runtime are a few words of static TLS: reading one must not call, let
      # alone allocate.
      target_compile_options(${target} PRIVATE -fno-exceptions -fno-rtti
                                               -ftls-model=initial-exec)
    endif()
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(${target} ${scope} ${view} ${PROJECT_SOURCE_DIR}/include)
  # Debug information shall name the file in the tree, not the link to it.
  target_compile_options(${target} ${scope} -ffile-prefix-map=${view}/${name}=${folder})
  target_link_libraries(${target} ${scope} ${arg_DEPENDS} ${arg_LIBRARIES})

  set_target_properties(${target} PROPERTIES MOLT_DEPENDS "${arg_DEPENDS}")
  set_property(GLOBAL APPEND PROPERTY MOLT_LAYERS ${name})
endfunction()

# molt_layer_objects(OUT NAME): the objects of layer NAME and of all below it, each once.
# A shared object made of archives would lose what only dlsym or a constructor reaches.
function(molt_layer_objects out name)
  set(todo molt_${name})
  set(seen)
  set(objects)
  while(todo)
    list(POP_FRONT todo target)
    if(target IN_LIST seen)
      continue()
    endif()
    list(APPEND seen ${target})
    get_target_property(type ${target} TYPE)
    if(NOT type STREQUAL "INTERFACE_LIBRARY")
      list(APPEND objects $<TARGET_OBJECTS:${target}>)
    endif()
    get_target_property(below ${target} MOLT_DEPENDS)
    list(APPEND todo ${below})
  endwhile()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
