# Run after a module's link: cmake -DMOLT=<molt> -DMODULE=<file.so> -P MoltCheckModule.cmake
execute_process(COMMAND ${MOLT} check ${MODULE} RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  file(REMOVE ${MODULE})
  cmake_path(GET MODULE FILENAME name)
  message(FATAL_ERROR "${name} is refused and deleted: `molt check` said why (result ${result}).")
endif()
