#include "control/tree.hpp"

#include <algorithm>
#include <cerrno>

namespace molt::control {
namespace {

std::vector<std::string> steps_of(std::string_view path) {
  std::vector<std::string> steps;
  while (!path.empty()) {
    const std::size_t slash = std::min(path.find('/'), path.size());
    if (slash > 0) steps.emplace_back(path.substr(0, slash));
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  return steps;
}

tl::unexpected<Error> no_such_path(std::string_view path) {
  return fail(ENOENT, "there is no %.*s; `molt tree` shows what there is",
              static_cast<int>(path.size()), path.data());
}

tl::unexpected<Error> not_an_attribute(std::string_view path) {
  if (steps_of(path).empty()) {
    return fail(EISDIR,
                "a path of an attribute is wanted, such as host/name; `molt tree` shows all");
  }
  return fail(EISDIR, "%.*s is an object, not an attribute; `molt tree %.*s` shows its attributes",
              static_cast<int>(path.size()), path.data(), static_cast<int>(path.size()),
              path.data());
}

std::string joined(const std::string& parent, const std::string& name) {
  return parent.empty() ? name : parent + "/" + name;
}

bool is_at_or_below(const std::string& path, const std::string& top) {
  return top.empty() || path == top ||
         (path.size() > top.size() && path[top.size()] == '/' && path.starts_with(top));
}

void append(std::vector<Node>& nodes, const Object& object, const Attribute& attribute) {
  Node node{joined(object.path(), attribute.name), Node::attribute, attribute.mode, false, "", ""};
  if (attribute.show != nullptr) {
    if (auto value = get_attribute(object, attribute.name)) {
      node.has_value = true;
      node.value = std::move(*value);
    }
  }
  nodes.push_back(std::move(node));
}

void append(std::vector<Node>& nodes, const std::string& path, const std::string& target) {
  nodes.push_back({path, Node::link, 0777, false, "", target});
}

void append(std::vector<Node>& nodes, const Object& object) {
  if (!object.path().empty()) nodes.push_back({object.path(), Node::object, 0755, false, "", ""});
  for (const Attribute& attribute : attributes_of(object)) append(nodes, object, attribute);
  for (const Link& link : links_of(object)) {
    append(nodes, joined(object.path(), link.name), link.target);
  }
}

}  // namespace

std::string path_name(std::string name) {
  std::replace(name.begin(), name.end(), '/', '!');
  return name;
}

bool Tree::ByPath::operator()(const std::string& a, const std::string& b) const {
  const auto rank = [](char c) { return c == '/' ? 0 : static_cast<unsigned char>(c) + 1; };
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(),
                                      [&](char x, char y) { return rank(x) < rank(y); });
}

void Tree::add(const Type& type, const std::string& path, const std::string& subject,
               const Folder& children) {
  remove(path);
  Kept fresh{make_object(type, path, subject), children};
  std::lock_guard lock(mutex_);
  kept_.insert_or_assign(path, std::move(fresh));
}

void Tree::remove(const std::string& path) {
  std::vector<Kept> removed;  // goes after the lock: a last put releases the object
  std::lock_guard lock(mutex_);
  auto at = kept_.lower_bound(path);
  while (at != kept_.end() && is_at_or_below(at->first, path)) {
    at->second.object->remove();
    removed.push_back(std::move(at->second));
    at = kept_.erase(at);
  }
}

bool Tree::has(const std::string& path) {
  std::lock_guard lock(mutex_);
  return kept_.find(path) != kept_.end();
}

std::vector<std::string> Tree::below(const std::string& path) {
  std::vector<std::string> paths;
  std::lock_guard lock(mutex_);
  for (auto at = kept_.upper_bound(path); at != kept_.end() && is_at_or_below(at->first, path);
       ++at) {
    paths.push_back(at->first);
  }
  return paths;
}

Ref Tree::child(const std::string& parent, const std::string& name) {
  Folder folder;
  {
    std::lock_guard lock(mutex_);
    if (const auto kept = kept_.find(joined(parent, name)); kept != kept_.end()) {
      return kept->second.object;
    }
    if (const auto kept = kept_.find(parent); kept != kept_.end()) folder = kept->second.children;
  }
  if (folder.type == nullptr) return {};
  std::string subject = name;
  if (name.find('!') != std::string::npos) {
    for (std::string& other : folder.names()) {
      if (path_name(other) == name) subject = std::move(other);
    }
  }
  Ref made = make_object(*folder.type, joined(parent, name), subject);
  return made->is_present() ? made : Ref();
}

std::vector<Tree::Kept> Tree::kept_from(const std::string& path) {
  std::vector<Kept> found;
  std::lock_guard lock(mutex_);
  for (auto at = kept_.lower_bound(path); at != kept_.end() && is_at_or_below(at->first, path);
       ++at) {
    found.push_back(at->second);
  }
  return found;
}

Result<Tree::Place> Tree::resolve(std::string_view path) {
  Place place{child("", ""), "", ""};
  const std::vector<std::string> steps = steps_of(path);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!place.object) return no_such_path(path);
    place.link.clear();
    if (Ref next = child(place.object->path(), steps[i])) {
      place.object = std::move(next);
      continue;
    }
    const std::vector<Link> links = links_of(*place.object);
    const auto link =
        std::find_if(links.begin(), links.end(), [&](const Link& l) { return l.name == steps[i]; });
    if (link != links.end()) {
      auto target = open(link->target);
      if (!target) return pass(target);
      place.link = joined(place.object->path(), link->name);
      place.object = std::move(*target);
    } else if (i + 1 == steps.size()) {
      place.attribute = steps[i];
    } else {
      return no_such_path(path);
    }
  }
  if (!place.object) return no_such_path(path);
  return place;
}

Result<Ref> Tree::open(std::string_view path) {
  auto place = resolve(path);
  if (!place) return pass(place);
  if (!place->attribute.empty()) return no_such_path(path);
  return std::move(place->object);
}

Result<std::string> Tree::get(std::string_view path) {
  auto place = resolve(path);
  if (!place) return pass(place);
  if (place->attribute.empty()) return not_an_attribute(path);
  return get_attribute(*place->object, place->attribute);
}

Status Tree::set(std::string_view path, const std::string& value) {
  auto place = resolve(path);
  if (!place) return pass(place);
  if (place->attribute.empty()) return not_an_attribute(path);
  return set_attribute(*place->object, place->attribute, value);
}

Result<std::vector<Node>> Tree::walk(std::string_view path) {
  auto place = resolve(path);
  if (!place) return pass(place);
  const Object& top = *place->object;
  std::vector<Node> nodes;

  if (!place->attribute.empty()) {
    for (const Attribute& attribute : attributes_of(top)) {
      if (attribute.name == place->attribute) append(nodes, top, attribute);
    }
    if (nodes.empty()) return no_such_path(path);
    return nodes;
  }
  if (!place->link.empty()) {
    append(nodes, place->link, top.path());
    return nodes;
  }

  const std::vector<Kept> all = kept_from(top.path());
  if (all.empty()) append(nodes, top);  // a folder's child
  for (const Kept& kept : all) {
    append(nodes, *kept.object);
    if (kept.children.type == nullptr) continue;
    for (const std::string& subject : kept.children.names()) {
      const Ref made = make_object(*kept.children.type,
                                   joined(kept.object->path(), path_name(subject)), subject);
      if (made->is_present()) append(nodes, *made);
    }
  }
  return nodes;
}

}  // namespace molt::control
