// Symbols of files: every one that nm lists is found by name, position and address.

#include "elf/symbols.hpp"

#include "base/fd.hpp"
#include "folder.hpp"
#include "samples.hpp"

#include <fcntl.h>

#include <cstdio>
#include <map>
#include <sstream>

namespace molt::elf {
namespace {

Result<Symbols> symbols_of(const std::string& path, const SymbolOptions& options = {}) {
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(fd) << path;
  return read_symbols(fd.get(), path, options);
}

struct Listed {
  std::uint64_t address;
  std::uint64_t size;
};
// What readelf lists as defined, by name in the order of the table: "name" or "name@VERSION".
std::map<std::string, std::vector<Listed>> listed(const std::string& path) {
  std::map<std::string, std::vector<Listed>> all;
  const std::string command =
      "readelf -sW '" + path +
      "' | awk '/symtab/ {on=1} on && $1 ~ /^[0-9]+:$/ && $7 != \"UND\" && $4 != \"FILE\" && "
      "$4 != \"SECTION\" && $4 != \"TLS\" && $7 != \"ABS\" && NF >= 8 {print $2, $3, $8}'";
  FILE* pipe = popen(command.c_str(), "r");
  char line[1024];
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    std::istringstream words(line);
    std::string address, size, name;
    words >> address >> size >> name;
    if (auto at = name.find("@@"); at != name.npos) name.resize(at);
    all[name].push_back({std::stoull(address, nullptr, 16), std::stoull(size, nullptr, 0)});
  }
  EXPECT_EQ(pclose(pipe), 0);
  return all;
}

class SymbolsOf : public testing::TestWithParam<std::string> {};

TEST_P(SymbolsOf, all_that_readelf_lists) {
  NEEDS_SAMPLE(GetParam());
  const std::string path = sample_path(GetParam());
  auto symbols = symbols_of(path);
  ASSERT_TRUE(symbols) << symbols.error().detail;
  EXPECT_EQ(symbols->source(), SymbolSource::symtab);
  EXPECT_TRUE(symbols->complete());
  EXPECT_EQ(symbols->shortcomings(), "");

  const auto all = listed(path);
  ASSERT_GT(all.size(), 5u);
  for (const auto& [name, places] : all) {
    const auto found = symbols->find_all(name);
    ASSERT_EQ(found.size(), places.size()) << name;
    for (std::size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(found[i].address, places[i].address) << name;
      EXPECT_EQ(found[i].size, places[i].size) << name;
      EXPECT_EQ(found[i].position, i + 1) << name;
      auto one = symbols->find(name, static_cast<std::uint32_t>(i + 1));
      ASSERT_TRUE(one) << one.error().detail;
      EXPECT_EQ(one->address, places[i].address) << name;
    }
    EXPECT_FALSE(symbols->find(name, static_cast<std::uint32_t>(places.size() + 1)));
  }
}

TEST_P(SymbolsOf, addresses_lead_back) {
  NEEDS_SAMPLE(GetParam());
  const std::string path = sample_path(GetParam());
  auto symbols = symbols_of(path);
  ASSERT_TRUE(symbols);
  std::size_t looked = 0;
  for (const auto& [name, places] : listed(path)) {
    for (const Listed& place : places) {
      for (std::uint64_t offset : {std::uint64_t{0}, place.size / 2, place.size - 1}) {
        if (place.size == 0) continue;
        ++looked;
        auto at = symbols->at(place.address + offset);
        ASSERT_TRUE(at) << name << '+' << offset;
        // Another name perhaps, but one of the same place.
        EXPECT_EQ(at->symbol.address + at->offset, place.address + offset);
        EXPECT_LT(at->offset, at->symbol.size);
      }
    }
  }
  EXPECT_GT(looked, 10u);
}

INSTANTIATE_TEST_SUITE_P(samples, SymbolsOf,
                         testing::Values("symbols.so", "symbols_clang.so", "symbols_high.so",
                                         "plain.so", "regex.so", "program", "program_fixed",
                                         "program_static", "module_cxx.so", "module_clang.so"),
                         [](const auto& test) { return test_name(test.param); });

TEST(symbols, kinds) {
  auto symbols = symbols_of(sample_path("symbols.so"));
  ASSERT_TRUE(symbols);
  auto once = symbols->find("once");
  ASSERT_TRUE(once);
  EXPECT_TRUE(once->is_function());
  EXPECT_FALSE(once->is_indirect());
  EXPECT_EQ(once->bind, STB_LOCAL);
  EXPECT_EQ(once->section, ".text");
  EXPECT_EQ(once->version, "");
  EXPECT_EQ(symbols->find("counter")->section, ".data");
  EXPECT_EQ(symbols->find("counter")->type, STT_OBJECT);
  EXPECT_TRUE(symbols->find("chosen")->is_indirect());
  EXPECT_TRUE(symbols->find("per_thread")->is_thread_local());
  EXPECT_EQ(symbols->find("per_thread")->address, 0u);
  // No address leads to a thread-local variable or an absolute symbol.
  EXPECT_FALSE(symbols->at(0));
}

TEST(symbols, refusals_in_the_kernels_words) {
  auto symbols = symbols_of(sample_path("symbols.so"));
  ASSERT_TRUE(symbols);
  const std::string object = "object '" + sample_path("symbols.so") + "'";
  auto begins = [](const Result<FoundSymbol>& failed, int code, const std::string& words) {
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, code);
    EXPECT_EQ(std::string(failed.error().detail).substr(0, words.size()), words);
  };
  begins(symbols->find("nowhere"), EINVAL, "symbol 'nowhere' not found in symbol table");
  begins(symbols->find(""), EINVAL, "symbol '' not found in symbol table");
  begins(symbols->find("twice"), EINVAL,
         "unresolvable ambiguity for symbol 'twice' in " + object + "; position 1 is at 0x");
  begins(symbols->find("twice", 3), EINVAL,
         "symbol position 3 for symbol 'twice' in " + object + " not found");
  // Names are compared whole.
  EXPECT_FALSE(symbols->find("onc"));
  EXPECT_FALSE(symbols->find("once_"));
}

