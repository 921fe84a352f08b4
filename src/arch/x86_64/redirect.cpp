#include "arch/x86_64/redirect.hpp"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "arch/x86_64/displace.hpp"
#include "arch/x86_64/emit.hpp"
#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/refuse.hpp"
#include "arch/x86_64/trap.hpp"
#include "base/memory.hpp"
#include "base/poison.hpp"

namespace molt::arch {
namespace {

constexpr std::byte int3{0xcc};
constexpr std::size_t most = 5;

using Bytes5 = std::array<std::byte, most>;

// e9 rel32, at `at`.
Bytes5 long_jump(CodeAddress at, CodeAddress target) {
  Bytes5 bytes;
  Emitter code(at, bytes);
  code.bytes({0xe9});
  code.rel32(target);
  return bytes;
}

// eb to the padding in front: -7, or -11 behind an endbr64. What is left of it when it is entered in
// its middle, f9 stc or f5 cmc, does nothing that matters.
std::byte short_distance(const Entry& entry) {
  return static_cast<std::byte>(entry.padding - (entry.site + 2));
}

Bytes5 original_bytes(const Entry& entry) {
  Bytes5 bytes;
  std::copy_n(entry.original.begin(), most, bytes.begin());
  return bytes;
}

// The five bytes at the site when the redirect has this form; only as many as the form has count.
Bytes5 site_bytes(const Redirect& redirect, RedirectForm form, CodeAddress target) {
  switch (form) {
    case RedirectForm::straight:
      return long_jump(redirect.entry.site, target);
    case RedirectForm::short_jump: {
      Bytes5 bytes = original_bytes(redirect.entry);
      bytes[0] = std::byte{0xeb};
      bytes[1] = short_distance(redirect.entry);
      return bytes;
    }
    case RedirectForm::absent:
      break;
  }
  return original_bytes(redirect.entry);
}

bool holds(CodeAddress at, std::span<const std::byte> bytes) {
  return std::memcmp(reinterpret_cast<const void*>(at), bytes.data(), bytes.size()) == 0;
}

bool has_padding(const Redirect& redirect) { return redirect.entry.padding != 0; }

Bytes5 padding_bytes(const Redirect& redirect) {
  return redirect.padding_written ? long_jump(redirect.entry.padding, redirect.landing.address)
                                  : redirect.entry.padding_original;
}

void point(const Redirect& redirect, CodeAddress target) {
  __atomic_store_n(redirect.cell, target, __ATOMIC_RELEASE);
}

// How one edit is written.
struct Step {
  enum class Way {
    cell,   // one aligned store to data
    bytes,  // two bytes, each harmless by itself
    trap,   // int3 first
  };
  Redirect* redirect;
  Way way;
  std::size_t size;       // of what changes at the site
  bool proof;             // old instructions have boundaries inside
  RedirectForm form;      // afterwards
  CodeAddress target;     // afterwards
  CodeAddress meanwhile;  // where threads go that meet the int3
  Bytes5 before, after;

