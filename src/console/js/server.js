// The view `#server`.

/** Builds the view inside `root`. */
export function startServer(root) {
  registerView("server", { show() {}, hide() {} });
}
