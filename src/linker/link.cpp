// link.cpp - from a checked file to code in memory:
//
//   running objects by build-id -> bytes of the functions to be replaced -> symbols -> layout ->
//   mapping -> relocated copies, in private memory -> written -> sealed -> frames, names
//
// The process can tell only from "mapping" on; whatever fails then unmaps what was mapped.

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "arch/x86_64/names.hpp"
#include "arch/x86_64/near.hpp"
#include "arch/x86_64/text.hpp"
#include "base/hash.hpp"
#include "base/memory.hpp"
#include "linker/far_load.hpp"
#include "linker/linker.hpp"
#include "linker/symbols.hpp"
#include "linker/unwinders.hpp"

namespace molt::linker {
namespace {

using arch::CodeAddress;
using patchfile::Meaning;
using patchfile::PatchFile;

constexpr std::size_t page_size = 4096;
constexpr std::size_t mapping_alignment = 64 * 1024;
constexpr std::size_t veneer_size = 16;
constexpr CodeAddress end_of_low = CodeAddress{1} << 31;

std::size_t round_up(std::size_t value, std::size_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

std::string text(std::string_view view) { return std::string(view.substr(0, 100)); }

bool is_executable(const elf::NamedObject& object, std::uint64_t address, std::uint64_t size) {
  for (const Elf64_Phdr& s : object.segments) {
    if (s.p_type == PT_LOAD && (s.p_flags & PF_X) != 0 && address >= s.p_vaddr &&
        address - s.p_vaddr <= s.p_memsz && size <= s.p_memsz - (address - s.p_vaddr)) {
      return true;
    }
  }
  return false;
}

// Where a section goes in its target's mapping, in this order.
enum Part { code, constants, variables, parts };
Part part_of(const patchfile::Section& section) {
  if (section.executable) return code;
  return section.writable ? variables : constants;
}

// Kinds of words in the table of addresses.
enum class Word { address, tls_offset, tls_pair, tls_object };
struct WordKey {
  Word kind;
  std::uint32_t symbol;
  std::int64_t addend;
  auto operator<=>(const WordKey&) const = default;
};

struct Area {
  std::size_t size[parts] = {};   // of each part, sections only, then with what is added
  std::size_t begin[parts] = {};  // within the mapping
  std::size_t mapped = 0;
  std::size_t stubs_at = 0;                      // in the code, behind the veneers
  std::size_t stubs = 0;                         // that are used
  std::size_t veneers_at = 0;                    // in the code
  std::size_t addresses_at = 0;                  // in the constants
  std::map<std::uint32_t, std::size_t> veneers;  // symbol -> offset in the mapping
  std::map<WordKey, std::size_t> words;          // -> offset in the mapping
  Bytes image;
  CodeAddress address = 0;
};

}  // namespace

// One run of link().
struct Linking {
  const PatchFile& file;
  const Options& options;
  std::vector<elf::NamedObject> objects{};
  std::vector<std::uint64_t> values{};  // of each symbol, once the mapping is there
  std::vector<TlsPlace> tls{};          // of thread-local ones
  std::vector<bool> is_tls{};
  std::vector<std::size_t> offsets{};  // of each section in its mapping
  std::vector<Area> areas{};

  // The heap must not keep addresses in the patch: whoever searches for them when it goes would take
  // these for the program's (base/own_memory.hpp).
  ~Linking() {
    for (Area& area : areas) {
      if (area.image.size() != 0) ::explicit_bzero(area.image.data(), area.image.size());
    }
    if (!values.empty()) ::explicit_bzero(values.data(), values.size() * sizeof values[0]);
  }

  Status check() {
    if (Status ok = find_objects(); !ok) return ok;
    if (Status ok = compare_functions(); !ok) return ok;
    return find_symbols();
  }

  // --- N1: is this the process that the patch was made for? ---

