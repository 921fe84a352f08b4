// sample.hpp - a loaded file with samples: what the symbol table and the file say of each function.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "arch/x86_64/entry.hpp"
#include "elf/image.hpp"
#include "samples/functions.h"

namespace arch_test {

using molt::arch::CodeAddress;
using molt::arch::Entry;
using molt::arch::EntryQuery;

struct Function {
  std::string name;
  long (*call)(long, long);
  bool recursive;
  EntryQuery query;
};

class SampleFile {
 public:
  // `path` is loaded; with `own`, it is this program itself.
  explicit SampleFile(const std::string& path, const sample* own = nullptr) : path_(path) {
    std::ifstream in(path, std::ios::binary);
    std::string content(std::istreambuf_iterator<char>(in), {});
    auto raw = std::as_bytes(std::span(content));
    content_.assign(raw.begin(), raw.end());
    auto image = molt::elf::Image::parse(content_, molt::elf::Purpose::examine);
    if (!image) throw std::runtime_error(path + ": " + image.error().detail);

    const sample* table = own;
    if (own == nullptr) {
      handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ == nullptr) throw std::runtime_error(dlerror());
      table = static_cast<const sample*>(dlsym(handle_, "samples"));
      link_map* map;
      dlinfo(handle_, RTLD_DI_LINKMAP, &map);
      base_ = map->l_addr;
    }

    std::map<std::uint64_t, std::uint64_t> symbols;  // start -> end
    for (auto symbol : image->static_symbols()) {
      if (!symbol.defined || symbol.type > STT_FUNC || symbol.name.empty()) continue;
      auto& end = symbols[symbol.value];
      end = std::max(end, symbol.value + symbol.size);
    }
    for (const sample* one = table; one->name != nullptr; ++one) {
      auto address = reinterpret_cast<CodeAddress>(one->function) - base_;
      auto at = symbols.find(address);
      if (at == symbols.end()) throw std::runtime_error(std::string(one->name) + ": no symbol");
      EntryQuery query;
      query.address = address + base_;
      query.size = at->second - at->first;
      std::uint64_t previous = at == symbols.begin() ? 0 : std::prev(at)->second;
      std::uint64_t next = std::next(at) == symbols.end() ? at->second : std::next(at)->first;
      query.before = std::min<std::uint64_t>(64, address - std::min(previous, address));
      query.after = std::min<std::uint64_t>(64, next - std::min(at->second, next));
      // No more than lies in the same segment.
      while (query.before != 0 && !image->at_address(address - query.before, query.before)) {
        --query.before;
      }
      while (query.after != 0 && !image->at_address(address, query.size + query.after)) {
        --query.after;
      }
      std::size_t all = query.before + query.size + query.after;
      query.live = {reinterpret_cast<const std::byte*>(query.address - query.before), all};
      query.expected = *image->at_address(address - query.before, all);
      functions.push_back({one->name, one->function, one->recursive != 0, query});
    }
  }
  ~SampleFile() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  SampleFile(const SampleFile&) = delete;
  SampleFile& operator=(const SampleFile&) = delete;

  std::string flavour() const { return path_.substr(path_.rfind('/') + 1); }

  std::vector<Function> functions;

 private:
  std::string path_;
  std::vector<std::byte> content_;
  void* handle_ = nullptr;
  CodeAddress base_ = 0;
};

}  // namespace arch_test
