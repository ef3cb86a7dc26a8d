// The view `#trace`.

/** Builds the view inside `root`. */
export function startTrace(root) {
  registerView("trace", { show() {}, hide() {} });
}