  Status find_objects() {
    const auto loaded = elf::loaded_objects();
    for (const patchfile::Target& target : file.targets()) {
      const auto at = std::find_if(loaded.begin(), loaded.end(), [&](const auto& o) {
        return o.build_id == target.build_id && o.is_program == target.is_program;
      });
      if (at != loaded.end()) {
        objects.push_back(*at);
        continue;
      }
      const auto same_name = std::find_if(loaded.begin(), loaded.end(), [&](const auto& o) {
        return target.is_program ? o.is_program
                                 : o.soname == target.name || o.name() == target.name;
      });
      if (same_name == loaded.end()) {
        return fail(ENOENT, "%s (build-id %s), which the patch is for, is not loaded",
                    text(target.name).c_str(), text(target.build_id).c_str());
      }
      return fail(ESTALE,
                  "%s has build-id %s, and the patch is for build-id %s; build it from the sources "
                  "of what runs",
                  text(same_name->name()).c_str(),
                  same_name->build_id.empty() ? "none" : text(same_name->build_id).c_str(),
                  text(target.build_id).c_str());
    }
    return {};
  }

  Status compare_functions() {
    for (const patchfile::Function& function : file.functions()) {
      const elf::NamedObject& object = objects[function.target];
      if (!is_executable(object, function.old_address, function.old_size)) {
        return fail(ESTALE, "function %s is not where %s has code", text(function.name).c_str(),
                    text(object.name()).c_str());
      }
      Bytes bytes;
      if (!bytes.try_resize(function.old_size))
        return fail(ENOMEM, "no memory to compare functions");
      const std::uintptr_t at = object.bias + function.old_address;
      if (options.original_bytes) {
        options.original_bytes(at, {bytes.data(), bytes.size()});
      } else {
        std::memcpy(bytes.data(), reinterpret_cast<const void*>(at), bytes.size());
      }
      if (!std::ranges::equal(content_digest(bytes), function.old_hash)) {
        return fail(ESTALE,
                    "function %s of %s is not what the patch replaces: its bytes differ; another "
                    "tool has changed it, or the patch is for another build",
                    text(function.name).c_str(), text(object.name()).c_str());
      }
    }
    return {};
  }

  Status find_symbols() {
    const auto& symbols = file.symbols();
    values.resize(symbols.size());
    tls.resize(symbols.size());
    is_tls.resize(symbols.size());
    for (std::size_t i = 1; i < symbols.size(); ++i) {
      const patchfile::Symbol& symbol = symbols[i];
      switch (symbol.meaning) {
        case Meaning::section:
          break;  // layout() tells
        case Meaning::absolute:
          values[i] = symbol.value;
          break;
        case Meaning::image: {
          const elf::NamedObject& object = objects[symbol.target];
          values[i] = object.bias + symbol.value;
          // One past the end is an address that code may compute.
          if (!object.extent.contains(values[i]) && values[i] != object.extent.end) {
            return fail(ESTALE, "symbol %s is not in %s", text(symbol.name).c_str(),
                        text(object.name()).c_str());
          }
          break;
        }
        case Meaning::tls: {
          auto place = find_tls(objects[symbol.target], symbol.value);
          if (!place) return pass(place);
          tls[i] = *place;
          is_tls[i] = true;
          break;
        }
        case Meaning::dynamic: {
          auto found = find_dynamic(objects[symbol.target], symbol);
          if (!found) return pass(found);
          values[i] = *found;
          break;
        }
      }
    }
    // Those of other objects.
    for (const patchfile::Section& section : file.sections()) {
      for (const Elf64_Rela& r : section.relocations) {
        const auto type = ELF64_R_TYPE(r.r_info);
        const std::size_t i = ELF64_R_SYM(r.r_info);
        const bool wants_tls = type == R_X86_64_TLSGD || type == R_X86_64_GOTTPOFF ||
                               type == R_X86_64_TPOFF32 || type == R_X86_64_DTPOFF32;
        if (!wants_tls || is_tls[i]) continue;
        auto place = find_tls_at(values[i]);
        if (!place) return pass(place);
        tls[i] = *place;
        is_tls[i] = true;
      }
    }
    return {};
  }

