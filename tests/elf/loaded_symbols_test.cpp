// Names in loaded objects, compared with what the objects themselves say, whatever became of their
// files. Built twice: position-independent and at a fixed address.

#include "elf/loaded_symbols.hpp"

#include "folder.hpp"
#include "samples.hpp"

#include <dlfcn.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace molt::elf {
namespace {

[[gnu::noinline, gnu::used]] int a_static_function(int x) { return x + 40; }
[[gnu::used]] int a_static_variable = 2;

std::uint64_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }
template <class R, class... A>
std::uint64_t address(R (*f)(A...)) {
  return reinterpret_cast<std::uintptr_t>(f);
}

// symbols.c and symbols_too.c, loaded from a copy in a folder.
class Loaded {
 public:
  explicit Loaded(const Folder& folder, const std::string& path) : path_(folder.path(path)) {
    handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) {
      ADD_FAILURE() << dlerror();
      std::abort();
    }
    address_of_ = reinterpret_cast<void* (*)(int)>(dlsym(handle_, "address_of"));
  }
  ~Loaded() { dlclose(handle_); }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

  std::uint64_t once() const { return address(address_of_(0)); }
  std::uint64_t twice(int position) const { return address(address_of_(position)); }
  std::uint64_t counter() const { return address(address_of_(3)); }
  std::uint64_t shared() const { return address(address_of_(4)); }
  std::uint64_t use() const { return address(dlsym(handle_, "use")); }
  std::uint64_t address_of() const { return address(address_of_); }

  Result<Symbols> symbols(const SymbolOptions& options = {}) const {
    auto object = find_loaded(path_);
    EXPECT_TRUE(object) << object.error().detail;
    return read_symbols(*object, options);
  }

 private:
  std::string path_;
  void* handle_;
  void* (*address_of_)(int);
};

void expect_all(const Loaded& loaded, const Symbols& symbols) {
  EXPECT_TRUE(symbols.complete());
  EXPECT_EQ(symbols.shortcomings().find("another build"), std::string::npos);
  EXPECT_EQ(symbols.find("once")->address, loaded.once());
  EXPECT_EQ(symbols.find("once", 1)->address, loaded.once());
  ASSERT_TRUE(symbols.find("twice", 1) && symbols.find("twice", 2));
  EXPECT_EQ(symbols.find("twice", 1)->address, loaded.twice(1));
  EXPECT_EQ(symbols.find("twice", 2)->address, loaded.twice(2));
  EXPECT_NE(loaded.twice(1), loaded.twice(2));
  EXPECT_FALSE(symbols.find("twice"));
  EXPECT_EQ(symbols.find("counter")->address, loaded.counter());
  EXPECT_EQ(symbols.find("shared")->address, loaded.shared());
  EXPECT_EQ(symbols.find("use")->address, loaded.use());
  EXPECT_EQ(symbols.find("use")->section, ".text");
  EXPECT_EQ(symbols.at(loaded.twice(2) + 2)->symbol.name, "twice");
  EXPECT_EQ(symbols.at(loaded.twice(2) + 2)->symbol.position, 2u);
}

// Only what other objects may bind to.
void expect_dynamic(const Loaded& loaded, const Symbols& symbols) {
  EXPECT_EQ(symbols.source(), SymbolSource::dynsym);
  EXPECT_EQ(symbols.find("use")->address, loaded.use());
  EXPECT_EQ(symbols.find("shared")->address, loaded.shared());
  EXPECT_EQ(symbols.find("address_of")->address, loaded.address_of());
  EXPECT_TRUE(symbols.find("chosen")->is_indirect());
  EXPECT_EQ(symbols.find("versioned")->version, "MOLT_2");
  EXPECT_NE(symbols.find("versioned")->address, symbols.find("versioned@MOLT_1")->address);
  EXPECT_FALSE(symbols.find("once"));
  EXPECT_EQ(symbols.find("once").error().code, EINVAL);
  EXPECT_EQ(symbols.find("use", 1).error().code, ENODATA);
  EXPECT_EQ(symbols.at(loaded.use() + 1)->symbol.name, "use");
}

// May /proc/self/map_files be used? It leads to files that no path leads to any more.
bool map_files_allowed() {
  auto mapping = mapping_at(reinterpret_cast<const void*>(&map_files_allowed));
  char path[80];
  std::snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", mapping->range.begin,
                mapping->range.end);
  std::ifstream file(path);
  return static_cast<bool>(file);
}

