// Where objects are, and that what is gone is really gone.

#include "elf/loaded.hpp"

#include "base/fd.hpp"
#include "folder.hpp"
#include "samples.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>

#include <cstdlib>

namespace molt::elf {
namespace {

constexpr std::size_t page = 4096;
constexpr Range anywhere{0, UINTPTR_MAX};

// One page of a file, mapped as long as it lives.
class Mapping {
 public:
  explicit Mapping(const std::string& path)
      : Mapping(Fd(open(path.c_str(), O_RDWR | O_CREAT, 0600)), path) {}
  Mapping(Fd fd, const std::string& what) {
    EXPECT_TRUE(fd) << what << ": " << std::strerror(errno);
    EXPECT_EQ(ftruncate(fd.get(), page), 0);
    memory_ = mmap(nullptr, page, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    EXPECT_NE(memory_, MAP_FAILED);
    const auto file = mapped_file_at(memory_);
    EXPECT_TRUE(file);
    file_ = file.value_or(MappedFile{});
  }
  ~Mapping() { unmap(); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void unmap() {
    if (memory_ != nullptr) munmap(std::exchange(memory_, nullptr), page);
  }
  const void* memory() const { return memory_; }
  bool is_mapped() const { return mapped(file_, anywhere); }

 private:
  MappedFile file_;
  void* memory_ = nullptr;
};

TEST(loaded, object_at_an_address) {
  auto function = reinterpret_cast<std::uintptr_t>(&strtol);
  auto object = object_at(reinterpret_cast<const void*>(function));
  ASSERT_TRUE(object);
  EXPECT_TRUE(object->extent.contains(function));
  ASSERT_GE(object->text_count, 1u);
  for (std::size_t i = 0; i < object->text_count; ++i) {
    EXPECT_GE(object->text[i].begin, object->extent.begin);
    EXPECT_LE(object->text[i].end, object->extent.end);
    EXPECT_GT(object->text[i].size(), 0u);
  }

  int on_stack = 0;
  EXPECT_FALSE(object_at(&on_stack));
  EXPECT_FALSE(object_at(nullptr));
  EXPECT_FALSE(extent_of(reinterpret_cast<const void*>(~std::uintptr_t{0})));
}

TEST(loaded, text_holds_functions_and_no_data) {
  const std::string path = sample_path("plain.so");
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(handle, nullptr) << dlerror();
  void* function = dlsym(handle, "touch");
  void* data = dlsym(handle, "answer");
  auto object = object_at(function);
  ASSERT_TRUE(object);
  ASSERT_EQ(object->text_count, 1u);
  EXPECT_TRUE(object->text[0].contains(reinterpret_cast<std::uintptr_t>(function)));
  EXPECT_FALSE(object->text[0].contains(reinterpret_cast<std::uintptr_t>(data)));
  EXPECT_TRUE(object->extent.contains(reinterpret_cast<std::uintptr_t>(data)));
  EXPECT_EQ(object->extent.size(), Sample(path)->loaded_bytes());
  dlclose(handle);
}

// A copy of the sample, loaded.
struct Loaded {
  Folder folder;
  std::string path = folder.path("plain.so");
  void* handle = nullptr;
  void* data = nullptr;
  MappedFile file;
  Range extent;

  Loaded() {
    std::filesystem::copy_file(sample_path("plain.so"), path);
    EXPECT_FALSE(in_link_map(path));
    handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(handle, nullptr) << dlerror();
    data = dlsym(handle, "answer");
    const auto mapping = mapped_file_at(data);
    const auto object = object_at(data);
    EXPECT_TRUE(mapping && object);
    file = mapping.value_or(MappedFile{});
    if (object) extent = object->extent;
  }
};

TEST(loaded, unloading_is_seen_by_all_means) {
  const Loaded object;
  EXPECT_TRUE(in_link_map(object.path));
  EXPECT_TRUE(mapped(object.file, object.extent));
  EXPECT_TRUE(mapped(object.file, {}));  // its text
  dlclose(object.handle);
  EXPECT_FALSE(in_link_map(object.path));
  EXPECT_FALSE(mapped(object.file, object.extent));
  EXPECT_FALSE(object_at(object.data));
}

// Symbolizers map a file, to read in it, and keep it so; that is not the loaded object. What can be run is.
TEST(loaded, a_view_of_the_file_elsewhere_is_not_the_object) {
  const Loaded object;
  const int fd = open(object.path.c_str(), O_RDONLY | O_CLOEXEC);
  void* view = mmap(nullptr, page, PROT_READ, MAP_PRIVATE, fd, 0);
  ASSERT_NE(view, MAP_FAILED);
  close(fd);
  dlclose(object.handle);
  const auto at = reinterpret_cast<std::uintptr_t>(view);
  EXPECT_FALSE(mapped(object.file, object.extent));
  EXPECT_TRUE(mapped(object.file, {at, at + 1}));
  mprotect(view, page, PROT_READ | PROT_EXEC);
  EXPECT_TRUE(mapped(object.file, object.extent));
  munmap(view, page);
}

// The negative control: dlclose() reports success, and all means see that it is not true.
TEST(loaded, an_object_that_stays_is_seen) {
  Folder folder;
  const std::string path = folder.path("nodelete.so");
  std::filesystem::copy_file(sample_path("nodelete.so"), path);
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(handle, nullptr) << dlerror();
  auto file = mapped_file_at(dlsym(handle, "answer"));
  ASSERT_TRUE(file);
  ASSERT_EQ(dlclose(handle), 0);
  EXPECT_TRUE(in_link_map(path));
  EXPECT_TRUE(mapped(*file, {}));
}

// A file that was deleted is the same file, another of its name is not.
TEST(loaded, deleted_files) {
  Folder folder;
  Mapping mapping(folder.path("file"));
  ASSERT_EQ(unlink(folder.path("file").c_str()), 0);
  EXPECT_TRUE(mapping.is_mapped());
  Mapping other(folder.path("file"));
  other.unmap();
  EXPECT_FALSE(other.is_mapped());
  EXPECT_TRUE(mapping.is_mapped());
  mapping.unmap();
  EXPECT_FALSE(mapping.is_mapped());
}

TEST(loaded, unusual_names) {
  Folder folder;
  for (std::string name : {"with space", "with\nnewline", "back\\slash"}) {
    Mapping mapping(folder.path(name));
    const auto found = mapping_at(mapping.memory());
    ASSERT_TRUE(found) << name;
    EXPECT_EQ(found->path, folder.path(name));
    EXPECT_FALSE(in_link_map(folder.path(name)));
  }
}

TEST(loaded, files_in_memory) {
  Fd fd(memfd_create("molt-sample", MFD_CLOEXEC));
  ASSERT_TRUE(fd);
  Mapping mapping(std::move(fd), "memfd");
  EXPECT_TRUE(mapping.is_mapped());
  mapping.unmap();
  EXPECT_FALSE(mapping.is_mapped());
}

TEST(loaded, anonymous_memory_is_no_file) {
  void* memory = mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  EXPECT_FALSE(mapped_file_at(memory));
  munmap(memory, page);
  EXPECT_FALSE(mapped_file_at(nullptr));
}

// maps then has many times the size of any buffer.
TEST(loaded, thousands_of_mappings) {
  Folder folder;
  constexpr std::size_t pages = 6000;
  auto* memory = static_cast<char*>(
      mmap(nullptr, pages * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  // Every second page differs, so none can be merged with its neighbour.
  for (std::size_t i = 0; i < pages; i += 2) {
    ASSERT_EQ(mprotect(memory + i * page, page, PROT_NONE), 0);
  }
  // In the middle of them all.
  Fd fd(open(folder.path("file").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_TRUE(fd);
  ASSERT_EQ(ftruncate(fd.get(), page), 0);
  char* middle = memory + pages / 2 * page;
  ASSERT_EQ(mmap(middle, page, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd.get(), 0), middle);

  auto file = mapped_file_at(middle);
  ASSERT_TRUE(file);
  EXPECT_TRUE(mapped(*file, anywhere));
  munmap(middle, page);
  EXPECT_FALSE(mapped(*file, anywhere));
  munmap(memory, pages * page);
}

// Files may lie deeper than PATH_MAX. Such a line does not fit into the reader's buffer: the file is
// still known by its inode, and the lines behind it are read.
TEST(loaded, a_path_longer_than_the_buffer) {
  Folder folder;
  const std::string step(200, 'd');
  Fd at(open(folder.path("").c_str(), O_PATH | O_DIRECTORY));
  ASSERT_TRUE(at);
  for (int depth = 0; depth < 60; ++depth) {
    ASSERT_EQ(mkdirat(at.get(), step.c_str(), 0700), 0);
    at.reset(openat(at.get(), step.c_str(), O_PATH | O_DIRECTORY));
    ASSERT_TRUE(at);
  }
  Fd deep_file(openat(at.get(), "file", O_RDWR | O_CREAT, 0600));
  Mapping deep(std::move(deep_file), "deep file");
  Mapping first(folder.path("first"));
  Mapping second(folder.path("second"));
  EXPECT_TRUE(deep.is_mapped());
  EXPECT_TRUE(first.is_mapped());
  EXPECT_TRUE(second.is_mapped());
  deep.unmap();
  EXPECT_FALSE(deep.is_mapped());
}

}  // namespace
}  // namespace molt::elf
