// linker.hpp - puts a patch file's code and data into this process, beside what it replaces.
//
//     auto file = patchfile::PatchFile::parse(bytes);
//     auto linked = linker::link(*file, {original_bytes});
//     ... livepatch::enable() leads functions to (*linked)->functions()
//     linked->reset();      // no thread is in it, and none can come
//
// What is mapped for each target is one stretch within reach of it:
//
//     code, veneers | constants, unwind information, table of addresses | variables
//     read, execute | read                                              | read, write
//
// Roles      The operation that loads a patch; one at a time. Any thread may run the code afterwards.
// State      The mapping, the names told to debuggers, the frames told to unwinders.
// Invariants N1 Nothing of the process is changed by link() but its own mapping, and that only after
//               the running objects' build-ids, the bytes of every function that is to be replaced, every symbol and every relocation
//               have been found right.
//            N2 No page is ever writable and executable at once (arch/x86_64/text.hpp).
//            N3 No register is clobbered between caller and callee: veneers are `jmp *[rip]`.
// Death      fork: the child has all of it. The targets must stay loaded meanwhile: the caller's affair.
// Refuses    ESTALE another build-id, or bytes that are not what the patch was made for; ENOENT an
//            object or symbol that is not there; ERANGE a relocation that does not reach; ENOTSUP what
//            the process's libraries make impossible; ENOMEM no near memory. Nothing remains.
// Checked by tests/linker
#pragma once

#include <molt/livepatch.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"
#include "patchfile/patch_file.hpp"

namespace molt::arch {
struct NamedCode;
}

namespace molt::linker {

using arch::CodeRange;

struct Function {
  std::string name;
  std::size_t target = 0;
  std::uintptr_t old_address = 0;
  std::uint64_t old_size = 0;
  std::uintptr_t new_address = 0;
  std::vector<CodeRange> old_parts;
};

struct Target {
  elf::NamedObject object;
  CodeRange whole;  // the mapping
  CodeRange code;   // of it
  CodeRange constants;
  CodeRange variables;               // may be empty
  CodeRange frames;                  // in constants; may be empty
  CodeRange addresses;               // the table, in constants; may be empty
  std::vector<CodeRange> functions;  // each function's code, and the veneers
  arch::NamedCode* names = nullptr;
  std::vector<void (*)(void*)> unwinders;  // where the frames are to be taken back
};

struct Options {
  // What is at [address, +size) of a target's code but for what livepatches have put there.
  std::function<void(std::uintptr_t address, std::span<std::byte> bytes)> original_bytes;
};

class Linked {
 public:
  ~Linked();
  Linked(const Linked&) = delete;
  Linked& operator=(const Linked&) = delete;

  const std::vector<Target>& targets() const { return targets_; }
  const std::vector<Function>& functions() const { return functions_; }
  // Hand-written additions; empty without.
  std::span<const molt_patch_callback> callbacks() const { return callbacks_; }
  std::span<molt_patch_state> states() const { return states_; }
  bool replaces() const { return replaces_; }
  std::size_t mapped_bytes() const;
  // Whether an address lies in it.
  bool contains(std::uintptr_t address) const;
  // Memory of its own that names it.
  std::vector<CodeRange> known_memory() const;

 private:
  friend struct Linking;
  friend Result<std::unique_ptr<Linked>> link(const patchfile::PatchFile&, const Options&);
  Linked() = default;
  std::vector<Target> targets_;
  std::vector<Function> functions_;
  std::span<const molt_patch_callback> callbacks_;
  std::span<molt_patch_state> states_;
  bool replaces_ = false;
};

[[nodiscard]] Result<std::unique_ptr<Linked>> link(const patchfile::PatchFile& file,
                                                   const Options& options);
// All of link() that changes nothing.
[[nodiscard]] Status check(const patchfile::PatchFile& file, const Options& options);

}  // namespace molt::linker
