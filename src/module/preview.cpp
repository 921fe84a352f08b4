#include "module/preview.hpp"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <map>

namespace molt::module {
namespace {

constexpr std::uint64_t most_items = 4096;

// Structures of the image as they will be in memory.
class Reader {
 public:
  explicit Reader(const elf::Image& image) : image_(image) {
    image.for_each_relocation([&](const Elf64_Rela& r) { relocated_[r.r_offset] = r; });
  }

  template <class T>
  bool read(std::uint64_t address, T& value) const {
    auto bytes = image_.at_address(address, sizeof value);
    if (bytes) std::memcpy(&value, bytes->data(), sizeof value);
    return bytes.has_value();
  }
  // The image address that the pointer at `address` will point to; 0 for null.
  std::uint64_t pointer(std::uint64_t address) const {
    if (auto at = relocated_.find(address); at != relocated_.end()) {
      const Elf64_Rela& r = at->second;
      std::uint64_t symbol = ELF64_R_SYM(r.r_info);
      if (symbol == 0) return static_cast<std::uint64_t>(r.r_addend);
      const elf::SymbolTable& table = image_.dynamic_symbols();
      if (symbol >= table.size() || !table[symbol].defined) return 0;
      return table[symbol].value + static_cast<std::uint64_t>(r.r_addend);
    }
    std::uint64_t value = 0;  // DT_RELR: what is added to is in its place
    return read(address, value) ? value : 0;
  }
  std::string text(std::uint64_t address) const {
    std::string out;
    char c = 0;
    for (; address != 0 && out.size() < most_items && read(address, c) && c != 0; ++address)
      out += c;
    return out;
  }

 private:
  const elf::Image& image_;
  std::map<std::uint64_t, Elf64_Rela> relocated_;
};

}  // namespace

std::unique_ptr<Preview> Preview::of(const elf::Image& image) {
  std::uint64_t at = 0;
  for (elf::Symbol symbol : image.dynamic_symbols()) {
    if (symbol.defined && symbol.name == MOLT_MODULE_SYMBOL) at = symbol.value;
  }
  Reader reader(image);
  auto preview = std::make_unique<Preview>();
  molt_module& m = preview->module_;
  if (at == 0 || !reader.read(at, m) || m.size < sizeof m) return nullptr;
  auto text = [&](std::uint64_t field) {
    return preview->texts_.emplace_back(reader.text(reader.pointer(field))).c_str();
  };
  // Copies the array between two pointers of the descriptor; `mend` replaces the file's pointers. What
  // has no name there gets it by a constructor: that much cannot be checked.
  auto copy = [&]<class T>(std::size_t begin_field, std::vector<T>& items, auto&& mend) {
    std::uint64_t begin = reader.pointer(at + begin_field);
    std::uint64_t end = reader.pointer(at + begin_field + sizeof(void*));
    if (begin == 0 || end < begin || (end - begin) / sizeof(T) > most_items) return;
    for (; begin + sizeof(T) <= end; begin += sizeof(T)) {
      T item;
      if (!reader.read(begin, item)) return;
      if (mend(item, begin)) items.push_back(item);
    }
  };
  copy(offsetof(molt_module, callbacks), preview->callbacks_,
       [&](molt_callback& c, std::uint64_t a) {
         c.hook = text(a + offsetof(molt_callback, hook));
         c.signature = text(a + offsetof(molt_callback, signature));
         c.fn = nullptr;
         c.bound = nullptr;
         return c.hook[0] != '\0';
       });
  copy(offsetof(molt_module, imports), preview->imports_, [&](molt_import& i, std::uint64_t a) {
    i.name = text(a + offsetof(molt_import, name));
    i.signature = text(a + offsetof(molt_import, signature));
    i.slot = &preview->slot_;
    return i.name[0] != '\0';
  });
  copy(offsetof(molt_module, exports), preview->exports_, [&](molt_export& e, std::uint64_t a) {
    e.name = text(a + offsetof(molt_export, name));
    e.signature = text(a + offsetof(molt_export, signature));
    e.address = nullptr;
    return e.name[0] != '\0';
  });
  copy(offsetof(molt_module, params), preview->params_, [&](molt_param& p, std::uint64_t a) {
    p = {};
    p.name = text(a + offsetof(molt_param, name));
    return true;
  });

  std::uint64_t state = reader.pointer(at + offsetof(molt_module, state));
  bool has_state = state != 0 && reader.read(state, preview->state_);
  bool has_restore = reader.pointer(at + offsetof(molt_module, restore)) != 0;
  m = {};
  m.state = has_state ? &preview->state_ : nullptr;
  if (has_restore) m.restore = [](const molt_state*) { return -ENOSYS; };
  auto& p = *preview;
  m.callbacks = p.callbacks_.data();
  m.callbacks_end = p.callbacks_.data() + p.callbacks_.size();
  m.imports = p.imports_.data();
  m.imports_end = p.imports_.data() + p.imports_.size();
  m.exports = p.exports_.data();
  m.exports_end = p.exports_.data() + p.exports_.size();
  m.params = p.params_.data();
  m.params_end = p.params_.data() + p.params_.size();
  return preview;
}

}  // namespace molt::module
