// Files damaged at random, and loaded. What is refused leaves nothing; what is loaded unloads again;
// and whatever a parser can know to be wrong never reaches the dynamic loader, which would take the
// process with it.
//
// A child loads one damaged copy after the other and says in shared memory which. When it dies the
// test notes for what, and another child goes on behind it.
#include <elf.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <atomic>
#include <random>

#include "fixture.hpp"

namespace {

struct Part {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

struct Byte {
  std::uint64_t offset;
  unsigned char flip;
};
using Wound = std::vector<Byte>;

std::string content_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

template <class T>
T read_at(const std::string& bytes, std::uint64_t offset) {
  T value;
  if (offset + sizeof value > bytes.size()) throw std::runtime_error("the module is too short");
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// Where the sections of these types are.
std::vector<Part> sections(const std::string& bytes, const std::set<std::uint32_t>& types) {
  auto header = read_at<Elf64_Ehdr>(bytes, 0);
  std::vector<Part> parts;
  for (unsigned i = 1; i < header.e_shnum; ++i) {
    auto s = read_at<Elf64_Shdr>(bytes, header.e_shoff + i * sizeof(Elf64_Shdr));
    const bool loaded = (s.sh_flags & SHF_ALLOC) != 0;
    if (loaded && types.count(s.sh_type)) parts.push_back({s.sh_offset, s.sh_size});
  }
  return parts;
}

class Damaged : public ModuleTest {
 protected:
  struct Shared {
    std::atomic<std::size_t> next;
    std::atomic<std::size_t> refused, loaded;
  };

  Damaged() {
    void* memory =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap");
    shared_ = new (memory) Shared{};
    // The copies of children that died go with the folder.
    setenv("MOLT_DIRECTORY", folder_.path().c_str(), 1);
  }
  ~Damaged() override {
    unsetenv("MOLT_DIRECTORY");
    munmap(shared_, sizeof(Shared));
  }

  // Loads every wounded copy; the numbers of those that a child died of.
  std::vector<std::size_t> die_of(const std::string& healthy, const std::vector<Wound>& wounds) {
    std::vector<std::size_t> deaths;
    while (shared_->next < wounds.size()) {
      const pid_t child = fork();
      if (child == 0) {
        run(healthy, wounds);
        _exit(0);
      }
      int status = -1;
      EXPECT_EQ(waitpid(child, &status, 0), child);
      if (status != 0) deaths.push_back(shared_->next++);
    }
    return deaths;
  }

  static std::string describe(const Wound& wound) {
    std::ostringstream text;
    for (const Byte& b : wound) text << std::hex << " 0x" << b.offset << "^0x" << int{b.flip};
    return text.str();
  }

  // None of them kills; some are refused. The last can be loaded, being whole.
  void none_kills(const std::string& file, std::vector<Wound> wounds) {
    wounds.emplace_back();
    const std::string healthy = content_of(module_file(file));
    for (std::size_t i : die_of(healthy, wounds)) ADD_FAILURE() << file << describe(wounds[i]);
    EXPECT_EQ(shared_->refused + shared_->loaded, wounds.size());
    EXPECT_GT(shared_->refused, wounds.size() / 20);
    EXPECT_GE(shared_->loaded, 1u);
    std::cout << wounds.size() << " copies, " << shared_->refused << " refused\n";
  }

  Folder folder_;
  Shared* shared_;

 private:
  void run(const std::string& healthy, const std::vector<Wound>& wounds) {
    const rlimit none{};
    setrlimit(RLIMIT_CORE, &none);
    // What a dying child has to say is expected.
    dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) ::signal(signal, SIG_DFL);
    for (; shared_->next < wounds.size(); ++shared_->next) {
      std::string bytes = healthy;
      for (const Byte& b : wounds[shared_->next]) {
        bytes[b.offset] = static_cast<char>(static_cast<unsigned char>(bytes[b.offset]) ^ b.flip);
      }
      const int file = memfd_create("damaged", MFD_CLOEXEC);
      if (write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) _exit(2);
      alarm(10);  // for what never ends
      const int result = molt_load_fd(file, nullptr, 0, -1);
      close(file);
      if (result < 0 && *molt_last_error() == '\0') _exit(3);
      if (result == 0 && molt_unload("probe", 0, -1) != 0 && molt_unload("bare", 0, -1) != 0) {
        _exit(4);
      }
      alarm(0);
      ++(result == 0 ? shared_->loaded : shared_->refused);
    }
  }
};

// Every byte of these parts with one bit flipped, with another, and with all of them.
std::vector<Wound> every_byte(const std::vector<Part>& parts) {
  std::mt19937_64 random(3);
  std::vector<Wound> wounds;
  for (const Part& part : parts) {
    for (std::uint64_t at = part.offset; at < part.offset + part.size; ++at) {
      for (int bit : {static_cast<int>(random() % 8), static_cast<int>(random() % 8)}) {
        wounds.push_back({{at, static_cast<unsigned char>(1 << bit)}});
      }
      wounds.push_back({{at, 0xff}});
    }
  }
  return wounds;
}

// Several bytes, anywhere in these parts.
std::vector<Wound> several_bytes(const std::vector<Part>& parts, std::size_t count) {
  std::mt19937_64 random(5);
  std::vector<Wound> wounds(count);
  for (Wound& wound : wounds) {
    for (std::size_t i = 0; i < 2 + random() % 6; ++i) {
      const Part& part = parts[random() % parts.size()];
      wound.push_back(
          {part.offset + random() % part.size, static_cast<unsigned char>(1 + random() % 255)});
    }
  }
  return wounds;
}

std::vector<Part> headers(const std::string& bytes) {
  auto header = read_at<Elf64_Ehdr>(bytes, 0);
  return {{0, sizeof header}, {header.e_phoff, header.e_phnum * sizeof(Elf64_Phdr)}};
}

// What names places of code is left out: which of all functions is meant only the linker knew.
std::vector<Part> dynamic_table(const std::string& bytes) {
  std::vector<Part> parts;
  for (const Part& table : sections(bytes, {SHT_DYNAMIC})) {
    for (std::uint64_t at = table.offset; at < table.offset + table.size; at += sizeof(Elf64_Dyn)) {
      const auto tag = read_at<Elf64_Dyn>(bytes, at).d_tag;
      const bool names_code = tag == DT_INIT || tag == DT_FINI;
      parts.push_back({at, names_code ? sizeof(Elf64_Sxword) : sizeof(Elf64_Dyn)});
    }
  }
  return parts;
}

std::vector<Part> lookup_tables(const std::string& bytes) {
  return sections(bytes, {SHT_HASH, SHT_GNU_HASH, SHT_GNU_versym, SHT_GNU_verneed, SHT_GNU_verdef,
                          SHT_NOTE, SHT_STRTAB});
}

TEST_F(Damaged, Headers) {
  none_kills("bare", every_byte(headers(content_of(module_file("bare")))));
}

TEST_F(Damaged, HeadersSeveralBytes) {
  none_kills("probe", several_bytes(headers(content_of(module_file("probe"))), 1000));
}

TEST_F(Damaged, DynamicTable) {
  none_kills("probe", every_byte(dynamic_table(content_of(module_file("probe")))));
}

TEST_F(Damaged, LookupTables) {
  none_kills("bare", every_byte(lookup_tables(content_of(module_file("bare")))));
}

TEST_F(Damaged, LookupTablesSeveralBytes) {
  none_kills("probe", several_bytes(lookup_tables(content_of(module_file("probe"))), 500));
}

// Code, data and the addresses in them may be damaged such that the module itself goes wrong: its
// constructors run, and nobody can tell. The negative control: the test sees such a death.
TEST_F(Damaged, CodeKills) {
  const std::string healthy = content_of(module_file("probe"));
  std::vector<Wound> wounds;
  for (const Part& text : sections(healthy, {SHT_PROGBITS})) {
    Wound wound;
    for (std::uint64_t at = text.offset; at < text.offset + text.size; ++at) {
      wound.push_back({at, static_cast<unsigned char>(healthy[at] ^ 0xcc)});  // int3 everywhere
    }
    wounds.push_back(wound);
  }
  EXPECT_FALSE(die_of(healthy, wounds).empty());
}

}  // namespace