// The thread without privileges, as long as it lives.
class Unprivileged {
 public:
  Unprivileged() {
    if (syscall(SYS_capget, &header_, before_) != 0) ADD_FAILURE() << std::strerror(errno);
    __user_cap_data_struct none[2] = {before_[0], before_[1]};
    none[0].effective = none[1].effective = 0;
    if (syscall(SYS_capset, &header_, none) != 0) ADD_FAILURE() << std::strerror(errno);
  }
  ~Unprivileged() {
    if (syscall(SYS_capset, &header_, before_) != 0) ADD_FAILURE() << std::strerror(errno);
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;

 private:
  __user_cap_header_struct header_ = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct before_[2] = {};
};

class LoadedSymbols : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    NEEDS_SAMPLE(GetParam());
    std::filesystem::copy_file(sample_path(GetParam()), folder_.path("sample.so"));
  }
  // The sample stripped, and the rest of it in a file of that name.
  void split(const std::string& debug_file) {
    folder_.run(
        "objcopy --only-keep-debug sample.so whole; strip sample.so; "
        "mkdir -p \"$(dirname $1)\"; mv whole $1",
        debug_file);
  }
  std::string debug_path() const {
    const std::string id = Sample(sample_path(GetParam()))->build_id();
    return ".build-id/" + id.substr(0, 2) + "/" + id.substr(2) + ".debug";
  }
  Folder folder_;
};

TEST_P(LoadedSymbols, of_the_file_itself) {
  Loaded loaded(folder_, "sample.so");
  auto symbols = loaded.symbols();
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::symtab);
  expect_all(loaded, *symbols);
}

TEST_P(LoadedSymbols, of_a_debug_file_by_build_id) {
  split("debug/" + debug_path());
  Loaded loaded(folder_, "sample.so");
  const std::string directory = folder_.path("debug");
  for (const SymbolOptions& options :
       {SymbolOptions{"/nowhere", directory.c_str()}, SymbolOptions{directory.c_str(), nullptr}}) {
    auto symbols = loaded.symbols(options);
    ASSERT_TRUE(symbols);
    EXPECT_EQ(symbols->source(), SymbolSource::debug_file);
    expect_all(loaded, *symbols);
  }
  expect_dynamic(loaded, *loaded.symbols());
}

TEST_P(LoadedSymbols, of_a_linked_debug_file) {
  for (const std::string place : {"", ".debug/"}) {
    std::filesystem::copy_file(sample_path(GetParam()), folder_.path("sample.so"),
                               std::filesystem::copy_options::overwrite_existing);
    split(place + "the.debug");
    folder_.run("objcopy --add-gnu-debuglink=$1 sample.so", place + "the.debug");
    Loaded loaded(folder_, "sample.so");
    auto symbols = loaded.symbols();
    ASSERT_TRUE(symbols);
    EXPECT_EQ(symbols->source(), SymbolSource::debug_file) << symbols->shortcomings();
    expect_all(loaded, *symbols);
    std::filesystem::remove(folder_.path(place + "the.debug"));
  }
}

TEST_P(LoadedSymbols, of_a_linked_debug_file_in_the_tree_of_debug_files) {
  split("the.debug");
  folder_.run(
      "objcopy --add-gnu-debuglink=the.debug sample.so; mkdir -p \"root$(pwd -P)\"; "
      "mv the.debug \"root$(pwd -P)\"");
  Loaded loaded(folder_, "sample.so");
  const std::string directory = folder_.path("root");
  auto symbols = loaded.symbols({directory.c_str(), nullptr});
  ASSERT_TRUE(symbols);
  expect_all(loaded, *symbols);
}

// Negative control of S1: without the comparison of build-ids its addresses would be taken.
TEST_P(LoadedSymbols, a_debug_file_of_another_build_is_refused) {
  split("the.debug");
  folder_.run(
      "objcopy --add-gnu-debuglink=the.debug sample.so; "
      "objcopy --only-keep-debug $1 the.debug; mkdir -p $(dirname $2); cp the.debug $2",
      sample_path("symbols_moved.so"), debug_path());
  Loaded loaded(folder_, "sample.so");
  const std::string directory = folder_.path("");
  auto symbols = loaded.symbols({directory.c_str(), nullptr});
  ASSERT_TRUE(symbols);
  expect_dynamic(loaded, *symbols);
  EXPECT_NE(symbols->shortcomings().find("the.debug is of another build"), std::string::npos);
  EXPECT_NE(symbols->shortcomings().find(debug_path() + " is of another build"), std::string::npos);
}

