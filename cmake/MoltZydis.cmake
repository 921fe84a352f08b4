# molt_zydis: the instruction decoder of src/arch, linked into the runtime.
#
# Debian 12 has Zydis 4.0.0 as a shared library only, and libmolt.so must not need a library that its
# host may have in another version or not at all. So its source is taken from Debian's archive (the
# .orig tarball of that very package, by apt's own downloader, checked by its hash) and the decoder
# alone is built: position-independent, hidden, with no formatter, encoder or libc in it.
#
# Without apt, or offline: -DMOLT_ZYDIS_SOURCE=FILE names the tarball. Failing that too, the shared
# library is used, and libmolt.so then does need it.

set(MOLT_ZYDIS_SOURCE "" CACHE FILEPATH "zydis_4.0.0.orig.tar.gz, if apt cannot fetch it")

set(zydis_tarball zydis_4.0.0.orig.tar.gz)
set(zydis_hash e990107f80c62afc1deb51de230023a1098db801b8ea6bf483e296d45459e234)

# All presets and clones of one tree share what was fetched.
function(molt_zydis_fetch out)
  set(kept ${PROJECT_SOURCE_DIR}/build/${zydis_tarball})
  if(MOLT_ZYDIS_SOURCE)
    set(kept ${MOLT_ZYDIS_SOURCE})
  elseif(NOT EXISTS ${kept})
    find_program(APT_HELPER apt-helper PATHS /usr/lib/apt NO_DEFAULT_PATH)
    execute_process(COMMAND apt-get indextargets --format "\$(REPO_URI)"
                            "Created-By: Packages" "Component: main"
                    OUTPUT_VARIABLE mirrors ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REPLACE "\n" ";" mirrors "${mirrors}")
    list(REMOVE_DUPLICATES mirrors)
    file(MAKE_DIRECTORY ${PROJECT_SOURCE_DIR}/build)
    foreach(mirror IN LISTS mirrors)
      if(APT_HELPER AND NOT EXISTS ${kept})
        execute_process(
          COMMAND ${APT_HELPER} -o Acquire::Retries=2 download-file
                  ${mirror}pool/main/z/zydis/${zydis_tarball} ${kept}.new SHA256:${zydis_hash}
          OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE failed)
        if(NOT failed AND EXISTS ${kept}.new)
          file(RENAME ${kept}.new ${kept})
        else()
          file(REMOVE ${kept}.new)
        endif()
      endif()
    endforeach()
  endif()
  set(${out} "" PARENT_SCOPE)
  if(EXISTS ${kept})
    file(SHA256 ${kept} hash)
    if(NOT hash STREQUAL zydis_hash)
      message(FATAL_ERROR "${kept} is not the file it should be: delete it")
    endif()
    set(${out} ${kept} PARENT_SCOPE)
  endif()
endfunction()

molt_zydis_fetch(tarball)
if(tarball)
  set(folder ${PROJECT_BINARY_DIR}/zydis)
  if(NOT EXISTS ${folder})
    file(ARCHIVE_EXTRACT INPUT ${tarball} DESTINATION ${folder}
         PATTERNS "*/include/*" "*/src/*" "*/LICENSE")
  endif()
  file(GLOB folder ${folder}/*)
  set(zydis_sources)
  foreach(part IN ITEMS Decoder DecoderData SharedData Register Mnemonic Utils MetaInfo Zydis)
    list(APPEND zydis_sources ${folder}/src/${part}.c)
  endforeach()
  add_library(molt_zydis STATIC ${zydis_sources})
  target_include_directories(molt_zydis SYSTEM PUBLIC ${folder}/include PRIVATE ${folder}/src)
  target_compile_definitions(molt_zydis PUBLIC ZYDIS_STATIC_BUILD PRIVATE
    ZYDIS_DISABLE_FORMATTER ZYDIS_DISABLE_ENCODER ZYAN_NO_LIBC)
  target_compile_options(molt_zydis PRIVATE -w -O2 -ffunction-sections -fdata-sections)
  if(MOLT_SANITIZE)
    # Nor with a reference to a sanitizer's runtime: the decoder is not what is looked for errors in.
    target_compile_options(molt_zydis PRIVATE -fno-sanitize=all)
  endif()
else()
  message(WARNING "Zydis' source could not be fetched: libmolt.so will need libZydis.so.4.0. "
                  "-DMOLT_ZYDIS_SOURCE=${zydis_tarball} names a copy of it.")
  add_library(molt_zydis INTERFACE)
  target_link_libraries(molt_zydis INTERFACE Zydis)
endif()
