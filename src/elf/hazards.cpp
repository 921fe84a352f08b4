#include "elf/hazards.hpp"

#include <algorithm>

namespace molt::elf {

namespace {

std::string quoted(std::string_view symbol) { return "'" + std::string(symbol) + "'"; }

// The module's thread-local variables, without the compiler's own guards. From .symtab, which has
// the static ones too, or else from .dynsym.
std::vector<std::string_view> thread_local_names(const Image& image) {
  std::vector<std::string_view> names;
  const SymbolTable& table =
      image.static_symbols().empty() ? image.dynamic_symbols() : image.static_symbols();
  for (Symbol symbol : table) {
    const bool guard = symbol.name == "__tls_guard" || symbol.name.substr(0, 4) == "_ZGV";
    if (symbol.type == STT_TLS && symbol.defined && !symbol.name.empty() && !guard) {
      names.push_back(symbol.name);
    }
  }
  return names;
}

// "'a', 'b', 'c' and 4 more"
std::string list_of(const std::vector<std::string_view>& names) {
  constexpr std::size_t most = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), most); ++i) {
    if (i != 0) text += ", ";
    text += quoted(names[i]);
  }
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

// glibc enters the first definition that anything binds to into a table for the life of the
// process, and never unloads its object.
void find_unique_symbols(const Image& image, std::vector<Hazard>& hazards) {
  for (Symbol symbol : image.dynamic_symbols()) {
    if (symbol.bind != STB_GNU_UNIQUE || !symbol.defined) continue;
    hazards.push_back({Hazard::unique_symbol, std::string(symbol.name),
                       "STB_GNU_UNIQUE symbol " + quoted(symbol.name) +
                           " is never unloaded; compile with -fno-gnu-unique, or link with a "
                           "version script that makes it local"});
  }
}

// Each thread that runs such a constructor registers the destructor with glibc, which holds the
// object until it has run at the thread's end, and then until the next dlclose().
void find_thread_local_destructors(const Image& image, std::vector<Hazard>& hazards) {
  for (Symbol symbol : image.dynamic_symbols()) {
    if (!symbol.undefined() ||
        (symbol.name != "__cxa_thread_atexit" && symbol.name != "__cxa_thread_atexit_impl")) {
      continue;
    }
    auto names = thread_local_names(image);
    std::string text = "a thread_local object with a destructor";
    if (names.size() == 1) text += ", " + quoted(names.front()) + ",";
    if (names.size() > 1) text += " (of " + list_of(names) + ")";
    text +=
        " keeps the module until every thread that used it has ended; make it trivially "
        "destructible, or keep the objects in one place that exit() clears";
    hazards.push_back({Hazard::thread_local_destructor,
                       names.empty() ? std::string() : std::string(names.front()), text});
    return;
  }
}

// Are there thread-local variables at fixed offsets from the thread pointer? Those of other objects
// cost nothing: they have their place already.
bool uses_own_static_tls(const Image& image) {
  bool found = false;
  image.for_each_relocation([&](const Elf64_Rela& relocation) {
    if (ELF64_R_TYPE(relocation.r_info) != R_X86_64_TPOFF64) return;
    const std::uint64_t symbol = ELF64_R_SYM(relocation.r_info);
    const SymbolTable& table = image.dynamic_symbols();
    // Symbol 0: a variable that the linker bound to this object itself.
    if (symbol == 0 || (symbol < table.size() && table[symbol].defined)) found = true;
  });
  return found;
}

const Elf64_Phdr* segment_of_type(const Image& image, std::uint32_t type) {
  for (const Elf64_Phdr& segment : image.segments()) {
    if (segment.p_type == type) return &segment;
  }
  return nullptr;
}

}  // namespace

std::vector<Hazard> unload_hazards(const Image& image) {
  std::vector<Hazard> hazards;
  if ((image.flags_1() & DF_1_NODELETE) != 0) {
    hazards.push_back({Hazard::nodelete, "",
                       "the file is marked DF_1_NODELETE and is never unloaded; link it without "
                       "-z nodelete"});
  }
  find_unique_symbols(image, hazards);
  find_thread_local_destructors(image, hazards);
  return hazards;
}

std::vector<Hazard> lasting_effects(const Image& image) {
  std::vector<Hazard> hazards;
  const Elf64_Phdr* tls = segment_of_type(image, PT_TLS);
  if (tls != nullptr && tls->p_memsz != 0 && uses_own_static_tls(image)) {
    // glibc takes freed space back only at the end of what it gave out: where versions overlap in
    // time, as in a replace, never.
    auto names = thread_local_names(image);
    hazards.push_back({Hazard::static_tls, names.size() == 1 ? std::string(names.front()) : "",
                       "each load takes " + std::to_string(tls->p_memsz) +
                           " bytes of about 1600 that a process has for initial-exec thread-local "
                           "variables, and replacing does not return them; compile without "
                           "-ftls-model=initial-exec"});
  }
  const Elf64_Phdr* stack = segment_of_type(image, PT_GNU_STACK);
  if (stack == nullptr || (stack->p_flags & PF_X) != 0) {
    hazards.push_back({Hazard::executable_stack, "",
                       "loading it makes the stacks of all threads executable for good; link it "
                       "with -z noexecstack"});
  }
  return hazards;
}

}  // namespace molt::elf