TEST_P(LoadedSymbols, of_gnu_debugdata) {
  // As distributions make it: functions that are not in .dynsym.
  folder_.run(
      "nm -D sample.so --format=posix --defined-only | cut -d\" \" -f1 | sed s/@.*// | sort > dyn; "
      "nm sample.so --format=posix --defined-only | awk \"{if (\\$2 == \\\"T\\\" || \\$2 == "
      "\\\"t\\\") print \\$1}\" | sort > all; comm -13 dyn all > keep; "
      "objcopy --only-keep-debug sample.so whole; "
      "objcopy -S --remove-section .comment --keep-symbols=keep whole mini; xz mini; "
      "strip sample.so; objcopy --add-section .gnu_debugdata=mini.xz sample.so");
  Loaded loaded(folder_, "sample.so");
  auto symbols = loaded.symbols();
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::gnu_debugdata) << symbols->shortcomings();
  EXPECT_FALSE(symbols->complete());
  auto once = symbols->find("once");
  ASSERT_TRUE(once) << once.error().detail;
  EXPECT_EQ(once->address, loaded.once());
  EXPECT_EQ(once->source, SymbolSource::gnu_debugdata);
  EXPECT_EQ(symbols->find("use")->address, loaded.use());
  EXPECT_EQ(symbols->find("use")->source, SymbolSource::dynsym);
  EXPECT_EQ(symbols->find("shared")->address, loaded.shared());
  EXPECT_EQ(symbols->at(loaded.once() + 1)->symbol.name, "once");
  // Both are there, but nobody knows whether there were more.
  EXPECT_FALSE(symbols->find("twice"));
  EXPECT_EQ(symbols->find("twice", 1).error().code, ENODATA);
  EXPECT_FALSE(symbols->find("counter"));

  // A debug file knows more.
  const std::string whole = sample_path(GetParam());
  const std::string path = debug_path();
  folder_.run("mkdir -p $(dirname $2); objcopy --only-keep-debug $1 $2", whole, path);
  const std::string directory = folder_.path("");
  expect_all(loaded, *loaded.symbols({directory.c_str(), nullptr}));
}

// strip -x leaves a .symtab that looks whole.
TEST_P(LoadedSymbols, without_static_symbols_no_position_is_known) {
  folder_.run(
      "objcopy --only-keep-debug sample.so whole; strip -x sample.so; mkdir -p $(dirname $1)",
      debug_path());
  Loaded loaded(folder_, "sample.so");
  auto symbols = loaded.symbols();
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::symtab);
  EXPECT_EQ(symbols->shortcomings().find("stripped of static symbols; no debug file"), 0u);
  EXPECT_EQ(symbols->find("use")->address, loaded.use());
  EXPECT_EQ(symbols->find("use", 1).error().code, ENODATA);
  folder_.run("mv whole $1", debug_path());
  const std::string directory = folder_.path("");
  expect_all(loaded, *loaded.symbols({directory.c_str(), nullptr}));
}

TEST_P(LoadedSymbols, of_memory_only) {
  folder_.run("strip sample.so");
  Loaded loaded(folder_, "sample.so");
  expect_dynamic(loaded, *loaded.symbols());
  EXPECT_EQ(loaded.symbols()->find("use")->section, ".text");
}

// What a package upgrade does. Whatever may be read of the old file, the new one must not be believed.
TEST_P(LoadedSymbols, of_a_file_that_was_replaced) {
  Loaded loaded(folder_, "sample.so");
  folder_.run("cp $1 new; mv new sample.so", sample_path("symbols_moved.so"));
  if (map_files_allowed()) expect_all(loaded, *loaded.symbols());
  Unprivileged unprivileged;
  ASSERT_FALSE(map_files_allowed());
  auto symbols = loaded.symbols();
  ASSERT_TRUE(symbols);
  expect_dynamic(loaded, *symbols);
  EXPECT_NE(symbols->shortcomings().find("another since"), std::string::npos);
  // With the debug file of the old one all is known again, either way.
  const std::string whole = sample_path(GetParam());
  folder_.run("mkdir -p $(dirname $2); objcopy --only-keep-debug $1 $2", whole, debug_path());
  const std::string directory = folder_.path("");
  expect_all(loaded, *loaded.symbols({directory.c_str(), nullptr}));

  // And the new file would have told another story.
  auto moved = read_symbols(contents(folder_.path("sample.so")), "moved");
  ASSERT_TRUE(moved);
  const std::uint64_t bias = find_loaded(folder_.path("sample.so"))->bias;
  EXPECT_NE(moved->find("once")->address + bias, loaded.once());
}

