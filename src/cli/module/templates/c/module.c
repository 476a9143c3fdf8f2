// Writes the label's settings to the file `settings.conf` below the agent's root.
//
// The functions of wit/provision.wit are in gen/provisioner.h. Nothing is freed: an instance is thrown away after its one call.

#include <stdlib.h>
#include <string.h>

#include "gen/provisioner.h"

typedef provisioner_string_t text_t;
typedef exports_muster_provision_provisioning_refusal_t refusal_t;

static text_t text(const char *from) {
  return (text_t){(uint8_t *)from, strlen(from)};
}

// Puts a text at the end of another one.
static void append(text_t *to, text_t more) {
  to->ptr = realloc(to->ptr, to->len + more.len + 1);
  memcpy(to->ptr + to->len, more.ptr, more.len);
  to->len += more.len;
}

// Refuses for good: this agent will not do for this label.
static bool never(refusal_t *refusal, text_t reason) {
  refusal->tag = EXPORTS_MUSTER_PROVISION_PROVISIONING_REFUSAL_NEVER;
  refusal->val.never = reason;
  return false;
}

// What a call that was not done means: what the policy forbids will not be allowed by trying again.
static bool refuse(refusal_t *refusal, muster_provision_agent_error_t *error) {
  if (error->tag == MUSTER_PROVISION_AGENT_ERROR_DENIED) return never(refusal, error->val.denied);
  refusal->tag = EXPORTS_MUSTER_PROVISION_PROVISIONING_REFUSAL_OTHER;
  refusal->val.other.is_some = true;
  text_t *reason = &refusal->val.other.val;
  *reason = (text_t){0};
  switch (error->tag) {
    case MUSTER_PROVISION_AGENT_ERROR_TIMED_OUT: append(reason, text("a command took too long")); break;
    case MUSTER_PROVISION_AGENT_ERROR_OTHER:
      append(reason, error->val.other.is_some ? error->val.other.val : text("the call failed"));
      break;
    // The others have a text each, at the same place.
    default: append(reason, error->val.not_found); break;
  }
  return false;
}

bool exports_muster_provision_provisioning_provision(refusal_t *refusal) {
  text_t step = text("write the settings");
  muster_provision_log_step(&step);

  provisioner_list_tuple2_string_string_t settings;
  muster_provision_settings_all(&settings);
  text_t lines = {0};
  for (size_t at = 0; at < settings.len; at++) {
    text_t name = settings.ptr[at].f0, value = settings.ptr[at].f1;
    if (memchr(value.ptr, '\n', value.len)) {
      text_t reason = {0};
      append(&reason, text("the setting `"));
      append(&reason, name);
      append(&reason, text("` has more than one line"));
      return never(refusal, reason);
    }
    append(&lines, name);
    append(&lines, text(" = "));
    append(&lines, value);
    append(&lines, text("\n"));
  }

  text_t path = text("settings.conf");
  provisioner_list_u8_t contents = {lines.ptr, lines.len};
  muster_provision_agent_own_change_t change;
  muster_provision_agent_error_t error;
  if (!muster_provision_agent_write_file(&path, &contents, 0644, &change, &error)) return refuse(refusal, &error);

  bool changed = muster_provision_agent_method_change_changed(muster_provision_agent_borrow_change(change));
  text_t note = text(changed ? "the settings were written" : "the settings were there already");
  muster_provision_log_write(MUSTER_PROVISION_LOG_LEVEL_INFO, &note);
  return true;
}
