// A team's module: looks how much room the disk of the agent's root has, and removes caches until there is enough.
//
// The setting `free_mib` says how much has to be free, `caches` names directories below the agent's root, separated by blanks, the one that
// is missed least first. They are removed one after the other, and only as long as there is too little room. If there is too little when
// all are gone, the run is refused for ten minutes: builds that end may make room.
//
// Nothing is freed: an instance is thrown away after its one call.

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gen/provisioner.h"

typedef provisioner_string_t text_t;
typedef exports_muster_provision_provisioning_refusal_t refusal_t;
typedef muster_provision_agent_error_t error_t;

static const uint32_t LATER_SECONDS = 600;
static const uint64_t DF_MS_MAX = 20000;

// Texts.

static text_t text(const char *from) {
  return (text_t){(uint8_t *)from, strlen(from)};
}

static void append(text_t *to, text_t more) {
  to->ptr = realloc(to->ptr, to->len + more.len + 1);
  memcpy(to->ptr + to->len, more.ptr, more.len);
  to->len += more.len;
}

static void append_number(text_t *to, uint64_t number) {
  char digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = (char)('0' + number % 10);
  } while ((number /= 10) > 0);
  append(to, (text_t){(uint8_t *)digits + at, sizeof digits - at});
}

static bool is_blank(uint8_t letter) {
  return letter == ' ' || letter == '\t' || letter == '\n';
}

// Takes the next word off a text; false if there is none.
static bool next_word(text_t *from, text_t *word) {
  while (from->len && is_blank(*from->ptr)) from->ptr++, from->len--;
  *word = (text_t){from->ptr, 0};
  while (from->len && !is_blank(*from->ptr)) from->ptr++, from->len--, word->len++;
  return word->len > 0;
}

// A word of at most 15 digits as a number.
static bool number(text_t word, uint64_t *value) {
  *value = 0;
  for (size_t at = 0; at < word.len; at++) {
    if (word.ptr[at] < '0' || word.ptr[at] > '9') return false;
    *value = *value * 10 + (word.ptr[at] - '0');
  }
  return word.len > 0 && word.len <= 15;
}

// Refusals.

static bool never(refusal_t *refusal, text_t reason) {
  refusal->tag = EXPORTS_MUSTER_PROVISION_PROVISIONING_REFUSAL_NEVER;
  refusal->val.never = (text_t){0};
  append(&refusal->val.never, reason);
  return false;
}

static bool later(refusal_t *refusal, text_t reason) {
  refusal->tag = EXPORTS_MUSTER_PROVISION_PROVISIONING_REFUSAL_LATER;
  refusal->val.later.f0 = reason;
  refusal->val.later.f1 = LATER_SECONDS;
  return false;
}

// What a call that was not done means: what the policy forbids will not be allowed by trying again.
static bool refuse(refusal_t *refusal, const char *what, error_t *error) {
  if (error->tag == MUSTER_PROVISION_AGENT_ERROR_DENIED) return never(refusal, error->val.denied);
  refusal->tag = EXPORTS_MUSTER_PROVISION_PROVISIONING_REFUSAL_OTHER;
  refusal->val.other.is_some = true;
  text_t *reason = &refusal->val.other.val;
  *reason = (text_t){0};
  append(reason, text(what));
  append(reason, text(": "));
  switch (error->tag) {
    case MUSTER_PROVISION_AGENT_ERROR_TIMED_OUT: append(reason, text("it took too long")); break;
    case MUSTER_PROVISION_AGENT_ERROR_OTHER:
      append(reason, error->val.other.is_some ? error->val.other.val : text("the call failed"));
      break;
    // The others have a text each, at the same place.
    default: append(reason, error->val.not_found); break;
  }
  return false;
}

// The work.

static void step(const char *title) {
  text_t shown = text(title);
  muster_provision_log_step(&shown);
}

static void note(text_t message) {
  muster_provision_log_write(MUSTER_PROVISION_LOG_LEVEL_INFO, &message);
}

static bool setting(const char *name, text_t *value) {
  text_t asked = text(name);
  return muster_provision_settings_get(&asked, value);
}

// How many MiB are free where the agent's root is, as `df -Pk` says it: the fourth word of its second line.
static bool free_mib(uint64_t *mib, refusal_t *refusal) {
  text_t root, program = text("/bin/df");
  muster_provision_registration_root(&root);
  text_t arguments[] = {text("-Pk"), root};
  provisioner_list_string_t list = {arguments, 2};
  muster_provision_agent_own_command_t command = muster_provision_agent_constructor_command(&program, &list);
  muster_provision_agent_borrow_command_t borrowed = muster_provision_agent_borrow_command(command);
  muster_provision_agent_method_command_timeout_ms(borrowed, DF_MS_MAX);
  muster_provision_agent_own_output_t output;
  error_t error;
  if (!muster_provision_agent_probe(borrowed, &output, &error)) return refuse(refusal, "can not ask how much room there is", &error);

  provisioner_list_u8_t said;
  muster_provision_agent_method_output_stdout(muster_provision_agent_borrow_output(output), &said);
  uint8_t *line = memchr(said.ptr, '\n', said.len);
  text_t rest = line ? (text_t){line, said.len - (size_t)(line - said.ptr)} : (text_t){0}, word;
  for (int at = 0; at < 4; at++) {
    if (!next_word(&rest, &word)) word = (text_t){0};
  }
  if (!number(word, mib)) {
    text_t reason = {0};
    append(&reason, text("`df` did not say how much room there is"));
    return later(refusal, reason);
  }
  *mib /= 1024;
  return true;
}

static void tell(uint64_t mib, uint64_t wanted) {
  text_t told = {0};
  append_number(&told, mib);
  append(&told, text(" MiB are free, "));
  append_number(&told, wanted);
  append(&told, text(" are wanted"));
  note(told);
}

bool exports_muster_provision_provisioning_provision(refusal_t *refusal) {
  text_t asked, caches = {0}, cache;
  uint64_t wanted, mib;
  if (!setting("free_mib", &asked) || !number(asked, &wanted)) {
    return never(refusal, text("the setting `free_mib` is no number"));
  }
  setting("caches", &caches);

  step("look how much room there is");
  if (!free_mib(&mib, refusal)) return false;
  tell(mib, wanted);

  while (mib < wanted && next_word(&caches, &cache)) {
    step("remove a cache");
    muster_provision_agent_own_change_t change;
    error_t error;
    if (!muster_provision_agent_remove(&cache, &change, &error)) return refuse(refusal, "can not remove a cache", &error);
    text_t told = {0};
    append(&told, cache);
    bool changed = muster_provision_agent_method_change_changed(muster_provision_agent_borrow_change(change));
    append(&told, text(changed ? " was removed" : " is not there"));
    note(told);
    if (!free_mib(&mib, refusal)) return false;
    tell(mib, wanted);
  }
  if (mib >= wanted) return true;

  text_t reason = {0};
  append(&reason, text("the disk is full, with all caches removed: "));
  append_number(&reason, mib);
  append(&reason, text(" MiB are free, "));
  append_number(&reason, wanted);
  append(&reason, text(" are wanted"));
  return later(refusal, reason);
}
