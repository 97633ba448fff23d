// From text to instructions whose operands are resolved.
#include <cctype>
#include <cstdlib>
#include <set>
#include <sstream>
#include <unordered_map>

#include "machine.h"

namespace ptx {

const std::array<const char*, 11> kKnown{"%tid.x",    "%tid.y",    "%tid.z",    "%ctaid.x", "%ctaid.y", "%ctaid.z",
                                         "%nctaid.x", "%nctaid.y", "%nctaid.z", "%ntid.x",  "%laneid"};

namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

class Parser {
 public:
  Parser() {
    for (const char* name : kKnown) index_of(name);
  }

  Program parse(const std::string& source) {
    std::istringstream lines(source);
    int depth = 0;
    bool ended = false;
    for (std::string line; !ended && std::getline(lines, line);) {
      if (line.find(".loc\t") != std::string::npos) where_ = trimmed(line.substr(line.find("//") + 2));
      line = trimmed(line.substr(0, line.find("//")));
      const size_t entry = line.find(".entry ");
      if (entry != std::string::npos) program_.name = line.substr(entry + 7, line.find('(') - entry - 7);
      if (line == "{") depth++;
      else if (line == "}") ended = --depth == 0;
      else if (depth && line.rfind(".reg", 0) == 0) name_registers(line);
      else if (depth && !line.empty() && line[0] != '.') take(line);
    }
    for (const auto& [at, label] : jumps_) {
      if (!labels_.count(label)) throw Error("no label " + label);
      program_.instructions[at].target = labels_[label];
    }
    program_.registers = static_cast<uint32_t>(registers_.size());
    return std::move(program_);
  }

 private:
  Program program_;
  std::unordered_map<std::string, uint32_t> registers_;
  std::unordered_map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::string where_;  // in the source of the kernel
  std::set<std::string> names_;  // of registers without the usual sign, as some that are declared in braces; less digits

  void name_registers(const std::string& line) {
    const size_t begin = line.find_last_of(" \t") + 1;
    names_.insert(line.substr(begin, line.find_first_of("<0123456789;", begin) - begin));
  }

  uint32_t index_of(const std::string& name) {
    return registers_.emplace(name, static_cast<uint32_t>(registers_.size())).first->second;
  }

  // A label or an instruction.
  void take(std::string line) {
    if (line.back() == ':') {
      labels_[line.substr(0, line.size() - 1)] = static_cast<int>(program_.instructions.size());
      return;
    }
    Instruction made;
    made.text = line, made.where = where_;
    if (line.back() != ';') throw Error("no instruction: " + line);
    line.pop_back();
    if (line[0] == '@') {
      made.unless = line[1] == '!';
      const size_t begin = made.unless ? 2 : 1, end = line.find_first_of(" \t");
      made.guard = static_cast<int>(index_of(line.substr(begin, end - begin)));
      line = trimmed(line.substr(end));
    }
    const size_t end = std::min(line.find_first_of(" \t"), line.size());
    const std::string name = line.substr(0, end), rest = trimmed(line.substr(end));
    const auto found = handlers().find(name);
    if (found == handlers().end()) throw Error("unknown instruction: " + made.text);
    made.run = found->second;
    if (name.rfind("bra", 0) == 0) jumps_.emplace_back(program_.instructions.size(), rest);
    else add_operands(made, rest);
    program_.instructions.push_back(std::move(made));
  }

  void add_operands(Instruction& made, const std::string& text) {
    size_t addresses = 0;
    for (size_t at = text.find_first_not_of(" \t,"); at != std::string::npos; at = text.find_first_not_of(" \t,", at)) {
      const char closing = text[at] == '{' ? '}' : text[at] == '[' ? ']' : ',';
      const size_t end = std::min(text.find(closing, at), text.size());
      const std::string inner = trimmed(text.substr(at + (closing != ','), end - at - (closing != ',')));
      if (closing == ']') {
        const size_t plus = inner.find('+');
        made.operands.push_back({operand(trimmed(inner.substr(0, plus)))});
        if (plus != std::string::npos) made.offsets[addresses] = std::strtoll(inner.c_str() + plus + 1, nullptr, 0);
        addresses++;
      } else {
        made.operands.push_back(several(inner, closing == '}' ? ',' : '|'));
      }
      at = std::min(end + 1, text.size());
    }
  }

  std::vector<Operand> several(const std::string& text, char separator) {
    std::vector<Operand> found;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, separator);) found.push_back(operand(trimmed(part)));
    return found;
  }

  Operand operand(const std::string& text) {
    Operand made;
    if (text == "_") return made;
    if (text[0] == '%' || names_.count(text.substr(0, text.find_first_of("0123456789")))) {
      made.kind = Operand::kRegister;
      made.index = index_of(text);
      return made;
    }
    made.kind = Operand::kNumber;
    made.number.fill(number(text));
    return made;
  }

  static uint64_t number(const std::string& text) {
    const size_t param = text.find("_param_");
    if (param != std::string::npos) return std::strtoull(text.c_str() + param + 7, nullptr, 10);
    if (text == "global_smem") return kSharedBase;
    if (text.rfind("0f", 0) == 0 || text.rfind("0d", 0) == 0) return std::strtoull(text.c_str() + 2, nullptr, 16);
    if (text.find('.') != std::string::npos) return bits_of(std::strtof(text.c_str(), nullptr));
    if (text[0] == '-') return static_cast<uint64_t>(std::strtoll(text.c_str(), nullptr, 0));
    if (std::isdigit(static_cast<unsigned char>(text[0]))) return std::strtoull(text.c_str(), nullptr, 0);
    throw Error("unknown operand: " + text);
  }
};

}  // namespace

Program parse(const std::string& source) { return Parser().parse(source); }

const Handlers& handlers() {
  static const Handlers all = [] {
    Handlers made;
    for (auto add : {add_arithmetic, add_small_numbers, add_memory, add_exchange, add_products}) add(made);
    return made;
  }();
  return all;
}

}  // namespace ptx