  // --- where everything goes ---

  void layout() {
    areas.resize(file.targets().size());
    offsets.resize(file.sections().size());
    for (std::size_t i = 0; i < file.sections().size(); ++i) {
      const patchfile::Section& section = file.sections()[i];
      std::size_t& size = areas[section.target].size[part_of(section)];
      offsets[i] = round_up(size, section.alignment);
      // Frames end with a length of 0.
      size = offsets[i] + section.size + (section.name == ".eh_frame" ? 4 : 0);
    }
    // One for each relocation is more than enough: most share.
    std::vector<std::size_t> veneers(areas.size()), words(areas.size()), stubs(areas.size());
    for (const patchfile::Section& section : file.sections()) {
      std::vector<std::uint32_t> seen;
      for (const Elf64_Rela& r : section.relocations) {
        const auto symbol = static_cast<std::uint32_t>(ELF64_R_SYM(r.r_info));
        const bool is_inside = file.symbols()[symbol].meaning == Meaning::section &&
                               file.symbols()[symbol].target == section.target;
        switch (ELF64_R_TYPE(r.r_info)) {
          case R_X86_64_PC32:
          case R_X86_64_PLT32:
          case R_X86_64_32:
          case R_X86_64_32S:
            if (is_inside) break;
            words[section.target] += 1;
            stubs[section.target] += may_be_far_load(section, r);
            if (std::find(seen.begin(), seen.end(), symbol) != seen.end()) break;
            seen.push_back(symbol);
            veneers[section.target] += 1;
            break;
          case R_X86_64_GOTPCREL:
          case R_X86_64_GOTPCRELX:
          case R_X86_64_REX_GOTPCRELX:
          case R_X86_64_GOTTPOFF:
            words[section.target] += 1;
            break;
          case R_X86_64_TLSGD:
          case R_X86_64_TLSLD:
            words[section.target] += 2;
            break;
        }
      }
    }
    for (std::size_t t = 0; t < areas.size(); ++t) {
      Area& area = areas[t];
      area.veneers_at = round_up(area.size[code], veneer_size);
      area.stubs_at = area.veneers_at + veneers[t] * veneer_size;
      area.size[code] = area.stubs_at + stubs[t] * far_load_size;
      area.addresses_at = round_up(area.size[constants], sizeof(std::uint64_t));
      area.size[constants] = area.addresses_at + words[t] * sizeof(std::uint64_t);
      for (int p = 0; p < parts; ++p) {
        area.begin[p] = area.mapped;
        area.mapped += round_up(area.size[p], page_size);
      }
      area.veneers_at += area.begin[code];
      area.stubs_at += area.begin[code];
      area.addresses_at += area.begin[constants];
    }
    for (std::size_t i = 0; i < file.sections().size(); ++i) {
      const patchfile::Section& section = file.sections()[i];
      offsets[i] += areas[section.target].begin[part_of(section)];
    }
  }

  std::size_t may_be_far_load(const patchfile::Section& section, const Elf64_Rela& r) const {
    return ELF64_R_TYPE(r.r_info) == R_X86_64_PC32 && section.executable &&
                   file.symbols()[ELF64_R_SYM(r.r_info)].meaning == Meaning::dynamic
               ? 1
               : 0;
  }

  Status map() {
    for (std::size_t t = 0; t < areas.size(); ++t) {
      Area& area = areas[t];
      if (area.mapped == 0) continue;
      if (!area.image.try_resize(area.mapped))
        return fail(ENOMEM, "no memory for the patch's code");
      std::memset(area.image.data(), 0, area.mapped);
      const auto& extent = objects[t].extent;
      auto place = arch::map_near({extent.begin, extent.end}, area.mapped, mapping_alignment,
                                  file.targets()[t].is_low ? end_of_low : 0);
      if (!place) return pass(place);
      area.address = *place;
    }
    return {};
  }
  void unmap() {
    for (Area& area : areas) {
      if (area.address != 0) munmap(reinterpret_cast<void*>(area.address), area.mapped);
      area.address = 0;
    }
  }