TEST(symbols, versions) {
  for (const char* file : {"symbols.so", "symbols_packed.so"}) {
    auto symbols = symbols_of(sample_path(file), {nullptr, nullptr});
    ASSERT_TRUE(symbols);
    auto plain = symbols->find("versioned");
    auto newer = symbols->find("versioned@@MOLT_2");
    auto older = symbols->find("versioned@MOLT_1");
    ASSERT_TRUE(plain && newer && older) << file;
    EXPECT_EQ(plain->address, newer->address);
    EXPECT_NE(plain->address, older->address);
    EXPECT_EQ(plain->version, "MOLT_2");
    EXPECT_EQ(older->version, "MOLT_1");
    EXPECT_EQ(older->name, "versioned");
    EXPECT_FALSE(symbols->find("versioned@MOLT_3"));
    EXPECT_EQ(symbols->find("versioned_old")->address, older->address);
  }
}

TEST(symbols, one_address_under_one_name_is_no_ambiguity) {
  auto symbols = symbols_of(sample_path("symbols.so"));
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->find("shared")->address, symbols->find("alias_of_shared")->address);
  // .gnu_debugdata and .dynsym both name it.
  auto packed = symbols_of(sample_path("symbols_packed.so"), {nullptr, nullptr});
  ASSERT_TRUE(packed);
  EXPECT_EQ(packed->find_all("shared").size(), 2u);
  EXPECT_TRUE(packed->find("shared"));
}

TEST(symbols, without_size) {
  auto symbols = symbols_of(sample_path("symbols.so"));
  ASSERT_TRUE(symbols);
  auto unsized = symbols->find("unsized");
  ASSERT_TRUE(unsized);
  EXPECT_EQ(unsized->size, 0u);
  auto at = symbols->at(unsized->address + 3);
  ASSERT_TRUE(at);
  EXPECT_EQ(at->symbol.name, "unsized");
  EXPECT_EQ(at->offset, 3u);
  EXPECT_EQ(at->symbol.position, 1u);
  // _fini has no size, and ends where its section ends.
  auto fini = symbols->find("_fini");
  ASSERT_TRUE(fini);
  EXPECT_EQ(symbols->at(fini->address + 1)->symbol.name, "_fini");
  EXPECT_FALSE(symbols->at(fini->address + 0x800));
}

TEST(symbols, gaps_belong_to_nobody) {
  auto symbols = symbols_of(sample_path("symbols_moved.so"));
  ASSERT_TRUE(symbols);
  auto once = symbols->find("once");
  ASSERT_TRUE(once);
  EXPECT_EQ(symbols->at(once->address + once->size - 1)->symbol.name, "once");
  EXPECT_FALSE(symbols->at(once->address + once->size));
  EXPECT_FALSE(symbols->at(~std::uint64_t{0}));
}