TEST_P(LoadedSymbols, of_a_file_that_was_deleted) {
  Loaded loaded(folder_, "sample.so");
  std::filesystem::remove(folder_.path("sample.so"));
  if (map_files_allowed()) expect_all(loaded, *loaded.symbols());
  Unprivileged unprivileged;
  expect_dynamic(loaded, *loaded.symbols());
  // Something that never answers where the file was.
  folder_.run("mkfifo sample.so");
  EXPECT_TRUE(loaded.symbols());
}

// Neither a file nor a path of its own any more, and no headers of sections ever.
TEST_P(LoadedSymbols, of_a_file_without_sections) {
  folder_.run("strip sample.so");
  auto bytes = contents(folder_.path("sample.so"));
  std::memset(&bytes[offsetof(Elf64_Ehdr, e_shoff)], 0, sizeof(Elf64_Ehdr::e_shoff));
  bytes[offsetof(Elf64_Ehdr, e_shnum)] = std::byte{0};
  bytes[offsetof(Elf64_Ehdr, e_shstrndx)] = std::byte{0};
  std::ofstream(folder_.path("sample.so"), std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  Loaded loaded(folder_, "sample.so");
  expect_dynamic(loaded, *loaded.symbols());
}

INSTANTIATE_TEST_SUITE_P(samples, LoadedSymbols, testing::Values("symbols.so", "symbols_clang.so"),
                         [](const auto& test) { return test_name(test.param); });

TEST(loaded_symbols, without_build_id_the_inode_decides) {
  Folder folder;
  std::filesystem::copy_file(sample_path("symbols_no_id.so"), folder.path("sample.so"));
  Loaded loaded(folder, "sample.so");
  EXPECT_EQ(find_loaded(folder.path("sample.so"))->build_id, "");
  expect_all(loaded, *loaded.symbols());
  // Another file, although it has no build-id either.
  folder.run("cp $1 new; mv new sample.so", sample_path("symbols_no_id.so"));
  if (map_files_allowed()) expect_all(loaded, *loaded.symbols());
  {
    Unprivileged unprivileged;
    expect_dynamic(loaded, *loaded.symbols());
  }
  folder.run(
      "objcopy --only-keep-debug sample.so whole; strip -o stripped.so sample.so; "
      "objcopy --add-gnu-debuglink=whole stripped.so");
  Loaded stripped(folder, "stripped.so");
  EXPECT_FALSE(stripped.symbols()->complete());
}

TEST(loaded_symbols, of_a_prelinked_object) {
  Folder folder;
  folder.run(
      "cp $1 sample.so; strip sample.so; objcopy --only-keep-debug $2 low.debug; "
      "objcopy --only-keep-debug $1 high.debug; "
      "objcopy --add-gnu-debuglink=low.debug sample.so",
      sample_path("symbols_high.so"), sample_path("symbols_low.so"));
  Loaded loaded(folder, "sample.so");
  auto object = find_loaded(folder.path("sample.so"));
  ASSERT_TRUE(object);
  EXPECT_NE(object->extent.begin, object->bias);  // its addresses do not begin at 0
  auto symbols = loaded.symbols();
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::debug_file);
  expect_all(loaded, *symbols);
}

TEST(loaded_symbols, of_the_program) {
  auto object = find_loaded("");
  ASSERT_TRUE(object);
  EXPECT_TRUE(object->is_program);
  EXPECT_EQ(object->path, std::filesystem::read_symlink("/proc/self/exe").string());
  EXPECT_EQ(find_loaded(object->name())->extent.begin, object->extent.begin);
  EXPECT_EQ(find_loaded(object->path)->extent.begin, object->extent.begin);
  EXPECT_FALSE(object->build_id.empty());

  auto symbols = read_symbols(*object);
  ASSERT_TRUE(symbols);
  EXPECT_EQ(symbols->source(), SymbolSource::symtab);
  auto function = symbols->find("_ZN4molt3elf12_GLOBAL__N_117a_static_functionEi");
  ASSERT_TRUE(function) << function.error().detail;
  EXPECT_EQ(function->address, address(&a_static_function));
  EXPECT_EQ(symbols->find("_ZN4molt3elf12_GLOBAL__N_117a_static_variableE")->address,
            address(&a_static_variable));
  EXPECT_EQ(symbols->at(address(&a_static_function) + 1)->symbol.name, function->name);
}

