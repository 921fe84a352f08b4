#include "elf/symbols.hpp"

#include "elf/read.hpp"
#include "elf/symbols_builder.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <functional>

namespace molt::elf {

namespace {

constexpr std::uint32_t none = UINT32_MAX;

template <class T>
T* array_of(Bytes& bytes) {
  return reinterpret_cast<T*>(bytes.data());
}
template <class T>
const T* array_of(const Bytes& bytes) {
  return reinterpret_cast<const T*>(bytes.data());
}

Status no_memory() { return fail(ENOMEM, "no memory for a table of symbols"); }

// Makes room for `more` bytes behind what is there.
bool extend(Bytes& bytes, std::size_t more) { return bytes.try_resize(bytes.size() + more); }

std::uint32_t bucket_of(std::string_view name, std::size_t buckets) {
  return static_cast<std::uint32_t>(std::hash<std::string_view>{}(name) & (buckets - 1));
}

// "memcpy@GLIBC_2.2.5" and "memcpy@@GLIBC_2.14" are names with a version, the second is the one that a
// plain name means. A leading @ is none.
struct Spelling {
  std::string_view name;
  std::string_view version;
  bool is_default = true;
};
Spelling spelled(std::string_view text) {
  const std::size_t at = text.find('@', 1);
  if (at == text.npos) return {text, {}, true};
  const bool is_default = text.substr(at).starts_with("@@");
  return {text.substr(0, at), text.substr(at + (is_default ? 2 : 1)), is_default};
}

}  // namespace

struct Symbols::Entry {
  std::uint64_t value;
  std::uint64_t size;
  std::uint32_t name;     // offset in names_
  std::uint32_t version;  // the same; 0: none
  std::uint32_t section;  // index in sections_; 0: not known
  std::uint8_t info;      // binding and type as in Elf64_Sym
  SymbolSource source;
  bool is_default;   // of its versions
  bool has_address;  // in memory: neither absolute nor thread-local