  CodeAddress site() const { return redirect->entry.site; }
};

Result<Step> plan(const Edit& edit) {
  Redirect& redirect = *edit.redirect;
  const Entry& entry = redirect.entry;
  Step step{};
  step.redirect = &redirect;
  step.target = edit.target;
  step.meanwhile = edit.target;
  auto impossible = [](const char* why) { return fail(EINVAL, "%s", why); };

  switch (edit.change) {
    case Change::install:
      if (redirect.form != RedirectForm::absent)
        return impossible("the entry is redirected already");
      step.form = has_padding(redirect) ? RedirectForm::short_jump : RedirectForm::straight;
      step.way = entry.kind == EntryKind::prepared ? Step::Way::bytes : Step::Way::trap;
      step.proof = step.way == Step::Way::trap && entry.boundaries != 0;
      break;
    case Change::retarget:
      if (redirect.form == RedirectForm::absent) return impossible("the entry is not redirected");
      step.form = redirect.form;
      step.way = redirect.form == RedirectForm::short_jump ? Step::Way::cell : Step::Way::trap;
      break;
    case Change::straighten:
      if (redirect.form != RedirectForm::short_jump)
        return impossible("the entry has no short jump");
      if (entry.straight_boundaries == 0xff) {
        return refuse(Refusal::too_short, "there is no room for a jump of five bytes");
      }
      step.form = RedirectForm::straight;
      step.way = Step::Way::trap;
      step.proof = true;
      if (step.target == 0) step.target = step.meanwhile = redirect.target;
      break;
    case Change::remove:
      if (redirect.form == RedirectForm::absent) return impossible("the entry is not redirected");
      step.form = RedirectForm::absent;
      step.way = redirect.form == RedirectForm::short_jump && entry.kind == EntryKind::prepared
                     ? Step::Way::bytes
                     : Step::Way::trap;
      step.target = 0;
      step.meanwhile = redirect.original;
      break;
  }
  bool five = redirect.form == RedirectForm::straight || step.form == RedirectForm::straight;
  step.size = five ? most : 2;
  if (step.form == RedirectForm::straight && !reaches(entry.site + most, step.target)) {
    return fail(ERANGE, "the target is more than 2 GiB away from the entry");
  }
  step.before = site_bytes(redirect, redirect.form, redirect.target);
  step.after = site_bytes(redirect, step.form, step.target);
  return step;
}

// The writes of one commit(), in the order of the header's protocols, and the way back.
class Commit {
 public:
  Commit(TextWriter& writer, std::vector<Step>& steps) : writer_(writer), steps_(steps) {}

  Status run(Witness& witness);

 private:
  template <class F>
  Status each(Step::Way way, F&& f) {
    for (Step& step : steps_) {
      if (step.way != way) continue;
      if (Status done = f(step); !done) return done;
    }
    return {};
  }
  bool any(Step::Way way) const {
    return std::ranges::any_of(steps_, [&](const Step& step) { return step.way == way; });
  }
  Status arm();
  void disarm();
  Status close(Witness& witness);
  Status open();
  void take_back();

