// What an image says, against what the linker was told and what the dynamic loader finds.

#include "elf/loaded.hpp"
#include "samples.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>

namespace molt::elf {
namespace {

std::vector<std::string> names(const std::vector<Symbol>& symbols) {
  std::vector<std::string> list;
  for (const Symbol& symbol : symbols) list.emplace_back(symbol.name);
  return list;
}

std::set<std::string> exports(const Image& image) {
  std::set<std::string> list;
  for (Symbol symbol : image.dynamic_symbols()) {
    if (symbol.exported()) list.emplace(symbol.name);
  }
  return list;
}

Error error_of(std::span<const std::byte> bytes, Purpose purpose = Purpose::load) {
  auto image = Image::parse(bytes, purpose);
  return image ? Error{} : image.error();
}

Error error_of_file(const std::string& file, Purpose purpose = Purpose::load) {
  return error_of(contents(sample_path(file)), purpose);
}

TEST(image, plain) {
  Sample image(sample_path("plain.so"));
  EXPECT_EQ(image->type(), ET_DYN);
  EXPECT_EQ(image->machine(), EM_X86_64);
  EXPECT_EQ(image->soname(), "");
  EXPECT_EQ(image->flags_1() & DF_1_NODELETE, 0u);
  EXPECT_EQ(exports(*image), (std::set<std::string>{"answer", "touch", "weakly_defined"}));
  EXPECT_TRUE(image->has_export("touch"));
  EXPECT_FALSE(image->has_export("hidden_function"));
  EXPECT_FALSE(image->has_export("optional"));
  EXPECT_FALSE(image->has_export(""));
  EXPECT_TRUE(image->module_notes().empty());
  EXPECT_EQ(image->note("name"), std::nullopt);

  auto undefined = image->undefined_symbols();
  auto optional = std::find_if(undefined.begin(), undefined.end(),
                               [](const Symbol& s) { return s.name == "optional"; });
  ASSERT_NE(optional, undefined.end());
  EXPECT_TRUE(optional->weak());

  for (Symbol symbol : image->dynamic_symbols()) {
    if (symbol.name == "answer") {
      EXPECT_EQ(symbol.type, STT_OBJECT);
      EXPECT_EQ(symbol.size, sizeof(int));
      auto bytes = image->at_address(symbol.value, symbol.size);
      ASSERT_TRUE(bytes);
      int value;
      std::memcpy(&value, bytes->data(), sizeof value);
      EXPECT_EQ(value, 42);
    }
  }
}

TEST(image, dynamic_table) {
  Sample image(sample_path("named.so"));
  EXPECT_EQ(image->soname(), "libnamed.so.7");
  ASSERT_FALSE(image->needed().empty());
  EXPECT_EQ(image->needed().front(), "libm.so.6");
  EXPECT_EQ(image->build_id(), "00112233445566778899aabbccddeeff01234567");
  EXPECT_NE(Sample(sample_path("nodelete.so"))->flags_1() & DF_1_NODELETE, 0u);
}

TEST(image, no_build_id) { EXPECT_EQ(Sample(sample_path("no_build_id.so"))->build_id(), ""); }

TEST(image, static_symbols_have_what_is_hidden) {
  Sample image(sample_path("plain.so"));
  bool found = false;
  for (Symbol symbol : image->static_symbols()) found |= symbol.name == "hidden_function";
  EXPECT_TRUE(found);
  EXPECT_TRUE(Sample(sample_path("stripped.so"))->static_symbols().empty());
}

void expect_notes_of_sample(const Image& image) {
  EXPECT_EQ(image.note("name"), "sample");
  EXPECT_EQ(image.note("version"), "1.2");
  EXPECT_EQ(image.note("license"), "MIT");
  EXPECT_EQ(image.note("description"), "looks at names = reads them");
  EXPECT_EQ(image.note("parm"), "limit:int:opens allowed");
  EXPECT_EQ(image.note("names"), std::nullopt);
  std::multiset<std::string> hooks;
  for (const Note& note : image.module_notes()) {
    if (note.key == "hook") hooks.emplace(note.value);
  }
  EXPECT_EQ(hooks, (std::multiset<std::string>{"files.open i32(const char*,i32)",
                                               "files.unlink i32(const char*,i32)"}));
  EXPECT_TRUE(image.has_export("molt_this_module"));
}

TEST(image, notes_of_a_c_module) { expect_notes_of_sample(*Sample(sample_path("module_c.so"))); }
TEST(image, notes_of_a_cxx_module) {
  expect_notes_of_sample(*Sample(sample_path("module_cxx.so")));
}
TEST(image, notes_of_a_clang_module) {
  NEEDS_SAMPLE("module_clang.so");
  expect_notes_of_sample(*Sample(sample_path("module_clang.so")));
}

// --- symbols, found in three ways ---------------------------------------------------------------

std::vector<std::byte> without_section_headers(std::vector<std::byte> bytes) {
  Elf64_Ehdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.e_shoff = 0;
  header.e_shnum = header.e_shstrndx = 0;
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

std::vector<std::string> all_names(const Image& image) {
  std::vector<std::string> list;
  for (Symbol symbol : image.dynamic_symbols()) list.emplace_back(symbol.name);
  return list;
}

class SymbolCount : public testing::TestWithParam<std::string> {};

TEST_P(SymbolCount, is_the_same_without_section_headers) {
  NEEDS_SAMPLE(GetParam());
  Sample with(sample_path(GetParam()));
  auto bytes = without_section_headers(with.bytes);
  auto bare = Image::parse(bytes);
  ASSERT_TRUE(bare) << bare.error().detail;
  EXPECT_FALSE(all_names(*with).empty());
  EXPECT_EQ(all_names(*with), all_names(*bare));
  EXPECT_EQ(names(with->undefined_symbols()), names(bare->undefined_symbols()));
  EXPECT_EQ(with->build_id(), bare->build_id());
  EXPECT_TRUE(bare->static_symbols().empty());
}
INSTANTIATE_TEST_SUITE_P(samples, SymbolCount,
                         testing::Values("plain.so", "sysv_hash.so", "no_exports.so", "regex.so",
                                         "regex_off_local.so", "stripped.so", "unique_clang.so"),
                         [](const auto& test) { return test_name(test.param); });

// --- libraries of the system, as the dynamic loader sees them --------------------------------------

class SystemLibrary : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    handle_ = dlopen(GetParam(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) GTEST_SKIP() << "not on this system: " << dlerror();
    ASSERT_EQ(dlinfo(handle_, RTLD_DI_LINKMAP, &map_), 0);
  }
  void TearDown() override {
    if (handle_ != nullptr) dlclose(handle_);
  }
  void* handle_ = nullptr;
  link_map* map_ = nullptr;
};

TEST_P(SystemLibrary, agrees_with_the_loader) {
  Sample image(map_->l_name);
  EXPECT_EQ(image->soname(), GetParam());
  EXPECT_EQ(image->build_id().size(), 40u);
  EXPECT_FALSE(image->has_export("no_such_function"));

  auto extent = extent_of(map_->l_ld);
  ASSERT_TRUE(extent);
  EXPECT_EQ(image->loaded_bytes(), extent->size());

  // Each exported function is where its image address says. A name with several versions has one
  // of them as its default, hence a set of addresses.
  std::map<std::string, std::set<std::uintptr_t>> functions;
  for (Symbol symbol : image->dynamic_symbols()) {
    if (symbol.exported() && symbol.type == STT_FUNC) {
      functions[std::string(symbol.name)].insert(map_->l_addr + symbol.value);
    }
  }
  EXPECT_GT(functions.size(), 50u);
  std::size_t found_here = 0;
  for (const auto& [name, addresses] : functions) {
    EXPECT_TRUE(image->has_export(name));
    auto address = reinterpret_cast<std::uintptr_t>(dlsym(handle_, name.c_str()));
    found_here += addresses.count(address);
  }
  // dlsym prefers the interceptors of a sanitizer, and does not see every old version.
  EXPECT_GT(found_here, functions.size() * 8 / 10);
}
INSTANTIATE_TEST_SUITE_P(, SystemLibrary,
                         testing::Values("libc.so.6", "libm.so.6", "libstdc++.so.6",
                                         "libgcc_s.so.1"),
                         [](const auto& test) { return test_name(test.param); });

// --- refusals ---------------------------------------------------------------------------------------

TEST(refusal, empty_file) {
  Error error = error_of({});
  EXPECT_EQ(error.code, EINVAL);
  EXPECT_STREQ(error.detail, "the file is empty");
}

TEST(refusal, not_elf) {
  for (std::string_view text : {"#!/bin/sh\n", "x",
                                "\x7f"
                                "ELG"}) {
    Error error = error_of(std::as_bytes(std::span(text)));
    EXPECT_EQ(error.code, ENOEXEC);
    EXPECT_STREQ(error.detail, "Invalid ELF header magic: != \\x7fELF") << text;
  }
}

TEST(refusal, cut_off) {
  auto bytes = contents(sample_path("plain.so"));
  Error error = error_of(std::span(bytes).first(bytes.size() - 1));
  EXPECT_EQ(error.code, ENOEXEC);
  EXPECT_STREQ(error.detail, "Invalid ELF section header overflow");
  EXPECT_STREQ(error_of(std::span(bytes).first(bytes.size() / 2)).detail,
               "Invalid ELF section header overflow");
  EXPECT_STREQ(error_of(std::span(bytes).first(40)).detail, "Invalid ELF header len 40");
}

TEST(refusal, cut_off_without_section_headers) {
  auto bytes = without_section_headers(contents(sample_path("plain.so")));
  Error error = error_of(std::span(bytes).first(bytes.size() / 2));
  EXPECT_EQ(error.code, ENOEXEC);
  EXPECT_EQ(std::string(error.detail).substr(0, 36), "Invalid ELF program segment overflow");
}

TEST(refusal, wrong_kind_of_file) {
  EXPECT_STREQ(error_of_file("object.o").detail,
               "Invalid ELF header type: 1 != 3; link the object file with -shared");
  EXPECT_STREQ(error_of_file("program_fixed").detail,
               "Invalid ELF header type: 2 != 3; it is a program, not a shared object");
  EXPECT_STREQ(error_of_file("program").detail,
               "Invalid ELF header type: it is a program, not a shared object");
  EXPECT_EQ(error_of_file("program_static").code, ENOEXEC);
  EXPECT_STREQ(error_of_file("nodlopen.so").detail,
               "the file forbids dlopen; link it without -z nodlopen");
}

TEST(refusal, programs_may_be_examined) {
  EXPECT_EQ(Sample(sample_path("program"), Purpose::examine)->type(), ET_DYN);
  EXPECT_EQ(Sample(sample_path("program_fixed"), Purpose::examine)->type(), ET_EXEC);
  Sample fixed(sample_path("program_static"), Purpose::examine);
  EXPECT_TRUE(fixed->dynamic_symbols().empty());
  EXPECT_FALSE(fixed->static_symbols().empty());
  EXPECT_EQ(error_of_file("object.o", Purpose::examine).code, ENOEXEC);
}

// One field of the header changed.
template <class F>
std::string refusal_after(F&& change) {
  auto bytes = contents(sample_path("plain.so"));
  Elf64_Ehdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  change(header);
  std::memcpy(bytes.data(), &header, sizeof header);
  Error error = error_of(bytes);
  EXPECT_EQ(error.code, ENOEXEC);
  return error.detail;
}

TEST(refusal, header_fields) {
  using Header = Elf64_Ehdr;
  EXPECT_EQ(refusal_after([](Header& h) { h.e_ident[EI_CLASS] = ELFCLASS32; }),
            "Invalid ELF header class: 1 != 2; it is not a 64-bit file");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_ident[EI_DATA] = ELFDATA2MSB; }),
            "Invalid ELF header data encoding: 2 != 1");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_machine = EM_AARCH64; }),
            "Invalid architecture in ELF header: 183 != 62");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_type = ET_CORE; }),
            "Invalid ELF header type: 4 != 3");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_shentsize = 32; }),
            "Invalid ELF section header size");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_phentsize = 32; }),
            "Invalid ELF program header size");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_shoff = ~std::uint64_t{0} - 8; }),
            "Invalid ELF section header overflow");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_shnum = 0xfeff; }),
            "Invalid ELF section header overflow");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_phoff = ~std::uint64_t{0} - 8; }),
            "Invalid ELF program header overflow");
  EXPECT_EQ(refusal_after([](Header& h) { h.e_phnum = 0; }),
            "Invalid ELF file: it has no loadable segments");
}

