// patch_file.cpp - a patch file (abi/patch_file.hpp) as a module: what differs from a shared object on
// its way into the process. Everything after that is the life of any module.

#include <algorithm>
#include <utility>

#include "base/hash.hpp"
#include "linker/linker.hpp"
#include "module/internal.hpp"
#include "patchfile/patch_file.hpp"

namespace molt::module {
namespace {

const PatchHooks* patch_hooks() {
  Lock lock(manager().mutex);
  return manager().patch_hooks;
}

linker::Options linker_options() {
  linker::Options options;
  if (const PatchHooks* hooks = patch_hooks(); hooks != nullptr)
    options.original_bytes = hooks->original_bytes;
  return options;
}

tl::unexpected<Error> about(const Module& module, const Error& error) {
  return fail(error.code, "%s: %s", module.name.c_str(), error.detail);
}

}  // namespace

bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= MOLT_NAME_MAX && name != "." && name != ".." &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_' || c == '-' || c == '.';
         });
}

Result<Prepared> prepare_patch(const LoadRequest& request, Bytes content) {
  auto file = patchfile::PatchFile::parse(content);
  if (!file) return pass(file);
  namespace info = patch_file::info;
  Prepared p;
  p.is_patch_file = p.livepatch = true;
  p.taint = taint_livepatch;
  p.name = request.name.empty() ? std::string(file->info(info::name)) : request.name;
  if (!valid_name(p.name)) {
    return fail(EINVAL, "'%.60s' is no name for a patch; choose another (--name)", p.name.c_str());
  }
  if (!request.args.empty()) {
    return fail(EINVAL, "a patch file has no parameters, and '%.60s' was given",
                request.args.c_str());
  }
  p.version = file->info(info::patch_version);
  p.license = file->info(info::license);
  p.description = file->info(info::description);
  p.srcversion = p.hash = content_hash(content);
  p.content = std::move(content);
  return p;
}

Result<std::string> name_in_patch(std::span<const std::byte> content) {
  auto file = patchfile::PatchFile::parse(content);
  if (!file) return pass(file);
  return std::string(file->info(patch_file::info::name));
}

Status map_patch(Module& module, std::span<const std::byte> content) {
  auto file = patchfile::PatchFile::parse(content);
  if (!file) return about(module, file.error());
  auto linked = linker::link(*file, linker_options());
  if (!linked) return about(module, linked.error());
  module.linked = std::move(*linked);
  for (const linker::Target& target : module.linked->targets()) {
    if (module.address == 0) module.address = target.whole.begin;
    module.text.add(target.code.begin, target.code.end);
    for (const linker::CodeRange& function : target.functions) {
      module.text.note_entry(function.begin);
    }
  }
  module.size = module.linked->mapped_bytes();
  molt_module& d = module.linked_descriptor;
  d.size = sizeof d;
  d.abi = MOLT_ABI;
  d.magic = MOLT_MAGIC;
  d.name = module.name.c_str();
  d.version = module.version.c_str();
  d.license = module.license.c_str();
  d.description = module.description.c_str();
  d.core = &module.core;
  module.descriptor = &d;
  return {};
}

Status would_link(const Module& module, std::span<const std::byte> content) {
  auto file = patchfile::PatchFile::parse(content);
  if (!file) return about(module, file.error());
  if (Status ok = linker::check(*file, linker_options()); !ok) return about(module, ok.error());
  return {};
}

Status enable_patch(Module& module) {
  const PatchHooks* hooks = patch_hooks();
  if (hooks == nullptr) return fail(ENOTSUP, "%s: no livepatches here", module.name.c_str());
  return hooks->enable(module.descriptor, *module.linked);
}

}  // namespace molt::module