  // --- relocations, in private memory ---

  void place_symbols() {
    for (std::size_t i = 1; i < values.size(); ++i) {
      const patchfile::Symbol& symbol = file.symbols()[i];
      if (symbol.meaning != Meaning::section) continue;
      values[i] = areas[symbol.target].address + offsets[symbol.section] + symbol.value;
    }
  }

  template <class T>
  static void put(Area& area, std::size_t offset, T value) {
    std::memcpy(area.image.data() + offset, &value, sizeof value);
  }

  std::size_t veneer(Area& area, std::uint32_t symbol) {
    const auto [at, is_new] =
        area.veneers.try_emplace(symbol, area.veneers_at + area.veneers.size() * veneer_size);
    if (is_new) {
      constexpr unsigned char jump[] = {0xff, 0x25, 2, 0, 0, 0};  // jmp *2(%rip), aligned words
      std::memcpy(area.image.data() + at->second, jump, sizeof jump);
      put(area, at->second + 8, values[symbol]);
    }
    return at->second;
  }

  Result<std::size_t> word(Area& area, Word kind, std::uint32_t symbol, std::int64_t addend) {
    const auto known = area.words.find({kind, symbol, addend});
    if (known != area.words.end()) return known->second;
    const std::size_t at = area.addresses_at + words_used(area) * sizeof(std::uint64_t);
    switch (kind) {
      case Word::address:
        put(area, at, values[symbol] + static_cast<std::uint64_t>(addend));
        break;
      case Word::tls_offset:
        if (!tls[symbol].from_thread) return no_static_tls(symbol);
        put(area, at, *tls[symbol].from_thread);
        break;
      case Word::tls_pair:
        put(area, at, tls[symbol].module);
        put(area, at + 8, tls[symbol].offset);
        break;
      case Word::tls_object: {
        auto place = find_tls(objects[symbol], 0);  // here it is a target
        if (!place) return pass(place);
        put(area, at, place->module);
        put(area, at + 8, std::uint64_t{0});
        break;
      }
    }
    area.words.insert({{kind, symbol, addend}, at});
    return at;
  }
  static std::size_t words_used(const Area& area) {
    std::size_t used = 0;
    for (const auto& [key, at] : area.words) {
      used += key.kind == Word::tls_pair || key.kind == Word::tls_object ? 2 : 1;
    }
    return used;
  }
  tl::unexpected<Error> no_static_tls(std::uint32_t symbol) const {
    return fail(ENOTSUP,
                "thread-local variable %s is not at one distance from every thread's pointer",
                text(file.symbols()[symbol].name).c_str());
  }
  tl::unexpected<Error> out_of_reach(const patchfile::Section& section, const Elf64_Rela& r) const {
    return fail(
        ERANGE, "%s refers to %s, which is out of its reach (relocation type %u at %#llx)",
        text(section.name).c_str(), text(file.symbols()[ELF64_R_SYM(r.r_info)].name).c_str(),
        static_cast<unsigned>(ELF64_R_TYPE(r.r_info)), static_cast<unsigned long long>(r.r_offset));
  }

  static bool fits(std::int64_t value) { return value == static_cast<std::int32_t>(value); }

  // `lea symbol(%rip), %reg` becomes a load of the address: the same register, and no flags.
  static bool is_lea(const std::byte* field, std::size_t offset) {
    if (offset < 3) return false;
    const auto b = [&](int i) { return std::to_integer<unsigned>(field[i]); };
    return (b(-3) & 0xf8) == 0x48 && b(-2) == 0x8d && (b(-1) & 0xc7) == 0x05;
  }
  static bool is_branch(const std::byte* field, std::size_t offset) {
    const auto b = [&](int i) { return std::to_integer<unsigned>(field[i]); };
    return (offset >= 1 && (b(-1) == 0xe8 || b(-1) == 0xe9)) ||
           (offset >= 2 && b(-2) == 0x0f && (b(-1) & 0xf0) == 0x80);
  }

