// relax.hpp - is this section of an object what lies at that address of a linked file? Compares byte
// for byte with what the linker does to a section undone, and tells what each relocation was filled
// in with. Internal to builder/.
//
// A linker fills in relocated fields, and rewrites instructions before them in a few ways that the
// psABI lists ("Linker Optimization"): GOT loads and calls of what needs no GOT, and thread-local
// accesses to a cheaper model. Nothing else may differ.
//
//     bytes in the object                               bytes in the linked file
//     8b /r  mov  foo@GOTPCREL(%rip),%r                 8d /r lea, or c7 /0 mov $foo
//     ff 15  call *foo@GOTPCREL(%rip)                   67 e8 call foo, or e8 call foo; 90
//     ff 25  jmp  *foo@GOTPCREL(%rip)                   e9 jmp foo; 90
//     85, 03 ... test, binary operations with the slot  f7 /0, 81 /n with $foo
//     66 48 8d 3d .. 66 66 48 e8 ..  general dynamic    64 48 8b 04 25 0 48 8d 80 .. (LE), 48 03 05 .. (IE)
//     48 8d 3d .. e8 ..              local dynamic      66 66 66 64 48 8b 04 25 0
//     8b, 03 foo@GOTTPOFF(%rip)      initial exec       c7 /0, 8d or 81 /0 with the offset
//     48 8d 05 .. ff 10              descriptors        48 c7 c0 .. or 48 8b 05 ..; 66 90
#pragma once

#include "builder/object.hpp"

#include <optional>

namespace molt::builder {

struct Reference {
  enum class Kind {
    address,     // `value`: the symbol's address, or its PLT entry's
    slot,        // `value`: the address of its GOT entry
    tls_offset,  // `value`: from the thread pointer, negative; of a program
    tls_block,   // `value`: from the start of its object's TLS block
    tls_slot,    // `value`: the address of a GOT entry with its offset from the thread pointer
    tls_pair,    // `value`: the address of its module and offset, or of its descriptor
    loader,      // the dynamic loader fills it in; `value`: where
  };
  Kind kind;
  std::uint32_t relocation;  // in the section's list
  std::int64_t value;
};

struct Difference {
  std::uint64_t offset;  // in the section
  std::string text;      // "48 89 there, 48 8b in this build"
};

// What compare() wants to know about the linked file.
struct Linked {
  std::span<const std::byte> bytes;  // at `address`, as many as the section has
  std::uint64_t address;
  std::uint64_t got;  // _GLOBAL_OFFSET_TABLE_, for GOTOFF64
  bool is_program;
  // Has the dynamic loader something to do at this address?
  const void* context;
  bool (*is_relocated)(const void* context, std::uint64_t address);
};

// Appends to `references` in the order of the relocations; on a difference what was appended means
// nothing.
[[nodiscard]] std::optional<Difference> compare(const ObjectSection& section, const Linked& linked,
                                                std::vector<Reference>& references);

// Bytes that a relocation fills in; 0 for one that compare() does not know.
unsigned relocation_width(std::uint32_t type);
bool is_pc_relative(std::uint32_t type);

}  // namespace molt::builder