  TextWriter& writer_;
  std::vector<Step>& steps_;
};

Status Commit::arm() {
  return each(Step::Way::trap, [](Step& step) { return trap_arm(step.site(), step.meanwhile); });
}

void Commit::disarm() {
  (void)each(Step::Way::trap, [](Step& step) {
    trap_disarm(step.site());
    return Status{};
  });
}

// Write 1: nobody enters any more, and nobody is inside.
Status Commit::close([[maybe_unused]] Witness& witness) {
  for (Step& step : steps_) {
    Redirect& redirect = *step.redirect;
    if (step.form != RedirectForm::short_jump || redirect.form != RedirectForm::absent) continue;
    point(redirect, step.target);
    if (redirect.padding_written) continue;
    auto jump = long_jump(redirect.entry.padding, redirect.landing.address);
    if (auto wrote = writer_.write(redirect.entry.padding, jump); !wrote) return wrote;
    redirect.padding_written = true;
  }
#ifndef MOLT_MUTATE_NO_INT3
  auto wrote =
      each(Step::Way::trap, [&](Step& step) { return writer_.write_byte(step.site(), int3); });
  if (!wrote) return wrote;
#endif
  if (!any(Step::Way::trap)) return {};
  if (!serialise_cores()) return fail(EIO, "the cores can no longer be serialised");
  if (auto ours = trap_stay(); !ours) return ours;

#ifndef MOLT_MUTATE_NO_PROOF
  std::vector<CodeRange> inside;
  for (const Step& step : steps_) {
    if (step.proof) inside.push_back({step.site() + 1, step.site() + step.size});
  }
  if (!inside.empty()) {
    if (auto outside = witness.no_thread_within(inside); !outside) return outside;
  }
#endif
  return trap_stay();
}

// Writes 2 and 3.
Status Commit::open() {
  auto tail = [&](Step& step) {
    return writer_.write(step.site() + 1, std::span(step.after).subspan(1, step.size - 1));
  };
  auto head = [&](Step& step) { return writer_.write_byte(step.site(), step.after[0]); };
  // Undoing a short jump, its first byte is the one to go first: eb 90 would lead astray.
  auto head_first = [](const Step& step) {
#ifdef MOLT_MUTATE_HEAD_FIRST
    return step.form != RedirectForm::absent;
#else
    return step.form == RedirectForm::absent;
#endif
  };
  auto one = [&](Step& step) { return head_first(step) ? head(step) : tail(step); };
  auto other = [&](Step& step) { return head_first(step) ? tail(step) : head(step); };

  if (auto wrote = each(Step::Way::trap, tail); !wrote) return wrote;
  if (auto wrote = each(Step::Way::bytes, one); !wrote) return wrote;
  if (!serialise_cores()) return fail(EIO, "the cores can no longer be serialised");
  if (auto wrote = each(Step::Way::trap, head); !wrote) return wrote;
  if (auto wrote = each(Step::Way::bytes, other); !wrote) return wrote;
  if (!serialise_cores()) return fail(EIO, "the cores can no longer be serialised");
  return {};
}

// R3. Safe from wherever it broke off. What cannot be written here either stays an int3 whose
// destination stays, or a jump to a landing which leads back: slow, and right. Nobody can go on from there.
void Commit::take_back() {
  for (const Step& step : steps_) {
    const Redirect& redirect = *step.redirect;
    if (step.form == RedirectForm::short_jump && redirect.form == RedirectForm::absent) {
      point(redirect, redirect.original);
    }
  }
  (void)each(Step::Way::trap, [&](Step& step) { return writer_.write_byte(step.site(), int3); });
  (void)each(Step::Way::bytes, [&](Step& step) {
    // Harmless under either first byte's protocol: xx while eb is to go, the NOP's once it has.
    bool to_short = step.form == RedirectForm::short_jump;
    return to_short ? writer_.write_byte(step.site(), step.before[0])
                    : writer_.write_byte(step.site() + 1, step.before[1]);
  });
  bool serialised = serialise_cores();
  (void)each(Step::Way::trap, [&](Step& step) {
    return writer_.write(step.site() + 1, std::span(step.before).subspan(1, step.size - 1));
  });
  (void)each(Step::Way::bytes, [&](Step& step) {
    bool to_short = step.form == RedirectForm::short_jump;
    return to_short ? writer_.write_byte(step.site() + 1, step.before[1])
                    : writer_.write_byte(step.site(), step.before[0]);
  });
  serialised = serialise_cores() && serialised;
  for (Step& step : steps_) {
    if (step.way != Step::Way::trap) continue;
    auto bytes = std::span(step.before).first(step.size);
    if (serialised && holds(step.site() + 1, bytes.subspan(1)) &&
        writer_.write_byte(step.site(), step.before[0])) {
      continue;
    }
    // To what a call did before: where the redirect led, or the original's copy.
    (void)trap_arm(step.site(), step.redirect->form == RedirectForm::absent
                                    ? step.redirect->original
                                    : step.redirect->target);
  }
  (void)serialise_cores();
  for (Step& step : steps_) {
    if (step.way == Step::Way::trap && holds(step.site(), std::span(step.before).first(1))) {
      trap_disarm(step.site());
    }
    if (!holds(step.site(), std::span(step.before).first(step.size))) {
      poison(
          "the entry of the function at %#zx can be written no more: neither as it was nor as it "
          "was to be",
          step.redirect->entry.function);
    }
  }
}

Status Commit::run(Witness& witness) {
  if (any(Step::Way::trap)) {
    if (auto alone = witness.no_thread_blocks_sigtrap(); !alone) return alone;
    if (auto ready = trap_prepare(); !ready) return ready;
    Status armed = arm();
    if (armed && trap_host_may_block()) armed = witness.no_thread_blocks_sigtrap();
    if (!armed) {
      disarm();
      return armed;
    }
  }
  if (any(Step::Way::trap) || any(Step::Way::bytes)) {
    auto done = close(witness);
    if (done) done = open();
    if (!done) {
      take_back();
      return done;
    }
  }
  for (Step& step : steps_) {
    Redirect& redirect = *step.redirect;
    // For threads that are on their way through padding and landing, whatever the form is now.
    if (redirect.cell != nullptr) {
      point(redirect, step.form == RedirectForm::absent ? redirect.original : step.target);
    }
    redirect.form = step.form;
    redirect.target = step.target;
  }
  disarm();
  return {};
}

}  // namespace

Status prepare(CodePool& pool, TextWriter& writer, const Entry& entry, Redirect& redirect) {
  CodeAddress begin = entry.padding != 0 ? entry.padding : entry.site;
  if (auto mapped =
          writer.check({begin, entry.site + std::max<std::size_t>(entry.displaced, most)});
      !mapped) {
    return mapped;
  }
  Redirect made;
  made.entry = entry;

  // Its size does not depend on where it lies, as long as that is aligned as a slot is.
  std::byte code[displaced_copy_size];
  auto size = displace(entry, entry.function & ~std::uintptr_t{15}, code);
  if (!size) return pass(size);
  auto undo = [&](const tl::unexpected<Error>& why) {
    release(pool, writer, made);
    return why;
  };

  auto copy = pool.allocate(entry.referenced, *size);
  if (!copy) return pass(copy);
  made.copy = *copy;
  size = displace(entry, copy->address, code);
  if (!size) return undo(pass(size));
  if (auto done = pool.publish(writer, *copy, std::span(code).first(*size)); !done) {
    return undo(pass(done));
  }
  made.original = copy->address;
  made.copy_size = *size;

  if (entry.padding != 0) {
    auto landing = pool.allocate(entry.referenced, jump_size);
    if (!landing) return undo(pass(landing));
    made.landing = *landing;
    made.cell = pool.allocate_cell(*landing);
    if (made.cell == nullptr) {
      return undo(refuse(Refusal::no_near_memory, "no word left beside the trampolines"));
    }
    point(made, made.original);
    std::byte jump[jump_size];
    const std::size_t bytes = write_cell_jump(landing->address, made.cell, jump);
    if (auto done = pool.publish(writer, *landing, std::span(jump).first(bytes)); !done) {
      return undo(pass(done));
    }
  }
  redirect = made;
  return {};
}

void release(CodePool& pool, TextWriter& writer, Redirect& redirect, bool unmapped) {
  if (redirect.padding_written && !unmapped) {
    (void)writer.write(redirect.entry.padding, redirect.entry.padding_original);
  }
  if (redirect.copy) pool.free(writer, redirect.copy);
  if (redirect.landing) pool.free(writer, redirect.landing);
  if (redirect.cell != nullptr) pool.free_cell(redirect.cell);
  redirect = Redirect{};
}

Status commit(TextWriter& writer, std::span<const Edit> edits, Witness& witness) {
  if (Status ok = operable(); !ok) return ok;
  if (auto memory = memory_available(); !memory) return memory;
  std::vector<Step> steps;
  for (const Edit& edit : edits) {
    if (!intact(*edit.redirect)) {
      return refuse(Refusal::changed,
                    "somebody else has written to its entry, at %#zx; have that taken back first",
                    edit.redirect->entry.function);
    }
    auto step = plan(edit);
    if (!step) return pass(step);
    steps.push_back(*step);
  }
  // Trampolines were published meanwhile, where cores may have fetched something else before.
  if (!serialise_cores()) {
    return fail(ENOTSUP,
                "membarrier is denied and this processor leaves no other way to make the cores see "
                "new code");
  }
  return Commit(writer, steps).run(witness);
}

bool needs_trap(std::span<const Edit> edits) {
  return std::ranges::any_of(edits, [](const Edit& edit) {
    auto step = plan(edit);
    return step && step->way == Step::Way::trap;
  });
}

bool needs_proof(std::span<const Edit> edits) {
  return std::ranges::any_of(edits, [](const Edit& edit) {
    auto step = plan(edit);
    return step && step->proof;
  });
}

bool intact(const Redirect& redirect) {
  const Entry& entry = redirect.entry;
  auto now = site_bytes(redirect, redirect.form, redirect.target);
  std::size_t changed = redirect.form == RedirectForm::straight     ? most
                        : redirect.form == RedirectForm::short_jump ? 2
                                                                    : 0;
  if (changed != 0 && !holds(entry.site, std::span(now).first(changed))) return false;
  std::size_t whole = std::max<std::size_t>(entry.displaced, changed);
  if (!holds(entry.site + changed, std::span(entry.original).subspan(changed, whole - changed))) {
    return false;
  }
  return !has_padding(redirect) || holds(entry.padding, padding_bytes(redirect));
}

}  // namespace molt::arch