  Status relocate(const patchfile::Section& section, Area& area, std::size_t base,
                  const Elf64_Rela& r) {
    const auto symbol = static_cast<std::uint32_t>(ELF64_R_SYM(r.r_info));
    const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info));
    const std::size_t at = base + r.r_offset;
    std::byte* field = area.image.data() + at;
    const CodeAddress place = area.address + at;
    const auto target =
        static_cast<std::int64_t>(values[symbol] + static_cast<std::uint64_t>(r.r_addend));
    const auto relative = [&](std::uint64_t to) { return static_cast<std::int64_t>(to - place); };
    const auto put32 = [&](std::int64_t value) -> Status {
      if (!fits(value)) return out_of_reach(section, r);
      put(area, at, static_cast<std::int32_t>(value));
      return {};
    };
    // The displacement to something in this mapping.
    const auto to_own = [&](std::size_t own, std::int64_t addend) {
      return put32(static_cast<std::int64_t>(own) + addend - static_cast<std::int64_t>(at));
    };
    switch (type) {
      case R_X86_64_64:
        put(area, at, target);
        return {};
      case R_X86_64_PC64:
        put(area, at, relative(static_cast<std::uint64_t>(target)));
        return {};
      case R_X86_64_32:
      case R_X86_64_32S: {
        const bool ok =
            type == R_X86_64_32 ? target == static_cast<std::uint32_t>(target) : fits(target);
        if (ok) {
          put(area, at, static_cast<std::uint32_t>(target));
          return {};
        }
        if (!file.symbols()[symbol].is_function || r.r_addend != 0) return out_of_reach(section, r);
        return put32(static_cast<std::int64_t>(area.address + veneer(area, symbol)));
      }
      case R_X86_64_PC32:
      case R_X86_64_PLT32: {
        const std::int64_t direct = relative(static_cast<std::uint64_t>(target));
        if (fits(direct)) return put32(direct);
        if (section.executable && is_branch(field, r.r_offset) && r.r_addend == -4) {
          return to_own(veneer(area, symbol), r.r_addend);
        }
        if (type == R_X86_64_PC32 && section.executable && is_lea(field, r.r_offset)) {
          auto slot = word(area, Word::address, symbol, r.r_addend + 4);
          if (!slot) return pass(slot);
          field[-2] = std::byte{0x8b};
          return to_own(*slot, -4);
        }
        if (may_be_far_load(section, r) != 0) {
          const std::span code_of_section(area.image.data() + base, section.size);
          const auto load = far_load_at(code_of_section, r.r_offset);
          if (!load) return out_of_reach(section, r);
          auto slot = word(area, Word::address, symbol, r.r_addend + 4);
          if (!slot) return pass(slot);
          const std::size_t stub = area.stubs_at + area.stubs++ * far_load_size;
          write_far_load(
              *load, code_of_section.subspan(load->begin, load->end - load->begin),
              static_cast<std::int64_t>(base + load->begin),
              std::span<std::byte, far_load_size>(area.image.data() + stub, far_load_size),
              static_cast<std::int64_t>(stub), static_cast<std::int64_t>(*slot));
          return {};
        }
        return out_of_reach(section, r);
      }
      case R_X86_64_GOTPCREL:
      case R_X86_64_GOTPCRELX:
      case R_X86_64_REX_GOTPCRELX: {
        auto slot = word(area, Word::address, symbol, 0);
        if (!slot) return pass(slot);
        return to_own(*slot, r.r_addend);
      }
      case R_X86_64_GOTTPOFF: {
        auto slot = word(area, Word::tls_offset, symbol, 0);
        if (!slot) return pass(slot);
        return to_own(*slot, r.r_addend);
      }
      case R_X86_64_TPOFF32:
        if (!tls[symbol].from_thread) return no_static_tls(symbol);
        return put32(*tls[symbol].from_thread + r.r_addend);
      case R_X86_64_TLSGD: {
        auto slot = word(area, Word::tls_pair, symbol, 0);
        if (!slot) return pass(slot);
        return to_own(*slot, r.r_addend);
      }
      case R_X86_64_TLSLD: {
        auto slot = word(area, Word::tls_object, section.target, 0);
        if (!slot) return pass(slot);
        return to_own(*slot, r.r_addend);
      }
      case R_X86_64_DTPOFF32:
        return put32(static_cast<std::int64_t>(tls[symbol].offset) + r.r_addend);
    }
    return fail(ENOEXEC, "relocation type %u", type);
  }