TEST(loaded_symbols, of_the_c_library) {
  auto object = find_loaded("libc.so.6");
  ASSERT_TRUE(object);
  auto symbols = read_symbols(*object);
  ASSERT_TRUE(symbols);
  for (const char* name : {"strtol", "qsort", "pthread_create", "fopen", "malloc_usable_size"}) {
    // The program may define a name that a sanitizer replaces.
    void* expected = dlsym(dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), name);
    auto found = symbols->find(name);
    ASSERT_TRUE(found) << found.error().detail;
    EXPECT_EQ(found->address, address(expected)) << name;
  }
  EXPECT_TRUE(symbols->find("memcpy")->is_indirect());
  // Old versions of names.
  void* old = dlvsym(RTLD_DEFAULT, "pthread_cond_signal", "GLIBC_2.2.5");
  auto found = symbols->find("pthread_cond_signal@GLIBC_2.2.5");
  ASSERT_TRUE(found);
  if (symbols->at(address(old))) {
    EXPECT_EQ(found->address, address(old));
  }
}

TEST(loaded_symbols, of_the_kernels_object) {
  auto object = find_loaded("linux-vdso.so.1");
  ASSERT_TRUE(object) << object.error().detail;
  auto symbols = read_symbols(*object);
  ASSERT_TRUE(symbols) << symbols.error().detail;
  auto found = symbols->find("__vdso_clock_gettime");
  ASSERT_TRUE(found) << found.error().detail;
  EXPECT_TRUE(object->extent.contains(found->address));
}

TEST(loaded_symbols, names_of_objects) {
  Folder folder;
  std::filesystem::create_directory(folder.path("a"));
  std::filesystem::create_directory(folder.path("b"));
  std::filesystem::copy_file(sample_path("symbols.so"), folder.path("a/sample.so"));
  std::filesystem::copy_file(sample_path("symbols_moved.so"), folder.path("b/sample.so"));
  EXPECT_EQ(find_loaded("libsymbols.so.1").error().code, ENOENT);
  const LoadCount before = load_count();
  {
    Loaded a(folder, "a/sample.so");
    EXPECT_NE(load_count(), before);
    EXPECT_EQ(find_loaded("sample.so")->path, folder.path("a/sample.so"));
    EXPECT_EQ(find_loaded("libsymbols.so.1")->path, folder.path("a/sample.so"));
    EXPECT_EQ(find_loaded("libsymbols.so.1")->soname, "libsymbols.so.1");
    EXPECT_EQ(find_loaded("libsymbols.so.1")->build_id,
              Sample(folder.path("a/sample.so"))->build_id());
    EXPECT_EQ(find_loaded_at(a.use())->path, folder.path("a/sample.so"));
    EXPECT_EQ(find_loaded("sample").error().code, ENOENT);
    EXPECT_EQ(find_loaded("ample.so").error().code, ENOENT);
    {
      Loaded b(folder, "b/sample.so");
      for (const char* name : {"sample.so", "libsymbols.so.1"}) {
        auto both = find_loaded(name);
        ASSERT_FALSE(both);
        EXPECT_EQ(both.error().code, ENOTUNIQ);
        EXPECT_NE(std::string(both.error().detail).find(folder.path("b/sample.so")),
                  std::string::npos);
      }
      EXPECT_EQ(find_loaded(folder.path("b/sample.so"))->path, folder.path("b/sample.so"));
      EXPECT_EQ(find_loaded_at(b.use())->path, folder.path("b/sample.so"));
    }
    EXPECT_EQ(find_loaded("sample.so")->path, folder.path("a/sample.so"));
    auto objects = loaded_objects();
    EXPECT_EQ(std::count_if(objects.begin(), objects.end(),
                            [](const NamedObject& o) { return o.name() == "sample.so"; }),
              1);
    EXPECT_EQ(std::count_if(objects.begin(), objects.end(),
                            [](const NamedObject& o) { return o.is_program; }),
              1);
  }
  EXPECT_EQ(find_loaded("sample.so").error().code, ENOENT);
}

TEST(loaded_symbols, an_object_that_has_gone) {
  Folder folder;
  std::filesystem::copy_file(sample_path("symbols.so"), folder.path("sample.so"));
  Result<NamedObject> object = find_loaded("");
  {
    Loaded loaded(folder, "sample.so");
    object = find_loaded(folder.path("sample.so"));
  }
  auto symbols = read_symbols(*object);
  ASSERT_FALSE(symbols);
  EXPECT_EQ(symbols.error().code, ESTALE);
}

}  // namespace
}  // namespace molt::elf
