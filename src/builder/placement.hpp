// placement.hpp - where the running program has each function and variable of the units, static ones
// included, proven by comparing the units' old plain objects with it byte for byte.
//
//     auto image = RunningFile::open("/usr/bin/redis-server", {});
//     auto placement = Placement::compute(*image, units);
//     if (!placement->refusals().empty()) ... these are not the sources of that program
//     Place static_counter = placement->symbol(unit, Flavour::shadow, symbol_index);
//
// The linker copies each section of an object to one place, fills in the relocations, and rewrites a
// few known instructions (GOT loads that need no GOT, thread-local accesses). Undoing that proves the
// copy, and every filled-in relocation tells where the linker put what the code refers to: so the
// sections of data follow from the code, and a static symbol is its section plus an offset. Names only
// help to find the first candidate.
//
// Roles      The builder calls compute() once per running file with all of its units, also those that
//            the diff leaves alone: they prove what others refer to. The differ asks.
// State      Copies of what was found; the objects' files are not needed afterwards.
// Invariants P1 An address of kind `image` was proven: the section's bytes are those of the object at
//               that address, or a proven function refers to it, or the image's own symbol table has
//               exactly one global symbol of that name.
//            P2 Two proofs of one address agree, or there is a refusal.
// Refuses    Other bytes (other flags, compiler or source), LTO objects, functions that the linker has
//            folded together; each by function and offset. Collected in refusals(), one per cause.
// Checked by tests/builder/placement_test.cpp
#pragma once

#include "base/result.hpp"
#include "builder/unit.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

// The file that runs, with the symbols of its debug file if it is stripped.
class RunningFile {
 public:
  // `debug_file` empty: looked for by build-id. A debug file of another build-id is EINVAL; none at
  // all is no failure: then functions are found by their bytes.
  [[nodiscard]] static Result<RunningFile> open(const std::string& path,
                                                const std::string& debug_file);
  RunningFile(RunningFile&&) noexcept;
  RunningFile& operator=(RunningFile&&) noexcept;
  ~RunningFile();

  const std::string& path() const;
  const std::string& build_id() const;  // lower-case hexadecimal; "" for none
  const std::string& soname() const;    // "" for a program
  bool is_program() const;              // its thread-local variables are at fixed offsets
  bool is_position_independent() const;
  // What its compilers noted as their sources ("server.c"), in no order; none where the symbol table
  // was stripped of it.
  const std::vector<std::string>& source_names() const;
  // As in the file: relocations that the dynamic loader applies are not in it. Nothing where the file
  // has no bytes (.bss) or the range leaves a segment.
  [[nodiscard]] std::optional<std::span<const std::byte>> bytes(std::uint64_t address,
                                                                std::uint64_t size) const;

  struct State;
  const State& state() const { return *state_; }

 private:
  explicit RunningFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// How code in the patch reaches something.
struct Place {
  enum class Kind {
    unknown,   // `why` tells
    image,     // `value` is a link-time address in the running file
    tls,       // `value` is an offset in the running file's TLS block (PT_TLS)
    dynamic,   // found by the dynamic loader: `name`, `version` (may be ""), `library` (its soname)
    absolute,  // SHN_ABS: `value` itself
    null,      // a weak symbol that nothing defines
  };
  Kind kind = Kind::unknown;
  std::uint64_t value = 0;
  std::uint64_t size = 0;  // of the symbol as the old object has it; 0: not known
  std::string name;
  std::string version;
  std::string library;
  bool is_function = false;  // of a `dynamic` one
  bool is_indirect =
      false;  // STT_GNU_IFUNC: at `value` is the resolver; call its PLT entry instead
  bool is_thread_local = false;  // of a `dynamic` one: STT_TLS
  std::string why;

  bool is_known() const { return kind != Kind::unknown; }
};

enum class Flavour { plain, shadow };

// A function of an old plain object.
struct PlacedFunction {
  enum class Match {
    proven,     // in the image at `address`, byte for byte
    discarded,  // the linker has taken another unit's copy (COMDAT, weak), at `address` if known
    absent,     // no trace in the image: --gc-sections
    differs,    // refusals() tells
  };
  Match match = Match::differs;
  std::uint32_t symbol = 0;  // index in the plain object's symbol table
  std::uint64_t address = 0;
  std::uint64_t size = 0;
  bool is_shared = false;  // other functions have the same address (folded by the linker)
  std::string name;        // mangled
};

class Placement {
 public:
  // `image` must outlive it. Units without old objects are skipped.
  [[nodiscard]] static Result<Placement> compute(const RunningFile& image,
                                                 std::span<const Unit> units);
  Placement(Placement&&) noexcept;
  Placement& operator=(Placement&&) noexcept;
  ~Placement();

  const RunningFile& image() const;
  const std::vector<Refusal>& refusals() const;

  // Is this unit's code in the image at all? Objects of other programs of the same tree are not.
  bool contains(std::size_t unit) const;
  std::span<const PlacedFunction> functions(std::size_t unit) const;
  // By mangled name; null if the old object has no such function.
  const PlacedFunction* function(std::size_t unit, std::string_view name) const;

  // Where symbol `index` of an old object's symbol table is, defined there or not. Section symbols
  // answer as section() does.
  [[nodiscard]] Place symbol(std::size_t unit, Flavour flavour, std::uint32_t index) const;
  // Where byte `offset` of section `index` of an old object is. In a shadow, .data.foo is where the
  // plain object's symbol foo is. Mergeable sections (strings, constants) and what has no symbol in a
  // shadow are unknown: a patch takes its own copy of them.
  [[nodiscard]] Place section(std::size_t unit, Flavour flavour, std::uint32_t index,
                              std::uint64_t offset = 0) const;
  // What a name means to code of that unit: its own symbol, static ones included; else a global one
  // of the image or of another unit; else what the dynamic loader finds in the libraries that the
  // image needs. For names that only the new object refers to, and for units that are new.
  [[nodiscard]] Place named(std::size_t unit, std::string_view name) const;
  // What the dynamic loader finds for others of that name in this image; unknown if it exports none.
  [[nodiscard]] Place exported(std::string_view name) const;

  struct State;

 private:
  explicit Placement(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

const char* to_text(Place::Kind kind);
const char* to_text(PlacedFunction::Match match);

}  // namespace molt::builder