  Status fill() {
    for (std::size_t i = 0; i < file.sections().size(); ++i) {
      const patchfile::Section& section = file.sections()[i];
      Area& area = areas[section.target];
      if (!section.content.empty()) {
        std::memcpy(area.image.data() + offsets[i], section.content.data(), section.content.size());
      }
    }
    for (std::size_t i = 0; i < file.sections().size(); ++i) {
      const patchfile::Section& section = file.sections()[i];
      for (const Elf64_Rela& r : section.relocations) {
        if (Status ok = relocate(section, areas[section.target], offsets[i], r); !ok) return ok;
      }
    }
    return {};
  }

  // --- into the process ---

  static Status protect(const Area& area, Part part, int protection) {
    if (area.size[part] == 0) return {};
    void* begin = reinterpret_cast<void*>(area.address + area.begin[part]);
    if (mprotect(begin, round_up(area.size[part], page_size), protection) == 0) return {};
    return fail_errno(errno, "cannot protect the patch's memory");
  }

  Status write() {
    arch::text_setup();
    for (const Area& area : areas) {
      for (Part part : {constants, variables}) {
        if (area.size[part] == 0) continue;
        if (Status ok = protect(area, part, PROT_READ | PROT_WRITE); !ok) return ok;
        std::memcpy(reinterpret_cast<void*>(area.address + area.begin[part]),
                    area.image.data() + area.begin[part], area.size[part]);
      }
      if (Status ok = protect(area, constants, PROT_READ); !ok) return ok;
    }
    arch::TextWriter writer = arch::TextWriter::open();
    for (const Area& area : areas) {
      if (area.size[code] == 0) continue;
      if (Status ok = writer.check({area.address, area.address + area.size[code]}); !ok) return ok;
      if (Status ok = writer.write(area.address, {area.image.data(), area.size[code]}); !ok)
        return ok;
    }
    // Before anybody comes there.
    if (!arch::serialise_cores()) {
      return fail(ENOTSUP, "the processor's cores cannot be synchronised here: no membarrier");
    }
    return {};
  }

  static CodeRange range_of(const Area& area, std::size_t begin, std::size_t size) {
    return {area.address + begin, area.address + begin + size};
  }

  void describe(Linked& linked) const {
    for (std::size_t t = 0; t < areas.size(); ++t) {
      const Area& area = areas[t];
      Target target;
      target.object = objects[t];
      target.whole = range_of(area, 0, area.mapped);
      target.code = range_of(area, area.begin[code], area.size[code]);
      target.constants = range_of(area, area.begin[constants], area.size[constants]);
      target.variables = range_of(area, area.begin[variables], area.size[variables]);
      target.addresses = {area.address + area.addresses_at, target.constants.end};
      for (std::size_t i = 0; i < file.sections().size(); ++i) {
        const patchfile::Section& section = file.sections()[i];
        if (section.target != t) continue;
        if (section.executable && section.size != 0) {
          target.functions.push_back(range_of(area, offsets[i], section.size));
        }
        if (section.name == ".eh_frame") {
          target.frames = range_of(area, offsets[i], section.size + 4);
        }
      }
      if (!area.veneers.empty()) {
        target.functions.push_back(
            range_of(area, area.veneers_at, area.veneers.size() * veneer_size));
      }
      if (area.stubs != 0) {
        target.functions.push_back(range_of(area, area.stubs_at, area.stubs * far_load_size));
      }
      linked.targets_.push_back(std::move(target));
    }
    for (const patchfile::Function& f : file.functions()) {
      const std::uintptr_t old = objects[f.target].bias + f.old_address;
      if (f.is_part) {
        linked.functions_.back().old_parts.push_back({old, old + f.old_size});
        continue;
      }
      linked.functions_.push_back(
          {std::string(f.name), f.target, old, f.old_size, values[f.symbol], {}});
    }
    linked.replaces_ = file.has_flag(patchfile::abi::flag_replace);
    for (std::size_t i = 0; i < file.sections().size(); ++i) {
      const patchfile::Section& section = file.sections()[i];
      const CodeAddress at = areas[section.target].address + offsets[i];
      if (section.name == patchfile::abi::callbacks_section) {
        linked.callbacks_ = {reinterpret_cast<const molt_patch_callback*>(at),
                             section.size / sizeof(molt_patch_callback)};
      } else if (section.name == patchfile::abi::states_section) {
        linked.states_ = {reinterpret_cast<molt_patch_state*>(at),
                          section.size / sizeof(molt_patch_state)};
      }
    }
  }