  std::uint8_t type() const { return ELF64_ST_TYPE(info); }
  std::uint8_t bind() const { return ELF64_ST_BIND(info); }
  std::uint64_t end() const { return value + size; }
};

struct Symbols::Section {
  std::uint64_t begin;
  std::uint64_t end;
  std::uint32_t name;  // offset in names_
  std::uint32_t unused;
};

// `around` is the nearest place before this one that reaches beyond this one's address: following it
// visits every symbol that an address can be in.
struct Symbols::Place {
  std::uint32_t entry;
  std::uint32_t around;
};

const char* source_name(SymbolSource source) {
  switch (source) {
    case SymbolSource::none:
      break;
    case SymbolSource::symtab:
      return ".symtab";
    case SymbolSource::debug_file:
      return "debug file";
    case SymbolSource::gnu_debugdata:
      return ".gnu_debugdata";
    case SymbolSource::dynsym:
      return ".dynsym";
  }
  return "no symbols";
}

// -- asking --

const Symbols::Entry* Symbols::entries() const { return array_of<Entry>(entries_); }

std::string_view Symbols::text(std::uint32_t offset) const {
  return text_at(names_, offset).value_or(std::string_view{});
}

std::string_view Symbols::name(const Entry& entry) const { return spelled(text(entry.name)).name; }

FoundSymbol Symbols::describe(std::uint32_t index, std::uint32_t position) const {
  const Entry& e = entries()[index];
  return {
      .name = name(e),
      .version = e.version != 0 ? text(e.version) : std::string_view{},
      .section =
          e.section != 0 ? text(array_of<Section>(sections_)[e.section].name) : std::string_view{},
      .address = e.value + (e.has_address ? bias_ : 0),
      .size = e.size,
      .position = complete() ? position : 0,
      .bind = e.bind(),
      .type = e.type(),
      .source = e.source,
  };
}

template <class F>
void Symbols::for_each_of(std::string_view wanted, F&& f) const {
  const Spelling spelling = spelled(wanted);
  const std::size_t buckets = heads_.size() / sizeof(std::uint32_t);
  if (buckets == 0) return;
  const std::uint32_t first = array_of<std::uint32_t>(heads_)[bucket_of(spelling.name, buckets)];
  const auto* next = array_of<std::uint32_t>(next_);

  // A plain name means the default versions, or, where there are none, the others.
  bool any_version = false;
  if (spelling.version.empty()) {
    any_version = true;
    for (std::uint32_t i = first; i != none; i = next[i]) {
      if (entries()[i].is_default && name(entries()[i]) == spelling.name) any_version = false;
    }
  }
  std::uint32_t position = 0;
  for (std::uint32_t i = first; i != none; i = next[i]) {
    const Entry& e = entries()[i];
    if (name(e) != spelling.name) continue;
    if (spelling.version.empty() ? !(e.is_default || any_version)
                                 : (e.version == 0 || text(e.version) != spelling.version)) {
      continue;
    }
    if (!f(i, ++position)) return;
  }
}

Result<FoundSymbol> Symbols::find(std::string_view wanted, std::uint32_t position) const {
  const auto length = static_cast<int>(std::min<std::size_t>(wanted.size(), 100));
  if (position != 0 && !complete()) {
    return fail(ENODATA, "symbol position %u for symbol '%.*s' in object '%s' cannot be known: %s",
                position, length, wanted.data(), object_.c_str(), shortcomings_.c_str());
  }
  std::uint32_t found = none;
  std::uint32_t found_position = 0;
  std::uint32_t count = 0;
  bool ambiguous = false;
  for_each_of(wanted, [&](std::uint32_t index, std::uint32_t at) {
    ++count;
    if (position != 0 && at != position) return true;
    if (found == none) {
      found = index;
      found_position = at;
      return position == 0;
    }
    const Entry& a = entries()[found];
    const Entry& b = entries()[index];
    ambiguous |= a.value != b.value || a.has_address != b.has_address;
    return true;
  });

  if (count == 0) {
    return fail(EINVAL, "symbol '%.*s' not found in symbol table of object '%s' (%s)%s%s", length,
                wanted.data(), object_.c_str(), source_name(source_),
                shortcomings_.empty() ? "" : ": ", shortcomings_.c_str());
  }
  if (found == none) {
    return fail(EINVAL,
                "symbol position %u for symbol '%.*s' in object '%s' not found; it is there %u "
                "time%s",
                position, length, wanted.data(), object_.c_str(), count, count == 1 ? "" : "s");
  }
  if (ambiguous) {
    auto failed = fail(EINVAL, "unresolvable ambiguity for symbol '%.*s' in object '%s'", length,
                       wanted.data(), object_.c_str());
    Error& error = failed.value();
    std::size_t used = std::strlen(error.detail);
    for_each_of(wanted, [&](std::uint32_t index, std::uint32_t at) {
      const Entry& e = entries()[index];
      const int written = std::snprintf(error.detail + used, sizeof error.detail - used,
                                        "%s%u is at %#" PRIx64 " (%" PRIu64 " bytes)",
                                        at == 1 ? "; position " : ", ", at, e.value, e.size);
      used += static_cast<std::size_t>(written);
      return used < sizeof error.detail;
    });
    return failed;
  }
  return describe(found, found_position);
}

std::vector<FoundSymbol> Symbols::find_all(std::string_view wanted) const {
  std::vector<FoundSymbol> all;
  for_each_of(wanted, [&](std::uint32_t index, std::uint32_t position) {
    all.push_back(describe(index, position));
    return true;
  });
  return all;
}

std::optional<SymbolAt> Symbols::at(std::uint64_t address) const {
  const std::uint64_t wanted = address - bias_;
  const auto* begin = array_of<Place>(by_address_);
  const auto* after = std::upper_bound(
      begin, begin + addresses_, wanted,
      [this](std::uint64_t a, const Place& p) { return a < entries()[p.entry].value; });
  if (after == begin) return std::nullopt;
  const auto nearest = static_cast<std::uint32_t>(after - begin - 1);

  std::uint32_t found = none;
  for (std::uint32_t i = nearest; i != none; i = begin[i].around) {
    if (wanted < entries()[begin[i].entry].end()) {
      found = begin[i].entry;
      break;
    }
  }
  if (found == none) {
    const Entry& e = entries()[begin[nearest].entry];
    if (e.size != 0) return std::nullopt;  // in the gap behind it
    if (e.section != 0 && wanted >= array_of<Section>(sections_)[e.section].end) {
      return std::nullopt;
    }
    found = begin[nearest].entry;
  }
  std::uint32_t position = 0;
  const Entry& e = entries()[found];
  std::string full(name(e));
  if (e.version != 0) full.append("@").append(text(e.version));
  for_each_of(full, [&](std::uint32_t index, std::uint32_t at) {
    position = at;
    return index != found;
  });
  return SymbolAt{describe(found, position), wanted - e.value};
}

// -- building --

// Offset 0 of the names is "".
SymbolsBuilder::SymbolsBuilder(std::string_view object) { symbols_.object_ = object; }

void SymbolsBuilder::note(std::string_view shortcoming) {
  if (!symbols_.shortcomings_.empty()) symbols_.shortcomings_ += "; ";
  symbols_.shortcomings_ += shortcoming;
}

// The offset at which the text begins in the names; nothing without memory.
std::optional<std::uint32_t> SymbolsBuilder::keep(View text) {
  Bytes& names = symbols_.names_;
  // The first byte is the name of what has none, the last one ends a name that does not end itself.
  const std::size_t at = std::max<std::size_t>(names.size(), 1);
  if (at + text.size() + 1 > UINT32_MAX || !names.try_resize(at + text.size() + 1)) {
    return std::nullopt;
  }
  names.data()[0] = std::byte{0};
  if (!text.empty()) std::memcpy(names.data() + at, text.data(), text.size());
  names.data()[at + text.size()] = std::byte{0};
  return static_cast<std::uint32_t>(at);
}

Status SymbolsBuilder::use_sections(const Sections* sections, std::uint64_t shift) {
  sections_base_ = symbols_.sections_.size() / sizeof(Symbols::Section);
  sections_count_ = 0;
  if (sections == nullptr) return {};
  if (!extend(symbols_.sections_, sections->size() * sizeof(Symbols::Section))) {
    return no_memory();
  }
  for (std::size_t i = 0; i < sections->size(); ++i) {
    const Elf64_Shdr header = sections->header(i);
    auto name = keep(std::as_bytes(std::span(sections->name(i))));
    if (!name) return no_memory();
    const std::uint64_t begin = header.sh_addr + shift;
    array_of<Symbols::Section>(symbols_.sections_)[sections_base_ + i] = {
        begin, begin + header.sh_size, *name, 0};
  }
  sections_count_ = sections->size();
  return {};
}

// For each version number the offset of its name in `strings`, 0 for none.
Result<Bytes> SymbolsBuilder::version_names(View verdef) {
  Bytes names;
  for (std::uint64_t at = 0; auto record = read<Elf64_Verdef>(verdef, at);) {
    auto first = read<Elf64_Verdaux>(verdef, at + record->vd_aux);
    const std::size_t index = record->vd_ndx & 0x7fff;
    if (first && (record->vd_flags & VER_FLG_BASE) == 0) {
      const std::size_t before = names.size() / sizeof(std::uint32_t);
      if (index >= before) {
        if (!names.try_resize((index + 1) * sizeof(std::uint32_t))) return pass(no_memory());
        std::fill(array_of<std::uint32_t>(names) + before,
                  array_of<std::uint32_t>(names) + index + 1, 0);
      }
      array_of<std::uint32_t>(names)[index] = first->vda_name;
    }
    if (record->vd_next == 0) break;
    at += record->vd_next;
  }
  return names;
}

Status SymbolsBuilder::add(View table, View strings, SymbolSource source, std::uint64_t shift,
                           const VersionTable& versions) {
  const std::size_t count = table.size() / sizeof(Elf64_Sym);
  if (symbols_.count_ + count >= none) return fail(EFBIG, "too many symbols");
  auto base = keep(strings);
  if (!base || !extend(symbols_.entries_, count * sizeof(Symbols::Entry))) return no_memory();
  auto version_name = version_names(versions.verdef);
  if (!version_name) return pass(version_name);
  const auto* version_name_at = array_of<std::uint32_t>(*version_name);
  const std::size_t known_versions = version_name->size() / sizeof(std::uint32_t);

  auto* out = array_of<Symbols::Entry>(symbols_.entries_) + symbols_.count_;
  for (std::size_t i = 1; i < count; ++i) {
    const Elf64_Sym raw = *read<Elf64_Sym>(table, i * sizeof(Elf64_Sym));
    const unsigned type = ELF64_ST_TYPE(raw.st_info);
    if (raw.st_shndx == SHN_UNDEF || raw.st_shndx == SHN_COMMON || type == STT_SECTION ||
        type == STT_FILE) {
      continue;
    }
    auto text = text_at(strings, raw.st_name);
    if (!text || text->empty()) continue;

    Symbols::Entry entry = {};
    entry.has_address = raw.st_shndx != SHN_ABS && type != STT_TLS;
    entry.value = raw.st_value + (entry.has_address ? shift : 0);
    // What would reach beyond the last address is nonsense.
    entry.size = raw.st_size <= UINT64_MAX - entry.value ? raw.st_size : 0;
    entry.name = *base + raw.st_name;
    if (raw.st_shndx < sections_count_) {
      entry.section = static_cast<std::uint32_t>(sections_base_ + raw.st_shndx);
    }
    entry.info = raw.st_info;
    entry.source = source;

    const Spelling spelling = spelled(*text);
    entry.is_default = spelling.is_default;
    if (!spelling.version.empty()) {
      entry.version =
          entry.name + static_cast<std::uint32_t>(spelling.version.data() - text->data());
    } else if (auto number = read<std::uint16_t>(versions.versym, i * sizeof(std::uint16_t))) {
      entry.is_default = (*number & 0x8000) == 0;
      const std::size_t index = *number & 0x7fff;
      if (index < known_versions && text_at(strings, version_name_at[index])) {
        entry.version = version_name_at[index] == 0 ? 0 : *base + version_name_at[index];
      }
    }
    *out++ = entry;
  }
  symbols_.count_ = static_cast<std::size_t>(out - array_of<Symbols::Entry>(symbols_.entries_));
  if (!symbols_.entries_.try_resize(symbols_.count_ * sizeof(Symbols::Entry))) return no_memory();
  if (symbols_.count_ != 0 && symbols_.source_ == SymbolSource::none) symbols_.source_ = source;
  return {};
}

Result<Symbols> SymbolsBuilder::finish(std::uint64_t bias) {
  symbols_.bias_ = bias;
  if (auto done = index_names(); !done) return pass(done);
  if (auto done = index_addresses(); !done) return pass(done);
  return std::move(symbols_);
}

Status SymbolsBuilder::index_names() {
  const std::size_t count = symbols_.count_;
  const std::size_t buckets = std::bit_ceil(std::max<std::size_t>(count, 1));
  if (!symbols_.heads_.try_resize(buckets * sizeof(std::uint32_t)) ||
      !symbols_.next_.try_resize(count * sizeof(std::uint32_t))) {
    return no_memory();
  }
  auto* heads = array_of<std::uint32_t>(symbols_.heads_);
  auto* next = array_of<std::uint32_t>(symbols_.next_);
  std::fill(heads, heads + buckets, none);
  // From the last to the first, each put in front: a chain is in the order of the table.
  for (std::size_t i = count; i-- > 0;) {
    std::uint32_t& head = heads[bucket_of(symbols_.name(symbols_.entries()[i]), buckets)];
    next[i] = head;
    head = static_cast<std::uint32_t>(i);
  }
  return {};
}

Status SymbolsBuilder::index_addresses() {
  if (!symbols_.by_address_.try_resize(symbols_.count_ * sizeof(Symbols::Place))) {
    return no_memory();
  }
  auto* places = array_of<Symbols::Place>(symbols_.by_address_);
  const Symbols::Entry* entries = symbols_.entries();
  std::size_t count = 0;
  for (std::size_t i = 0; i < symbols_.count_; ++i) {
    if (entries[i].has_address) places[count++] = {static_cast<std::uint32_t>(i), none};
  }
  // The best of those at one address comes last: at() looks at it first.
  auto rank = [](const Symbols::Entry& e) {
    const int typed = e.type() == STT_NOTYPE ? 0 : 1;
    const int bound = e.bind() == STB_LOCAL ? 0 : e.bind() == STB_WEAK ? 1 : 2;
    return (e.size != 0 ? 8 : 0) + 4 * typed + bound;
  };
  std::sort(places, places + count, [&](const Symbols::Place& a, const Symbols::Place& b) {
    const Symbols::Entry& x = entries[a.entry];
    const Symbols::Entry& y = entries[b.entry];
    if (x.value != y.value) return x.value < y.value;
    const int x_rank = rank(x);
    const int y_rank = rank(y);
    return x_rank != y_rank ? x_rank < y_rank : a.entry > b.entry;
  });
  for (std::size_t i = 1; i < count; ++i) {
    const std::uint64_t value = entries[places[i].entry].value;
    auto around = static_cast<std::uint32_t>(i - 1);
    while (around != none && entries[places[around].entry].end() <= value) {
      around = places[around].around;
    }
    places[i].around = around;
  }
  symbols_.addresses_ = count;
  return {};
}

}  // namespace molt::elf
