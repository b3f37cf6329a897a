#include "cli/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "cli/input_history.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
struct EndEditor {
  void operator()(EditLine* editor) const { el_end(editor); }
};
struct EndHistory {
  void operator()(History* history) const { history_end(history); }
};

// libedit decodes and measures characters by the locale. Answers are UTF-8 under any locale, so that is what the
// terminal must understand, and what is typed.
void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}

bool is_control(wchar_t letter) { return letter < 0x20 || (0x7F <= letter && letter < 0xA0); }

}  // namespace

struct LineEditor::State {
  State();

  void mark_pastes(bool is_on) const;
  // Goes below a line that Enter has not ended.
  void break_off() const;

  std::unique_ptr<std::FILE, CloseFile> screen;
  std::unique_ptr<History, EndHistory> history;
  std::unique_ptr<EditLine, EndEditor> editor;
  std::string prompt;
  bool is_interrupted = false;  // by the key
  // As a signal Ctrl-C comes between two lines, or from another program.
  InterruptGuard signals;

 private:
  // With wide names: of the others libedit makes copies that it never frees.
  void bind(const wchar_t* key, const wchar_t* name) { el_wset(editor.get(), EL_BIND, key, name, nullptr); }
  void add_key(const wchar_t* key, const wchar_t* name, unsigned char (*function)(EditLine*, int)) {
    el_wset(editor.get(), EL_ADDFN, name, name, function);
    bind(key, name);
  }

  // What libedit calls.
  static State& of(EditLine* editor);
  static char* show_prompt(EditLine* editor);
  static unsigned char interrupt(EditLine* editor, int key);
  static unsigned char suspend(EditLine* editor, int key);
  static unsigned char break_line(EditLine* editor, int key);
  static unsigned char paste(EditLine* editor, int key);
};

LineEditor::State::State() {
  use_utf8();
  // Of its own, for a buffer: standard error has none, and every character would be a write.
  screen.reset(::fdopen(::dup(is_terminal(STDERR_FILENO) ? STDERR_FILENO : STDOUT_FILENO), "w"));
  history.reset(history_init());
  if (screen) editor.reset(el_init("gemma-run", stdin, screen.get(), screen.get()));
  if (!editor || !history) throw Error("cannot use this terminal for editing; give the messages through a pipe");

  HistEvent event = {};
  ::history(history.get(), &event, H_SETSIZE, static_cast<int>(InputHistory::kMostEntries));
  ::history(history.get(), &event, H_SETUNIQUE, 1);
  el_set(editor.get(), EL_CLIENTDATA, this);
  el_set(editor.get(), EL_HIST, ::history, history.get());
  el_set(editor.get(), EL_PROMPT, &State::show_prompt);
  el_set(editor.get(), EL_EDITOR, "emacs");
  el_set(editor.get(), EL_SIGNAL, 1);
  el_source(editor.get(), nullptr);

  // As keys instead of signals, Ctrl-C and Ctrl-Z cannot come at a wrong moment.
  el_set(editor.get(), EL_SETTY, "-d", "-isig", nullptr);
  add_key(L"^C", L"gemma-interrupt", &State::interrupt);
  add_key(L"^Z", L"gemma-suspend", &State::suspend);
  add_key(L"\\e[200~", L"gemma-paste", &State::paste);
  add_key(L"\\e^J", L"gemma-break-line", &State::break_line);
  bind(L"\\e^M", L"gemma-break-line");
  bind(L"\\e[1;5D", L"ed-prev-word");
  bind(L"\\e[1;5C", L"em-next-word");
}

void LineEditor::State::mark_pastes(bool is_on) const {
  if (!has_escapes(::fileno(screen.get()))) return;
  std::fputs(is_on ? "\x1B[?2004h" : "\x1B[?2004l", screen.get());
  std::fflush(screen.get());
}

void LineEditor::State::break_off() const {
  std::fputs("\n", screen.get());
  std::fflush(screen.get());
}

LineEditor::State& LineEditor::State::of(EditLine* editor) {
  State* state = nullptr;
  el_get(editor, EL_CLIENTDATA, &state);
  return *state;
}

char* LineEditor::State::show_prompt(EditLine* editor) { return of(editor).prompt.data(); }

unsigned char LineEditor::State::interrupt(EditLine* editor, int) {
  of(editor).is_interrupted = true;
  // Enter, which leaves the cursor below the line.
  el_push(editor, "\n");
  return CC_NORM;
}

unsigned char LineEditor::State::suspend(EditLine* editor, int) {
  of(editor).mark_pastes(false);
  ::kill(0, SIGTSTP);
  of(editor).mark_pastes(true);
  return CC_REDISPLAY;
}

unsigned char LineEditor::State::break_line(EditLine* editor, int) {
  return el_insertstr(editor, "\n") == 0 ? CC_REFRESH : CC_ERROR;
}

unsigned char LineEditor::State::paste(EditLine* editor, int) {
  constexpr std::wstring_view kEnd = L"\x1B[201~";
  std::wstring text;
  for (wchar_t letter = 0; !text.ends_with(kEnd) && el_wgetc(editor, &letter) == 1;) text += letter;
  if (text.ends_with(kEnd)) text.resize(text.size() - kEnd.size());
  std::wstring kept;
  for (const wchar_t letter : text) {
    if (letter == L'\r') {
      kept += L'\n';
    } else if (letter == L'\n' || letter == L'\t' || !is_control(letter)) {
      kept += letter;
    }
  }
  return el_winsertstr(editor, kept.c_str()) == 0 ? CC_REFRESH : CC_ERROR;
}

LineEditor::LineEditor(const std::vector<std::string>& history) : state_(std::make_unique<State>()) {
  for (const std::string& entry : history) remember(entry);
}

LineEditor::~LineEditor() = default;

LineEditor::Input LineEditor::read(const std::string& prompt) {
  state_->prompt = prompt;
  state_->is_interrupted = false;
  // Before the prompt is there to be answered: a Ctrl-D that comes earlier would be lost.
  el_set(state_->editor.get(), EL_PREP_TERM, 1);
  // The terminal may have changed its size since the last line.
  el_resize(state_->editor.get());
  if (state_->signals.take()) {
    el_set(state_->editor.get(), EL_PREP_TERM, 0);
    state_->break_off();
    return {End::kInterrupt, ""};
  }
  state_->mark_pastes(true);
  int count = 0;
  const char* line = el_gets(state_->editor.get(), &count);
  const bool is_signal = line == nullptr && count < 0 && errno == EINTR;
  state_->mark_pastes(false);
  if (is_signal) state_->signals.take();
  if (line == nullptr) {
    state_->break_off();
    return {is_signal ? End::kInterrupt : End::kEndOfFile, ""};
  }
  std::string text(line);
  if (text.ends_with('\n')) text.pop_back();
  return {state_->is_interrupted ? End::kInterrupt : End::kEnter, std::move(text)};
}

void LineEditor::remember(const std::string& entry) {
  HistEvent event = {};
  ::history(state_->history.get(), &event, H_ENTER, entry.c_str());
}

}  // namespace gemma::cli