  void tell_tools(Linked& linked) const {
    for (std::size_t t = 0; t < areas.size(); ++t) {
      Target& target = linked.targets_[t];
      if (target.code.empty()) continue;
      std::vector<arch::CodeName> names;
      names.reserve(values.size());  // no copies
      for (std::size_t i = 1; i < values.size(); ++i) {
        const patchfile::Symbol& symbol = file.symbols()[i];
        if (symbol.meaning != Meaning::section || symbol.target != t || symbol.name.empty() ||
            !file.sections()[symbol.section].executable || symbol.size == 0) {
          continue;
        }
        names.push_back({{values[i], values[i] + symbol.size}, std::string(symbol.name)});
      }
      target.names = arch::name_functions(target.code, names, target.frames);
      for (arch::CodeName& name : names) ::explicit_bzero(&name.range, sizeof name.range);
      if (!target.frames.empty()) {
        target.unwinders = register_frames(target.frames.begin, target.object);
      }
    }
  }
};

Status check(const PatchFile& file, const Options& options) {
  Linking linking{file, options};
  return linking.check();
}

Result<std::unique_ptr<Linked>> link(const PatchFile& file, const Options& options) {
  if (Status ok = memory_available(); !ok) return pass(ok);
  Linking linking{file, options};
  if (Status ok = linking.check(); !ok) return pass(ok);
  linking.layout();
  Status ok = linking.map();
  if (ok) {
    linking.place_symbols();
    ok = linking.fill();
  }
  if (ok) ok = linking.write();
  if (!ok) {
    linking.unmap();
    return pass(ok);
  }
  std::unique_ptr<Linked> linked(new Linked);
  linking.describe(*linked);
  linking.tell_tools(*linked);
  return linked;
}

Linked::~Linked() {
  for (Target& target : targets_) {
    forget_frames(target.frames.begin, target.unwinders);
    arch::forget_code(target.names);
    if (!target.whole.empty()) {
      munmap(reinterpret_cast<void*>(target.whole.begin), target.whole.size());
    }
  }
}

std::size_t Linked::mapped_bytes() const {
  std::size_t bytes = 0;
  for (const Target& target : targets_) bytes += target.whole.size();
  return bytes;
}

bool Linked::contains(std::uintptr_t address) const {
  return std::any_of(targets_.begin(), targets_.end(),
                     [&](const Target& t) { return t.whole.contains(address); });
}

std::vector<CodeRange> Linked::known_memory() const {
  const auto of = [](const auto& list) {
    const auto begin = reinterpret_cast<CodeAddress>(list.data());
    return CodeRange{begin, begin + list.size() * sizeof(*list.data())};
  };
  const auto self = reinterpret_cast<CodeAddress>(this);
  std::vector<CodeRange> known{{self, self + sizeof *this}, of(targets_), of(functions_)};
  for (const Target& target : targets_) {
    known.push_back(of(target.functions));
    known.push_back(arch::memory_of(target.names));
  }
  return known;
}

}  // namespace molt::linker
