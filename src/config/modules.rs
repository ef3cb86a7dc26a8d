//! Which modules the platform has started and stopped while a process ran (PROTOCOL 8, `Persist`): a JSON object
//! `{"bh_call": false}` in a file beside the config file, read at the start over `autoload_modules`.
//!
//! Invariant: the file is replaced as a whole, or not at all: it is written beside its place, forced to the disk, and then
//! renamed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use crate::json;

/// The file that belongs to a config file: its name with `.modules.json` behind it.
pub(super) fn beside(config: &Path) -> PathBuf {
    with_more(config, ".modules.json")
}

/// Reads the file; where there is none nothing was kept.
pub(super) fn read(file: &Path) -> Result<BTreeMap<String, bool>, ConfigError> {
    let wrong = |problem| ConfigError::File {
        file: file.to_owned(),
        problem,
    };
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
    };
    serde_json::from_str(&text).map_err(|error| {
        wrong(json::problem(
            &error,
            "a JSON object of modules, each true or false",
        ))
    })
}

/// Notes in the file that a module is on or off. Waits for the disk.
///
/// # Errors
/// What is wrong, for the log. The file is as before.
pub fn keep_module(file: &Path, module: &str, is_on: bool) -> Result<(), String> {
    let mut modules = read(file).map_err(|error| error.to_string())?;
    modules.insert(module.to_owned(), is_on);
    let text = serde_json::to_string_pretty(&modules).map_err(|error| error.to_string())? + "\n";
    // Of one process alone: several may share the config file.
    let draft = with_more(file, &format!(".{}.draft", std::process::id()));
    replace(file, &draft, text.as_bytes()).map_err(|error| {
        // An error: there is no draft.
        let _none = fs::remove_file(&draft);
        format!("{}: {error}", file.display())
    })
}

fn replace(file: &Path, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut written = File::create(draft)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(draft, file)?;
    // The name too is on the disk only then.
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn with_more(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_a_failure_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = beside(&folder.path().join("config.json"));
        assert!(file.ends_with("config.json.modules.json"));
        let kept = || read(&file).map_err(|error| error.to_string());
        assert_eq!(kept(), Ok(BTreeMap::new()));
        for (module, is_on) in [("bh_call", false), ("bh_fax", false), ("bh_call", true)] {
            assert_eq!(keep_module(&file, module, is_on), Ok(()));
        }
        let expected = BTreeMap::from([("bh_call".to_owned(), true), ("bh_fax".to_owned(), false)]);
        assert_eq!(kept(), Ok(expected.clone()));
        let files = || fs::read_dir(folder.path()).expect("there").count();
        assert_eq!(files(), 1, "no draft is left");

        // A draft that cannot be written.
        let draft = with_more(&file, &format!(".{}.draft", std::process::id()));
        fs::create_dir(&draft).expect("writable");
        assert!(keep_module(&file, "bh_call", false).is_err());
        assert_eq!(kept(), Ok(expected));

        fs::write(&file, r#"{"bh_call": 1}"#).expect("writable");
        let told = kept().expect_err("no truth value");
        assert!(told.starts_with(&file.display().to_string()), "{told}");
        assert!(told.contains("a JSON object of modules"), "{told}");
        assert!(keep_module(&file, "bh_call", false).is_err());
    }
}
