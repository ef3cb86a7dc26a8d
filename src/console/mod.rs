//! The console: the page at `/` of the admin address, for whoever wants to see events and the server in a browser.
//!
//! It is one page without any outside part. `page.html`, `style.css`, the client `scripts/client/blackhole.mjs` and the files
//! of `js/` are put together by the compiler, so nothing is built where the server runs, and nothing is made at its start.
//!
//! | file | owns |
//! |---|---|
//! | `page.html` | the page's elements, and every text that is there before anything has happened |
//! | `style.css` | its looks: light and dark, phone and wide |
//! | `head.html` | what a browser is told of the page |
//! | `js/ui.js` | elements, copying, saving, numbers as people read them |
//! | `js/api.js` | requests to the admin address, with the admin token, which is kept in memory only |
//! | `js/virtual.js` | lists of which only what is seen is drawn |
//! | `js/metrics.js`, `js/plot.js`, `js/sse.js` | the text of `/metrics`; small plots; the stream of `/trace` |
//! | `js/connect.js` | the form, the client's connection, and its state in words |
//! | `js/bindings.js` | the bindings on offer, and those that are subscribed |
//! | `js/events.js` | the list of events, replies, notices and errors |
//! | `js/server.js` | the live view of the server |
//! | `js/sessions.js` | the sessions |
//! | `js/trace.js` | the trace |
//! | `js/main.js` | the views, as tabs; starts all of them, last |
//!
//! Invariants:
//!
//! - The page holds no secret: it is the same for everybody, so it is handed out without the admin token. What it asks for
//!   needs the token.
//! - [`policy`] lets a browser run and apply what is in the page and nothing else: the script and the style are named by
//!   their hashes, and there is no other.
//! - Foreign text is put in as text, never as HTML. The policy enforces it where the browser knows Trusted Types.
//! - All scripts are one module, in the order of [`SCRIPT`]. A name at the top of one is a name in all, so each is there
//!   once. None has an `import`.

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};

/// The looks.
const STYLE: &str = include_str!("style.css");

/// The scripts. While they load, each uses only those before it.
macro_rules! script {
    () => {
        concat!(
            include_str!("../../scripts/client/blackhole.mjs"),
            include_str!("js/ui.js"),
            include_str!("js/api.js"),
            include_str!("js/virtual.js"),
            include_str!("js/metrics.js"),
            include_str!("js/plot.js"),
            include_str!("js/sse.js"),
            include_str!("js/connect.js"),
            include_str!("js/bindings.js"),
            include_str!("js/events.js"),
            include_str!("js/server.js"),
            include_str!("js/sessions.js"),
            include_str!("js/trace.js"),
            include_str!("js/main.js"),
        )
    };
}

/// All scripts, as they stand in the page.
const SCRIPT: &str = script!();

/// The page, as it goes out.
pub const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n",
    include_str!("head.html"),
    "<style>",
    include_str!("style.css"),
    "</style>\n</head>\n<body>\n",
    include_str!("page.html"),
    "<script type=\"module\">",
    script!(),
    "</script>\n</body>\n</html>\n",
);

/// The value of `Content-Security-Policy` for [`PAGE`]. Linear in the page.
#[must_use]
pub fn policy() -> String {
    let hash = |text: &str| BASE64.encode(digest(&SHA256, text.as_bytes()).as_ref());
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self' ws: wss:; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands between `<NAME…>` and `</NAME>`, and how often there is such a pair.
    fn inside<'a>(page: &'a str, name: &str) -> (Vec<&'a str>, usize) {
        let (start, end) = (format!("<{name}"), format!("</{name}>"));
        let found = page.split(start.as_str()).skip(1).map(|rest| {
            let (_, rest) = rest.split_once('>').expect("the tag ends");
            rest.split_once(end.as_str()).expect("it is closed").0
        });
        (found.collect(), page.matches(end.as_str()).count())
    }

    #[test]
    fn a_browser_finds_the_very_texts_that_the_policy_names() {
        for (name, text) in [("script", SCRIPT), ("style", STYLE)] {
            let lower = PAGE.to_ascii_lowercase();
            let (found, ends) = inside(PAGE, name);
            assert_eq!(found, [text], "{name}");
            assert_eq!((ends, lower.matches(&format!("</{name}")).count()), (1, 1));
            let hash = BASE64.encode(digest(&SHA256, text.as_bytes()).as_ref());
            assert!(policy().contains(&format!("{name}-src 'sha256-{hash}';")));
        }
        // In a script, `<!--` changes how a browser finds its end (HTML 4.12.1.3).
        assert!(!SCRIPT.contains("<!--"));
    }

    #[test]
    fn nothing_is_fetched_from_elsewhere_and_nothing_needs_a_looser_policy() {
        for outside in [
            "src=\"",
            "@import",
            "url(",
            "http-equiv",
            "<base",
            "<iframe",
        ] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        for markup in [include_str!("head.html"), include_str!("page.html")] {
            for word in markup.split_whitespace() {
                let is_handler = word.starts_with("on") && word.contains('=');
                assert!(!is_handler && !word.starts_with("style="), "{word}");
            }
        }
        for hole in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ] {
            assert!(!SCRIPT.contains(hole), "{hole}");
        }
        for kept in [
            "localStorage",
            "sessionStorage",
            "document.cookie",
            "indexedDB",
        ] {
            assert!(
                !SCRIPT.contains(kept),
                "tokens are kept in memory only: {kept}"
            );
        }
    }
}
