#include "audit/judge.hpp"

#include <elf.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "threads/procfs.hpp"

namespace molt::audit {
namespace {

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

Range main_stack_of(const std::vector<Mapping>& mappings) {
  for (const Mapping& m : mappings) {
    if (m.main_stack) return m.range;
  }
  return {};
}

std::string thread_text(int tid) {
  return "thread " + std::to_string(tid) + " (" + threads::thread_name(tid) + ")";
}

constexpr std::uintptr_t key_bytes = 16;
void marker_destructor(void*) {}

// The program's own strings of one kind of symbol (_ZTV...) tell vtables.
bool is_vtable(const std::string& symbol) { return symbol.compare(0, 4, "_ZTV") == 0; }

}  // namespace

bool is_in_the_loader(const Finding& finding) {
  constexpr std::string_view loader = "ld-linux";
  return finding.place == Place::object &&
         std::string_view(finding.where).substr(0, loader.size()) == loader;
}

Judge::Judge(const Target& target, bool stacks, Copy& copy, const std::vector<Mapping>& mappings)
    : target_(target), stacks_(stacks), copy_(copy), mappings_(mappings), heap_(copy) {
  if (target.link_map != nullptr) {
    // For a dlopen()ed object the dynamic loader takes it from malloc. Another malloc than glibc's
    // need not have an answer: then what glibc 2.36 to 2.41 ask for, at least.
    constexpr std::size_t least = 1136;
    const auto at = reinterpret_cast<std::uintptr_t>(target.link_map);
    link_map_ = {
        at, at + (heap_.known() ? malloc_usable_size(const_cast<void*>(target.link_map)) : least)};
  }
  threads_ = threads_now(copy, main_stack_of(mappings));
}

std::optional<Finding> Judge::judge(std::uintptr_t address) {
  const Neighbours near = neighbours(address);
  const std::uint64_t value = near[0];
  // Meanwhile a block may have been used again.
  if (std::none_of(target_.segments.begin(), target_.segments.end(),
                   [&](const Range& r) { return r.contains(value); })) {
    return std::nullopt;
  }
  if (is_the_loaders(address, near) || is_for_dlclose(near) || is_in_short_string(address, near)) {
    return std::nullopt;
  }
  Finding finding;
  finding.address = address;
  if (!place(address, near, finding)) return std::nullopt;
  name_target(value, finding);
  const bool is_linkage = is_text(value) && value - target_.bias < module_symbols_.first_function();
  if (is_linkage || is_in_the_loader(finding) ||
      std::any_of(target_.tables.begin(), target_.tables.end(),
                  [&](const Range& r) { return r.contains(value); })) {
    finding.target += ", which only the dynamic loader and unwinders use";
    finding.bars = false;
  } else if (finding.place == Place::heap && may_be_two_flags(value, finding)) {
    finding.target += ", or two flags beside the rest of an old pointer";
    finding.bars = false;
  }
  return finding;
}

Judge::Neighbours Judge::neighbours(std::uintptr_t address) {
  Neighbours near;
  if (copy_.take(address - 24, sizeof near.words) == sizeof near.words) {
    std::copy_n(copy_.words(), 7, near.words);
    return near;
  }
  for (int i = -3; i <= 3; ++i) {
    near.words[3 + i] = copy_.word(address + static_cast<std::uintptr_t>(i * 8)).value_or(0);
  }
  return near;
}

// In libstdc++'s std::string {begin, size, 16 bytes}, which holds up to 15 characters itself. What
// is behind their NUL was there before.
bool Judge::is_in_short_string(std::uintptr_t address, const Neighbours& near) {
  constexpr std::uint64_t longest = 15;
  for (int word : {0, 1}) {
    const std::uintptr_t text = address - static_cast<std::uintptr_t>(word) * 8;
    const std::uint64_t begin = near[-2 - word], size = near[-1 - word];
    if (begin != text || size > longest) continue;
    if (copy_.take(text, 16) != 16) continue;
    if (reinterpret_cast<const char*>(copy_.words())[size] == '\0') return true;
  }
  return false;
}

// A structure with two bools and then a pointer has six bytes in between that nobody writes. Where
// modules lie beside other objects, an old pointer to those, with its low bytes overwritten, is an
// address in the module. Only one that nothing is known to begin at.
bool Judge::may_be_two_flags(std::uint64_t value, const Finding& finding) {
  constexpr std::uint64_t bits_of_flags = 0xfefe;
  if ((value & bits_of_flags) != 0) return false;
  if (finding.looks != Looks::data && finding.looks != Looks::code) return false;
  const auto symbol = module_symbols_.at(value - target_.bias);
  return !symbol || symbol->offset != 0;
}

bool Judge::is_text(std::uintptr_t value) const {
  return std::any_of(target_.text.begin(), target_.text.end(),
                     [&](const Range& r) { return r.contains(value); });
}

// The link map itself; and where the loader notes an object's begin, end and unwind table, or a name
// and symbol of it, with the link map beside: _dl_find_object's list, the table of unique symbols.
bool Judge::is_the_loaders(std::uintptr_t address, const Neighbours& near) {
  if (link_map_.contains(address)) return true;
  if (is_text(near[0])) return false;
  const auto map = reinterpret_cast<std::uintptr_t>(target_.link_map);
  if (map != 0 && (near[-1] == map || near[1] == map || near[2] == map)) return true;
  // _dl_find_object keeps the list of before its last change, and in it entries {begin, end, map,
  // unwind} of objects that were at these addresses earlier; end is begin in one that was removed.
  auto is_entry = [&](int first) {
    constexpr std::uint64_t largest = std::uint64_t{1} << 30;
    const std::uint64_t begin = near[first], end = near[first + 1], link = near[first + 2];
    const std::uint64_t unwind = near[first + 3];
    if (begin % 4096 != 0 || end < begin || end - begin > largest) return false;
    // Objects without an unwind table are taken for entries only if they are where the module is.
    if (unwind == 0) return begin == target_.segments.front().begin && link != 0 && end != begin;
    if (unwind <= begin || unwind - begin > largest) return false;
    return link == 0 ? end == begin : unwind < end;
  };
  // A link map that is no more, of an object that was here before: begin, end, and where its text ends.
  const bool is_old_map = near[-2] == target_.segments.front().begin && near[-1] > near[0] &&
                          near[-1] <= target_.segments.back().end;
  // Or the rest of one, where somebody's block begins that has not been written that far: behind the end of
  // the text come four scopes, their number, and where they are.
  constexpr std::uintptr_t scopes = 4;
  const std::uintptr_t list = address + 8;
  const bool ends_text = std::any_of(
      target_.text.begin(), target_.text.end(),
      [&](const Range& text) { return near[0] % 4096 == 0 && near[0] - text.end < 4096; });
  const bool is_rest_of_map = ends_text && copy_.word(list + scopes * 8) == scopes &&
                              copy_.word(list + scopes * 8 + 8) == list;
  return is_old_map || is_rest_of_map || is_entry(0) || is_entry(-1) || is_entry(-3);
}

// Does the link map hold this address? Blocks that it refers to are the loader's: the table of
// versions, which names what is in the module's strings.
bool Judge::is_in_link_map(std::uintptr_t block) {
  const std::size_t words = copy_.take(link_map_.begin, link_map_.size()) / sizeof(std::uint64_t);
  return std::find(copy_.words(), copy_.words() + words, block) != copy_.words() + words;
}

// &__dso_handle: the word that holds its own address. Nobody but the compiler can name it, and what
// is registered with it is run, and forgotten, by dlclose().
bool Judge::is_handle(std::uint64_t word) {
  const std::uintptr_t base = target_.segments.front().begin;
  if (!handles_) {
    handles_.emplace();  // offsets (A3)
    for (const Range& segment : target_.segments) {
      if (is_text(segment.begin)) continue;
      for (std::uintptr_t at = segment.begin; at < segment.end;) {
        const std::size_t got = copy_.take(at, segment.end - at);
        for (std::size_t i = 0; i < got / 8; ++i) {
          if (copy_.words()[i] == at + i * 8) handles_->push_back(at + i * 8 - base);
        }
        at += got != 0 ? got : 4096;
      }
    }
  }
  return std::find(handles_->begin(), handles_->end(), word - base) != handles_->end();
}

namespace {

// What glibc stores in place of a function's address.
std::uint64_t demangled(std::uint64_t word) {
  std::uint64_t guard;
  asm("movq %%fs:0x30, %0" : "=r"(guard));
  return ((word >> 17) | (word << 47)) ^ guard;
}

}  // namespace

bool Judge::is_for_dlclose(const Neighbours& near) {
  if (is_handle(near[0])) return true;
  // __cxa_atexit: {kind, mangled function, argument, handle}. Entries that were run are free, and
  // show what was there, also of an object that is no more.
  constexpr std::uint64_t free = 0, at_exit = 4;
  if (near[-2] == at_exit && is_handle(near[1])) return true;
  auto is_mangled = [](std::uint64_t word) {
    const std::uint64_t address = demangled(word);
    return address >> 47 == 0 && address >= 0x10000;
  };
  if (near[-2] == free && is_mangled(near[-1])) return true;
  if (near[-3] == free && is_mangled(near[-2])) return true;
  // pthread_atfork: {prepare, parent, child, handle}
  return is_text(near[0]) && (is_handle(near[1]) || is_handle(near[2]) || is_handle(near[3]));
}

// A thread that has only just begun is known once it has run for the first time. Threads that were
// not made by glibc never are.
void Judge::settle_threads() {
  constexpr int most = 10;
  for (; settled_ < most && some_unknown(threads_); ++settled_) {
    timespec nap{0, 500'000};
    nanosleep(&nap, nullptr);
    threads_ = threads_now(copy_, main_stack_of(mappings_));
  }
}

const Mapping* Judge::mapping_of(std::uintptr_t address) const {
  for (const Mapping& m : mappings_) {
    if (m.range.contains(address)) return &m;
  }
  return nullptr;
}

// The kernel shows a heap in pieces where one was watched and the next was not.
Range Judge::heap_of(const Mapping& mapping) const {
  Range heap = mapping.range;
  auto belongs = [&](const Mapping& m) {
    return m.main_heap == mapping.main_heap && m.path.empty() && m.writable && !m.shared;
  };
  const auto at = static_cast<std::size_t>(&mapping - mappings_.data());
  for (std::size_t i = at; i-- > 0 && mappings_[i].range.end == heap.begin &&
                           belongs(mappings_[i]) && !Heap::may_begin(heap.begin);) {
    heap.begin = mappings_[i].range.begin;
  }
  for (std::size_t i = at + 1; i < mappings_.size() && mappings_[i].range.begin == heap.end &&
                               belongs(mappings_[i]) && !Heap::may_begin(heap.end);
       ++i) {
    heap.end = mappings_[i].range.end;
  }
  return heap;
}

bool Judge::place_in_thread(std::uintptr_t address, const ThreadMemory& thread, Finding& finding) {
  if (thread.storage.contains(address)) {
    finding.place = Place::thread_local_storage;
    finding.where = "thread-local storage of " + thread_text(thread.tid) + ", " +
                    hex(thread.pointer - address) + " below its end";
    return true;
  }
  if (thread.descriptor.contains(address)) {
    finding.place = Place::thread;
    finding.where =
        "descriptor of " + thread_text(thread.tid) + ", +" + hex(address - thread.descriptor.begin);
    return true;
  }
  if (!stacks_ || thread.tid == gettid()) return false;
  const std::uintptr_t top = stack_pointer(thread.tid);
  if (top != 0 && address < top) return false;
  finding.place = Place::stack;
  finding.bars = false;
  finding.where = "stack of " + thread_text(thread.tid);
  finding.where += top != 0 ? ", " + hex(address - top) + " above its stack pointer" : ", running";
  return true;
}

// Where libc.so.6 has the destructors of thread-specific keys, {sequence, destructor} each: found by
// a key of our own. 0: not found.
std::uintptr_t Judge::key_table() {
  if (key_table_) return *key_table_;
  key_table_ = 0;
  pthread_key_t key;
  if (pthread_key_create(&key, marker_destructor) != 0) return 0;
  const auto marker = reinterpret_cast<std::uint64_t>(&marker_destructor);
  for (const Mapping& m : mappings_) {
    if (!m.writable || m.shared || *key_table_ != 0) continue;
    const auto object = object_of(m.range.begin);
    if (!object || object->name.compare(0, 7, "libc.so") != 0) continue;
    for (std::uintptr_t at = m.range.begin; at < m.range.end;) {
      const std::size_t got = copy_.take(at, m.range.end - at);
      for (std::size_t i = 0; i < got / 8; ++i) {
        if (copy_.words()[i] == marker) *key_table_ = at + i * 8 - key * key_bytes - 8;
      }
      at += got != 0 ? got : 4096;
    }
  }
  pthread_key_delete(key);
  return *key_table_;
}

bool Judge::place_in_object(std::uintptr_t address, const Neighbours& near, const ObjectOf& object,
                            Finding& finding) {
  finding.place = Place::object;
  if (object.name.compare(0, 7, "libc.so") == 0) {
    const std::uintptr_t table = key_table();
    const std::uintptr_t key = (address - table) / key_bytes;
    if (table != 0 && address >= table && key < PTHREAD_KEYS_MAX) {
      // The sequence is odd while the key is in use; the destructor stays there after that.
      finding.where = "libc.so: destructor of thread-specific key " + std::to_string(key);
      return near[-1] % 2 == 1;
    }
  }
  if (object_symbols_.file() != object.file) object_symbols_.open(object.file);
  finding.where = object.name + ": ";
  if (const auto symbol = object_symbols_.at(address - object.bias)) {
    finding.where += symbol->name + "+" + hex(symbol->offset);
  } else {
    finding.where += "+" + hex(address - object.begin);
  }
  return true;
}

bool Judge::place(std::uintptr_t address, const Neighbours& near, Finding& finding) {
  const Mapping* mapping = mapping_of(address);
  if (mapping == nullptr) return false;
  if (mapping->path.empty() && !mapping->main_heap) settle_threads();
  for (const ThreadMemory& thread : threads_) {
    if (thread.stack.contains(address) || thread.storage.contains(address) ||
        thread.descriptor.contains(address)) {
      return place_in_thread(address, thread, finding);
    }
  }
  if (!mapping->main_heap) {
    if (const auto object = object_of(address)) {
      return place_in_object(address, near, *object, finding);
    }
  }
  if (mapping->main_heap || mapping->path.empty()) {
    if (const auto block = heap_.block_at(heap_of(*mapping), mapping->main_heap, address)) {
      if (block->is_free || (!is_text(near[0]) && is_in_link_map(block->range.begin))) return false;
      finding.place = Place::heap;
      finding.block = block->range;
      finding.where = "[heap] block of " + std::to_string(block->range.size()) + " bytes, +" +
                      std::to_string(address - block->range.begin);
      return true;
    }
  }
  if (mapping->main_heap) {
    finding.place = Place::heap;
    finding.where = "[heap]";
    return true;
  }
  if (mapping->path.empty()) {
    const ThreadBlock block = thread_block_of(copy_, address, mapping->range);
    if (block.in_stack) return false;
    const bool is_of_the_dead =
        block.pointer != 0 && !some_unknown(threads_) &&
        std::none_of(threads_.begin(), threads_.end(),
                     [&](const ThreadMemory& t) { return t.pointer == block.pointer; });
    if (is_of_the_dead) return false;
  }
  finding.place = Place::memory;
  finding.where = mapping->path.empty() ? "anonymous memory" : mapping->path;
  if (mapping->shared) finding.where = "shared memory, " + finding.where;
  finding.where += ", +" + hex(address - mapping->range.begin);
  return true;
}

bool Judge::follows_call(std::uintptr_t value) {
  if (copy_.take(value - 8, 8) != 8) return false;
  const auto* end = reinterpret_cast<const unsigned char*>(copy_.words()) + 8;
  if (end[-5] == 0xe8) return true;     // call rel32
  for (int length : {2, 3, 4, 6, 7}) {  // call r/m64: ff /2
    if (end[-length] == 0xff && ((end[1 - length] >> 3) & 7) == 2) return true;
  }
  return false;
}

void Judge::name_target(std::uintptr_t value, Finding& finding) {
  if (module_symbols_.file() != target_.file) module_symbols_.open(target_.file);
  const auto symbol = module_symbols_.at(value - target_.bias);
  if (symbol) {
    finding.target = symbol->name + "+" + hex(symbol->offset);
  } else {
    finding.target = "+" + hex(value - target_.segments.front().begin);
  }
  finding.to_data = std::any_of(target_.data.begin(), target_.data.end(),
                                [&](const Range& r) { return r.contains(value); });
  if (!is_text(value)) {
    finding.looks = symbol && is_vtable(symbol->name) ? Looks::vtable : Looks::data;
  } else if (symbol && symbol->offset == 0) {
    finding.looks = Looks::callback;
  } else if (follows_call(value)) {
    finding.looks = Looks::return_address;
  } else {
    // Without symbols: endbr64, or an address where functions begin.
    const bool entry = !symbol && (copy_.word(value).value_or(0) & 0xffffffff) == 0xfa1e0ff3;
    finding.looks = entry ? Looks::callback : Looks::code;
  }
}

}  // namespace molt::audit
