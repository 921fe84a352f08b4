// patch_file.hpp - the patch file: what `molt build` writes and a process reads. molt-patch-file(5)
// says the same to people; docs/design/patch-file.md says why.
//
// A relocatable ELF object (ET_REL, x86-64), so that readelf and objdump read it:
//
//   .text.NAME, .rodata.*, ...   code and data that go into the process, with their .rela sections
//   .eh_frame                    unwind information for that code, one for each target
//   .symtab, .strtab             as usual; undefined symbols are bound by .molt.syms
//   .molt.target                 Header, then Target[]: the loaded objects that it is for
//   .molt.funcs                  Function[]: what is replaced by what
//   .molt.syms                   Symbol[]: what undefined symbols mean
//   .molt.info                   "key=value", each with a NUL
//   .molt.strings                texts of these tables
//   .molt.callbacks, .molt.states  arrays that hand-written additions fill (molt/livepatch.h)
//
// sh_info of a section that goes into the process is the index of its target: it is mapped within
// reach of that object.
//
// All numbers are little-endian; offsets of texts are into .molt.strings, where 0 is the empty one.
// A reader refuses a version that it does not know. Within one version, nothing changes.
#pragma once

#include <cstdint>
#include <string_view>

namespace molt::patch_file {

inline constexpr std::uint32_t version = 1;
inline constexpr char magic[8] = {'M', 'o', 'l', 't', 'F', 'i', 'x', '\0'};

inline constexpr std::string_view target_section = ".molt.target";
inline constexpr std::string_view funcs_section = ".molt.funcs";
inline constexpr std::string_view syms_section = ".molt.syms";
inline constexpr std::string_view info_section = ".molt.info";
inline constexpr std::string_view strings_section = ".molt.strings";
inline constexpr std::string_view callbacks_section = ".molt.callbacks";
inline constexpr std::string_view states_section = ".molt.states";

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t targets;
  std::uint32_t functions;
  std::uint32_t symbols;
};
static_assert(sizeof(Header) == 24);

enum TargetFlags : std::uint32_t {
  target_is_program = 1,
  target_is_low = 2,  // a program at fixed addresses below 2 GiB: so is what is added to it
};
struct Target {
  std::uint32_t name;      // soname or file name
  std::uint32_t build_id;  // lower-case hexadecimal
  std::uint32_t flags;
  std::uint32_t reserved;
};
static_assert(sizeof(Target) == 16);

enum FunctionFlags : std::uint32_t {
  // A piece of the function before it (.cold, .part): never called by its name, but old code as well.
  function_is_part = 1,
};
struct Function {
  std::uint32_t target;
  std::uint32_t name;         // as the linker knows it: mangled
  std::uint32_t symbol;       // of the new one, in .symtab; 0 for a part
  std::uint32_t flags;        // FunctionFlags
  std::uint64_t old_address;  // in the target's file
  std::uint64_t old_size;
  unsigned char old_hash[16];  // XXH3-128 of these bytes
  unsigned char new_hash[16];  // and of the new section's, before relocation; 0 for a part
};
static_assert(sizeof(Function) == 64);

enum class Binding : std::uint32_t {
  image = 1,    // `value` is an address in the target's file
  dynamic = 2,  // what the dynamic loader finds for the target under the symbol's name
  tls = 3,      // `value` is an offset in the target's TLS block
};
enum SymbolFlags : std::uint32_t {
  symbol_is_function = 1,  // a veneer may stand for it
};
struct Symbol {
  std::uint32_t symbol;  // in .symtab, undefined there
  Binding binding;
  std::uint32_t target;
  std::uint32_t flags;    // SymbolFlags
  std::uint64_t value;    // 0 if dynamic
  std::uint32_t version;  // of a dynamic one: "GLIBC_2.14", or ""
  std::uint32_t library;  // where it was when the patch was built: its soname, for messages
};
static_assert(sizeof(Symbol) == 32);

// Functions of the runtime's own, such as molt_shadow_get(): a dynamic symbol with this library and
// version is looked up in the runtime that links the patch, if nothing else in the process has it.
inline constexpr std::string_view runtime_library = "libmolt.so.0";
inline constexpr std::string_view runtime_version = "MOLT_0";

// Keys of .molt.info. A key may come more than once. Unknown ones are ignored.
namespace info {
inline constexpr std::string_view name = "name";  // of the patch, unless `molt apply --name`
inline constexpr std::string_view description = "description";
inline constexpr std::string_view cve = "cve";
inline constexpr std::string_view author = "author";  // of the diff
inline constexpr std::string_view signed_off =
    "signed-off-by";                                      // as the diff and --signed-off-by have it
inline constexpr std::string_view source = "source";      // "FILE HASH": of the diff, before it
inline constexpr std::string_view compiler = "compiler";  // what made the code
inline constexpr std::string_view builder = "builder";
inline constexpr std::string_view license = "license";
inline constexpr std::string_view patch_version = "version";
inline constexpr std::string_view flag = "flag";  // "replace"
inline constexpr std::string_view note = "note";  // what the author should know
}  // namespace info
inline constexpr std::string_view flag_replace = "replace";

}  // namespace molt::patch_file
