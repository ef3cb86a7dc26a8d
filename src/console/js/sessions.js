// The view `#sessions`.

/** Builds the view inside `root`. */
export function startSessions(root) {
  registerView("sessions", { show() {}, hide() {} });
}
