// What is refused before the dynamic loader sees it. Where it would have taken the process with it,
// the test shows that too: a child opens the same bytes by dlopen() and does not survive.

#include "elf/loadable.hpp"

#include "samples.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace molt::elf {
namespace {

Status loadable(std::span<const std::byte> bytes) {
  auto image = Image::parse(bytes);
  if (!image) return pass(image);
  return check_loadable(*image);
}

// What a child of ours came to that loaded and unloaded the file without asking anybody.
bool survives_dlopen(std::span<const std::byte> bytes) {
  const int file = memfd_create("damaged", MFD_CLOEXEC);
  EXPECT_EQ(write(file, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  const pid_t child = fork();
  if (child == 0) {
    // What it says when it dies is expected.
    dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
    const rlimit none{};
    setrlimit(RLIMIT_CORE, &none);
    const rlimit seconds{2, 2};  // for what never ends
    setrlimit(RLIMIT_CPU, &seconds);
    if (void* handle = dlopen(path.c_str(), RTLD_NOW)) {
      (void)dlsym(handle, "touch");
      (void)dlsym(handle, "there is no such symbol");
      dlclose(handle);
    }
    _exit(0);
  }
  close(file);
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status == 0;
}

// A file to be damaged.
class Patient {
 public:
  explicit Patient(const std::string& file) : bytes_(contents(sample_path(file))) {}

  std::span<const std::byte> bytes() const { return bytes_; }

  template <class T>
  T& at(std::uint64_t offset) {
    return *reinterpret_cast<T*>(bytes_.data() + offset);
  }
  template <class T>
  T& at_address(std::uint64_t address) {
    for (int i = 0; i < header().e_phnum; ++i) {
      const auto& s = at<Elf64_Phdr>(header().e_phoff + i * sizeof(Elf64_Phdr));
      if (s.p_type == PT_LOAD && address >= s.p_vaddr && address - s.p_vaddr < s.p_filesz) {
        return at<T>(s.p_offset + address - s.p_vaddr);
      }
    }
    throw std::runtime_error("no such address");
  }
  Elf64_Ehdr& header() { return at<Elf64_Ehdr>(0); }
  // The number-th of its type.
  Elf64_Phdr& segment(std::uint32_t type, int number = 0) {
    for (int i = 0; i < header().e_phnum; ++i) {
      auto& s = at<Elf64_Phdr>(header().e_phoff + i * sizeof(Elf64_Phdr));
      if (s.p_type == type && number-- == 0) return s;
    }
    throw std::runtime_error("no such segment");
  }
  Elf64_Phdr& text() {
    for (int i = 0;; ++i) {
      if (auto& s = segment(PT_LOAD, i); (s.p_flags & PF_X) != 0) return s;
    }
  }
  Elf64_Dyn& dynamic(std::int64_t tag) {
    for (auto* e = &at<Elf64_Dyn>(segment(PT_DYNAMIC).p_offset); e->d_tag != DT_NULL; ++e) {
      if (e->d_tag == tag) return *e;
    }
    throw std::runtime_error("no such entry");
  }
  template <class T>
  T& table(std::int64_t tag, std::size_t index = 0) {
    return at_address<T>(dynamic(tag).d_un.d_ptr + index * sizeof(T));
  }
  // Makes the loader skip it.
  void remove(std::int64_t tag) { dynamic(tag).d_tag = 0x6ffffe00; }
  // The relocation that fills this place.
  Elf64_Rela& relocation_of(std::uint64_t address) {
    for (std::size_t i = 0; i < dynamic(DT_RELASZ).d_un.d_val / sizeof(Elf64_Rela); ++i) {
      if (table<Elf64_Rela>(DT_RELA, i).r_offset == address) return table<Elf64_Rela>(DT_RELA, i);
    }
    throw std::runtime_error("no such relocation");
  }

 private:
  std::vector<std::byte> bytes_;
};

struct Damage {
  const char* name;
  const char* file;
  bool kills;  // the process that hands it to glibc's loader
  std::function<void(Patient&)> inflict;
};

constexpr bool kills = true;

const Damage all_damages[] = {
    {"segment_unreadable", "module_cxx.so", kills,
     [](Patient& p) { p.segment(PT_LOAD).p_flags = 0; }},
    {"segment_alignment_odd", "module_cxx.so", false,
     [](Patient& p) { p.text().p_align = 0x3000; }},
    {"segment_alignment_none", "module_cxx.so", false, [](Patient& p) { p.text().p_align = 0; }},
    {"segment_of_other_bytes", "module_cxx.so", false,
     [](Patient& p) { p.segment(PT_LOAD, 2).p_offset = 0; }},
    {"text_not_executable", "module_cxx.so", kills, [](Patient& p) { p.text().p_flags = PF_R; }},
    {"data_read_only", "module_cxx.so", kills,
     [](Patient& p) { p.segment(PT_LOAD, 3).p_flags = PF_R; }},
    {"dynamic_twice", "module_cxx.so", false,
     [](Patient& p) { p.segment(PT_NOTE) = p.segment(PT_DYNAMIC); }},
    {"dynamic_too_large", "module_cxx.so", false,
     [](Patient& p) { p.segment(PT_DYNAMIC).p_memsz = 1 << 20; }},
    {"relro_elsewhere", "module_cxx.so", false,
     [](Patient& p) { p.segment(PT_GNU_RELRO).p_vaddr += 1 << 24; }},
    {"relro_over_text", "module_cxx.so", false,
     [](Patient& p) { p.segment(PT_GNU_RELRO).p_vaddr = p.text().p_vaddr; }},
    {"note_elsewhere", "module_cxx.so", kills,
     [](Patient& p) {
       p.segment(PT_NOTE).p_align = 8;
       p.segment(PT_NOTE).p_vaddr += std::uint64_t{1} << 40;
     }},
    {"thread_local_image_elsewhere", "tls_static.so", kills,
     [](Patient& p) {
       p.segment(PT_TLS).p_vaddr += std::uint64_t{1} << 40;
       p.segment(PT_TLS).p_filesz = 8;
     }},
    {"thread_local_alignment_none", "tls_static.so", kills,
     [](Patient& p) { p.segment(PT_TLS).p_align = 0; }},
    {"thread_local_image_too_large", "tls_static.so", kills,
     [](Patient& p) { p.segment(PT_TLS).p_filesz = 1 << 16; }},
    {"no_symbol_table", "module_cxx.so", kills, [](Patient& p) { p.remove(DT_SYMTAB); }},
    {"no_relocation_size", "module_cxx.so", kills, [](Patient& p) { p.remove(DT_RELASZ); }},
    {"no_relocation_entry_size", "module_cxx.so", kills, [](Patient& p) { p.remove(DT_RELAENT); }},
    {"relocation_entry_size", "module_cxx.so", kills,
     [](Patient& p) { p.dynamic(DT_RELAENT).d_un.d_val = 25; }},
    {"plt_of_another_kind", "regex.so", kills,
     [](Patient& p) { p.dynamic(DT_PLTREL).d_un.d_val = DT_REL; }},
    {"too_many_relative", "module_cxx.so", kills,
     [](Patient& p) {
       p.dynamic(DT_RELACOUNT).d_un.d_val = p.dynamic(DT_RELASZ).d_un.d_val / sizeof(Elf64_Rela);
     }},
    {"no_versions_of_symbols", "regex.so", kills, [](Patient& p) { p.remove(DT_VERSYM); }},
    {"no_needed_versions", "regex.so", kills, [](Patient& p) { p.remove(DT_VERNEED); }},
    {"version_of_another_library", "regex.so", kills,
     [](Patient& p) { ++p.table<Elf64_Verneed>(DT_VERNEED).vn_file; }},
    {"version_index", "regex.so", false,
     [](Patient& p) { p.table<std::uint16_t>(DT_VERSYM, 2) = 0x7fff; }},
    {"hash_filter_odd", "module_cxx.so", kills,
     [](Patient& p) { p.table<std::uint32_t>(DT_GNU_HASH, 2) = 3; }},
    {"hash_filter_none", "module_cxx.so", false,
     [](Patient& p) { p.table<std::uint32_t>(DT_GNU_HASH, 2) = 0; }},
    {"hash_chain_circle", "sysv_hash.so", kills,
     [](Patient& p) {
       // Every bucket begins at symbol 1, and symbol 1 comes after itself.
       const auto buckets = p.table<std::uint32_t>(DT_HASH, 0);
       for (std::uint32_t i = 0; i < buckets; ++i) p.table<std::uint32_t>(DT_HASH, 2 + i) = 1;
       p.table<std::uint32_t>(DT_HASH, 2 + buckets + 1) = 1;
     }},
    {"relocation_elsewhere", "module_cxx.so", kills,
     [](Patient& p) { p.table<Elf64_Rela>(DT_RELA).r_offset += std::uint64_t{1} << 40; }},
    {"relocation_of_text", "module_cxx.so", kills,
     [](Patient& p) { p.table<Elf64_Rela>(DT_RELA).r_offset = p.text().p_vaddr; }},
    {"relocation_symbol", "regex.so", kills,
     [](Patient& p) {
       p.table<Elf64_Rela>(DT_JMPREL).r_info =
           ELF64_R_INFO(std::uint64_t{0x7fffff}, R_X86_64_JUMP_SLOT);
     }},
    {"constructor_is_no_code", "module_cxx.so", kills,
     [](Patient& p) { p.relocation_of(p.dynamic(DT_INIT_ARRAY).d_un.d_ptr).r_addend = 8; }},
    {"constructor_without_relocation", "module_cxx.so", kills,
     [](Patient& p) { p.dynamic(DT_INIT_ARRAY).d_un.d_ptr += 1; }},
    {"init_is_no_code", "module_cxx.so", kills,
     [](Patient& p) { p.dynamic(DT_INIT).d_un.d_ptr = 16; }},
    {"table_of_another_section", "module_cxx.so", false,
     [](Patient& p) { p.dynamic(DT_SYMTAB).d_un.d_ptr += sizeof(Elf64_Sym); }},
};

class Loadable : public testing::TestWithParam<Damage> {};

TEST_P(Loadable, refuses) {
  const Damage& damage = GetParam();
  Patient patient(damage.file);
  EXPECT_TRUE(survives_dlopen(patient.bytes()));
  ASSERT_TRUE(loadable(patient.bytes()));
  damage.inflict(patient);
  Status status = loadable(patient.bytes());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ENOEXEC);
  EXPECT_STRNE(status.error().detail, "");
#if defined(__SANITIZE_THREAD__)
  // What lies behind the tables, where a wild index leads to, is another thing there.
  constexpr bool same_memory = false;
#else
  constexpr bool same_memory = true;
#endif
  if (damage.kills && same_memory) {
    EXPECT_FALSE(survives_dlopen(patient.bytes())) << "then why refuse it";
  }
}

// For gtest's messages.
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

INSTANTIATE_TEST_SUITE_P(damages, Loadable, testing::ValuesIn(all_damages),
                         [](const auto& test) { return std::string(test.param.name); });

// Whatever linkers make is taken: the samples, and the libraries of this machine.
TEST(loadable, takes_what_linkers_make) {
  std::size_t taken = 0;
  constexpr std::uintmax_t large = 256 << 10;  // takes its time in a sanitizer build
  for (const char* folder : {SAMPLES, "/lib/x86_64-linux-gnu"}) {
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      if (!file.is_regular_file() || file.file_size() > large ||
          file.path().filename().string().find(".so") == std::string::npos) {
        continue;
      }
      const auto bytes = contents(file.path());
      auto image = Image::parse(bytes);
      if (!image) continue;  // linker scripts; programs; image_test.cpp has the others
      Status status = check_loadable(*image);
      EXPECT_TRUE(status) << file.path() << ": " << status.error().detail;
      ++taken;
    }
  }
  EXPECT_GT(taken, 30u);
}

}  // namespace
}  // namespace molt::elf