TEST(symbols, less_is_left) {
  Folder folder;
  std::filesystem::copy_file(sample_path("symbols.so"), folder.path("stripped.so"));
  folder.run("strip $1", "stripped.so");
  auto symbols = symbols_of(folder.path("stripped.so"));
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::dynsym);
  EXPECT_FALSE(symbols->complete());
  EXPECT_NE(symbols->shortcomings().find("stripped; no debug file /usr/lib/debug/.build-id/"),
            std::string::npos)
      << symbols->shortcomings();
  EXPECT_FALSE(symbols->find("once"));
  auto use = symbols->find("use");
  ASSERT_TRUE(use);
  EXPECT_EQ(use->address, symbols_of(sample_path("symbols.so"))->find("use")->address);
  EXPECT_EQ(use->section, ".text");
  EXPECT_EQ(use->position, 0u);
  // Whether it is the first of its name this table cannot say.
  auto first = symbols->find("use", 1);
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, ENODATA);

  // No section headers either.
  auto bytes = contents(folder.path("stripped.so"));
  std::memset(&bytes[offsetof(Elf64_Ehdr, e_shoff)], 0, sizeof(Elf64_Ehdr::e_shoff));
  auto bare = read_symbols(bytes, "bare");
  ASSERT_TRUE(bare) << bare.error().detail;
  EXPECT_EQ(bare->find("use")->address, use->address);
  EXPECT_EQ(bare->find("use")->section, "");
}

TEST(symbols, not_elf) {
  Folder folder;
  folder.run("echo hello > text; mkfifo pipe; : > empty");
  for (const char* file : {"text", "empty"}) {
    auto failed = symbols_of(folder.path(file));
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, ENOEXEC);
  }
  Fd fd(open(folder.path("pipe").c_str(), O_RDONLY | O_NONBLOCK));
  EXPECT_EQ(read_symbols(fd.get(), "pipe").error().code, EINVAL);
  EXPECT_FALSE(read_symbols(-1, "nothing"));
}

// A table as large as a browser's, made here: all its names are found, and those that share a name.
TEST(symbols, a_million) {
  constexpr std::uint32_t count = 1'000'000;
  constexpr std::uint32_t same = 1000;  // names occur that often
  std::string strings(1, '\0');
  std::vector<std::uint32_t> offsets;
  for (std::uint32_t i = 0; i < count / same; ++i) {
    offsets.push_back(static_cast<std::uint32_t>(strings.size()));
    strings += "_ZN4some9namespace8function" + std::to_string(i) + "Ev";
    strings += '\0';
  }
  std::vector<Elf64_Sym> table(count + 1);
  for (std::uint32_t i = 1; i <= count; ++i) {
    table[i].st_name = offsets[i % offsets.size()];
    table[i].st_info = ELF64_ST_INFO(STB_LOCAL, STT_FUNC);
    table[i].st_shndx = 3;
    table[i].st_value = std::uint64_t{16} * ((i * 7919ull) % count);
    table[i].st_size = 12;
  }
  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = ET_DYN;
  header.e_machine = EM_X86_64;
  header.e_shoff = sizeof header;
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 3;
  Elf64_Shdr sections[3] = {};
  sections[1].sh_type = SHT_SYMTAB;
  sections[1].sh_link = 2;
  sections[1].sh_offset = sizeof header + sizeof sections;
  sections[1].sh_size = table.size() * sizeof(Elf64_Sym);
  sections[2].sh_type = SHT_STRTAB;
  sections[2].sh_offset = sections[1].sh_offset + sections[1].sh_size;
  sections[2].sh_size = strings.size();
  std::vector<std::byte> file;
  auto append = [&file](const void* data, std::size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    file.insert(file.end(), from, from + bytes);
  };
  append(&header, sizeof header);
  append(sections, sizeof sections);
  append(table.data(), sections[1].sh_size);
  append(strings.data(), strings.size());

  auto symbols = read_symbols(file, "large");
  ASSERT_TRUE(symbols) << symbols.error().detail;
  EXPECT_EQ(symbols->size(), count);
  for (std::uint32_t i = 1; i <= count; i += 9973) {
    const std::string name(strings.c_str() + table[i].st_name);
    // i, i + 1000, ... share the name.
    const std::uint32_t first = i % same == 0 ? same : i % same;
    auto found = symbols->find(name, (i - first) / same + 1);
    ASSERT_TRUE(found) << found.error().detail;
    EXPECT_EQ(found->address, table[i].st_value);
    auto at = symbols->at(table[i].st_value + 11);
    ASSERT_TRUE(at);
    EXPECT_EQ(at->symbol.name, name);
    EXPECT_EQ(at->symbol.position, (i - first) / same + 1);
    EXPECT_FALSE(symbols->at(table[i].st_value + 12));
  }
}

}  // namespace
}  // namespace molt::elf