// One program header changed.
template <class F>
std::string refusal_after_segment(std::uint32_t type, std::size_t which, F&& change) {
  auto bytes = contents(sample_path("plain.so"));
  auto image = Image::parse(bytes);
  for (std::size_t i = 0; i < image->segments().size(); ++i) {
    Elf64_Phdr segment = image->segments()[i];
    if (segment.p_type != type || which-- != 0) continue;
    change(segment);
    std::memcpy(&bytes[sizeof(Elf64_Ehdr) + i * sizeof segment], &segment, sizeof segment);
    break;
  }
  Error error = error_of(bytes);
  EXPECT_EQ(error.code, ENOEXEC);
  std::string text = error.detail;
  return text.substr(0, text.find(" (segment"));
}

TEST(refusal, segments) {
  using Segment = Elf64_Phdr;
  EXPECT_EQ(refusal_after_segment(PT_LOAD, 1, [](Segment& s) { s.p_vaddr = 0; }),
            "Invalid ELF program segment order");
  EXPECT_EQ(refusal_after_segment(PT_LOAD, 1, [](Segment& s) { s.p_memsz = s.p_filesz - 1; }),
            "Invalid ELF program segment size");
  EXPECT_EQ(refusal_after_segment(PT_LOAD, 3, [](Segment& s) { s.p_memsz = 1ull << 47; }),
            "Invalid ELF program segment size");
  EXPECT_EQ(refusal_after_segment(PT_LOAD, 0, [](Segment& s) { s.p_offset = ~0ull; }),
            "Invalid ELF program segment overflow");
  EXPECT_EQ(refusal_after_segment(PT_DYNAMIC, 0, [](Segment& s) { s.p_vaddr = 1ull << 40; }),
            "Invalid ELF dynamic section overflow");
  EXPECT_EQ(refusal_after_segment(PT_DYNAMIC, 0, [](Segment& s) { s.p_filesz = 32; }),
            "Invalid ELF dynamic section: it does not end");
  EXPECT_EQ(refusal_after_segment(PT_DYNAMIC, 0, [](Segment& s) { s.p_type = PT_NULL; }),
            "Invalid ELF file: it has no dynamic section");
}

// The dynamic loader would read the name wherever that is.
TEST(refusal, symbol_name_outside_of_the_strings) {
  auto bytes = contents(sample_path("plain.so"));
  Elf64_Ehdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::uint64_t table = 0;
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    Elf64_Shdr section;
    std::memcpy(&section, &bytes[header.e_shoff + i * sizeof section], sizeof section);
    if (section.sh_type == SHT_DYNSYM) table = section.sh_offset;
  }
  ASSERT_NE(table, 0u);
  const std::uint32_t far_away = 0x7fffffff;
  const std::size_t first = table + sizeof(Elf64_Sym);
  std::memcpy(&bytes[first + offsetof(Elf64_Sym, st_name)], &far_away, sizeof far_away);
  EXPECT_STREQ(error_of(bytes).detail, "Invalid ELF symbol name (symbol 1)");
}

TEST(refusal, names_the_step) {
  auto error = error_of({});
  EXPECT_STREQ(error.site, "check_header");
}

}  // namespace
}  // namespace molt::elf
