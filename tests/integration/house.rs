//! The house stays clean: who may import whom (the table of floors in `src/lib.rs`), and no circle between files.
//!
//! How it works:
//! 1. The floors are read from the table in `src/lib.rs`.
//! 2. Every file of `src/` is parsed. A path that begins with `crate`, `super` or `self`, in a `use` or elsewhere, inside a
//!    macro too, is resolved to the file whose module it names. `#[cfg(test)]` items are left out: tests may look
//!    anywhere.
//! 3. An import of one folder from another must go to a lower floor; every folder and top file must be in the table.
//! 4. Of the imports between files, no path leads back to where it began.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A module's path from the crate's root: `[]`, `["session"]`, `["session", "outbox"]`.
type Module = Vec<String>;

/// The files of `src/` by the module that each is.
struct House {
    files: BTreeMap<Module, PathBuf>,
    /// Of each file, the modules that it imports from, each with a path that does.
    imports: BTreeMap<Module, BTreeMap<Module, String>>,
}

impl House {
    fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(src, &mut Vec::new(), &mut files);
        let mut imports = BTreeMap::new();
        let mut of_tests = BTreeSet::new();
        for (module, path) in &files {
            let text = fs::read_to_string(path).unwrap();
            let file = syn::parse_file(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut reader = Reader {
                at: module.clone(),
                found: Vec::new(),
                of_tests: Vec::new(),
            };
            reader.visit_file(&file);
            of_tests.extend(reader.of_tests);
            let mut of_file = BTreeMap::new();
            for found in reader.found {
                let target = owner(&files, &found);
                if target != *module {
                    of_file.entry(target).or_insert_with(|| found.join("::"));
                }
            }
            imports.insert(module.clone(), of_file);
        }
        for module in of_tests {
            imports.insert(module, BTreeMap::new());
        }
        Self { files, imports }
    }

    /// Every import against `floors`, and every module that stands on none.
    fn against(&self, floors: &BTreeMap<String, usize>) -> Vec<String> {
        let mut complaints = Vec::new();
        let tops: BTreeSet<&String> = self
            .files
            .keys()
            .filter_map(|module| module.first())
            .collect();
        for top in &tops {
            if !floors.contains_key(*top) {
                complaints.push(format!(
                    "src/{top} is on no floor of the table in src/lib.rs"
                ));
            }
        }
        for name in floors.keys() {
            if !tops.contains(name) {
                complaints.push(format!(
                    "the table in src/lib.rs names `{name}`, which is not there"
                ));
            }
        }
        for (module, imports) in &self.imports {
            let Some(from) = module.first() else { continue };
            for (target, path) in imports {
                let name = self.name(module);
                match target.first() {
                    None => complaints.push(format!("{name}: imports {path} from the root")),
                    Some(to) if from != to && floors.get(from) <= floors.get(to) => complaints
                        .push(format!(
                            "{name}: imports {path}, but {to} is not on a lower floor than {from}"
                        )),
                    Some(_) => {}
                }
            }
        }
        complaints
    }

    /// The circles between files: each as the files of which every one leads to every other.
    fn circles(&self) -> Vec<String> {
        let reach: BTreeMap<&Module, BTreeSet<&Module>> = self
            .imports
            .keys()
            .map(|module| (module, self.reached_from(module)))
            .collect();
        let mut circles = BTreeSet::new();
        for (module, reached) in &reach {
            if reached.contains(*module) {
                let together: Vec<_> = reached
                    .iter()
                    .filter(|other| reach[**other].contains(*module))
                    .map(|other| self.name(other))
                    .collect();
                circles.insert(together.join(", "));
            }
        }
        circles
            .into_iter()
            .map(|circle| format!("a circle: {circle}"))
            .collect()
    }

    fn reached_from(&self, module: &Module) -> BTreeSet<&Module> {
        let mut reached = BTreeSet::new();
        let mut to_visit: Vec<&Module> = self.imports[module].keys().collect();
        while let Some(next) = to_visit.pop() {
            if reached.insert(next) {
                to_visit.extend(self.imports[next].keys());
            }
        }
        reached
    }

    fn name(&self, module: &Module) -> String {
        self.files[module].display().to_string()
    }
}

/// Collects the modules below `dir`, which is the folder of `module`.
fn collect(dir: &Path, module: &mut Module, files: &mut BTreeMap<Module, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, files);
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let is_folders_own = name == "mod" || (module.is_empty() && name == "lib");
            let mut of_file = module.clone();
            if !is_folders_own {
                of_file.push(name);
            }
            let before = files.insert(of_file, path.clone());
            assert!(
                before.is_none(),
                "{} and {before:?} are one module",
                path.display()
            );
        }
    }
}

/// The module with a file of its own that `path` names something of.
fn owner(files: &BTreeMap<Module, PathBuf>, path: &[String]) -> Module {
    let length = (0..=path.len())
        .rev()
        .find(|length| files.contains_key(&path[..*length]));
    path[..length.unwrap_or_default()].to_vec()
}

/// Gathers the paths of one file that name something of this crate.
struct Reader {
    /// The module that is being read; inline ones included.
    at: Module,
    found: Vec<Module>,
    /// Modules below it that are compiled for tests only.
    of_tests: Vec<Module>,
}

impl Reader {
    /// Takes a path in, if it begins in a way that names a place of this crate.
    fn take(&mut self, path: &[String]) {
        let mut module = match path.first().map(String::as_str) {
            Some("crate") => Module::new(),
            Some("self" | "super") => self.at.clone(),
            _ => return,
        };
        for step in path {
            match step.as_str() {
                "crate" | "self" => {}
                "super" => drop(module.pop()),
                name => module.push(name.to_owned()),
            }
        }
        self.found.push(module);
    }

    fn take_tree(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.take_tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(name) => self.take_name(before, &name.ident),
            syn::UseTree::Rename(rename) => self.take_name(before, &rename.ident),
            syn::UseTree::Glob(_) => self.take(before),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.take_tree(before, tree);
                }
            }
        }
    }

    fn take_name(&mut self, before: &mut Vec<String>, name: &syn::Ident) {
        before.push(name.to_string());
        self.take(before);
        before.pop();
    }

    /// The paths among the tokens of a macro's call.
    fn take_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.take(&path);
                        path.clear();
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.take(&path);
                    path.clear();
                    colons = 0;
                    self.take_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.take(&path);
                    path.clear();
                    colons = 0;
                }
            }
        }
        self.take(&path);
    }
}

fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .meta
                    .require_list()
                    .is_ok_and(|list| list.tokens.to_string() == "test"))
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        } else if let syn::Item::Mod(item) = item {
            self.of_tests
                .push([&self.at[..], &[item.ident.to_string()]].concat());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.at.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.at.pop();
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_of_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.take_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(super)` and its like name who may look, not what is imported.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if names.len() > 1 {
            self.take(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.take_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

/// The floor of every module, from the table under the heading `# Floors` of the crate's documentation.
fn floors(lib: &str) -> BTreeMap<String, usize> {
    let rows = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .skip_while(|line| *line != "# Floors")
        .skip_while(|line| !line.starts_with('|'))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut floors = BTreeMap::new();
    for row in rows {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let floor = cells.next().unwrap().parse().unwrap();
        let module = cells.next().unwrap().trim_matches(['[', '`', ']']);
        let before = floors.insert(module.to_owned(), floor);
        assert!(before.is_none(), "{module} stands on two floors");
    }
    floors
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn every_import_goes_down_the_floors_and_every_folder_stands_on_one() {
    let floors = floors(&fs::read_to_string(src().join("lib.rs")).unwrap());
    assert!(floors.len() > 5, "{floors:?}");
    let complaints = House::read(&src()).against(&floors);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn no_import_leads_back_to_its_file() {
    let circles = House::read(&src()).circles();
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

#[test]
fn unsafe_code_is_forbidden_everywhere_but_in_sys() {
    let lib = syn::parse_file(&fs::read_to_string(src().join("lib.rs")).unwrap()).unwrap();
    for item in &lib.items {
        let syn::Item::Mod(module) = item else {
            continue;
        };
        let is_forbidden = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("forbid")
                && attribute
                    .meta
                    .require_list()
                    .is_ok_and(|list| list.tokens.to_string() == "unsafe_code")
        });
        assert_eq!(is_forbidden, module.ident != "sys", "{}", module.ident);
    }
}

/// A house of these files, each of a name and a text.
fn house(files: &[(&str, &str)]) -> House {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    House::read(dir.path())
}

#[test]
fn the_guard_sees_an_import_up_in_every_way_that_it_can_be_written() {
    let floors =
        [("main", 3), ("upper", 2), ("lower", 1)].map(|(name, floor)| (name.to_owned(), floor));
    let floors = floors.into();
    for (text, is_refused) in [
        ("use crate::upper::Thing;", true),
        ("use crate::{upper::Thing};", true),
        ("use super::super::upper::Thing as Other;", true),
        ("pub(crate) use crate::upper::*;", true),
        ("fn f() -> crate::upper::Thing { todo!() }", true),
        (
            "const _: () = assert!(size_of::<crate::upper::Thing>() == 8);",
            true,
        ),
        ("mod inner { use super::super::super::upper::Thing; }", true),
        ("#[cfg(test)] mod tests { use crate::upper::Thing; }", false),
        ("use super::sibling::Thing;", false),
        (
            "// crate::upper::Thing\nconst TEXT: &str = \"crate::upper::Thing\";",
            false,
        ),
    ] {
        let house = house(&[
            ("lib.rs", ""),
            ("main.rs", ""),
            ("upper.rs", "pub struct Thing;"),
            ("lower/mod.rs", ""),
            ("lower/sibling.rs", "pub struct Thing;"),
            ("lower/file.rs", text),
        ]);
        let complaints = house.against(&floors);
        assert_eq!(!complaints.is_empty(), is_refused, "{text}: {complaints:?}");
    }
}

#[test]
fn the_guard_sees_circles_and_folders_that_are_not_in_the_table() {
    let house = house(&[
        ("lib.rs", "pub mod one;"),
        ("one/mod.rs", "mod a; mod b; pub use self::a::A;"),
        ("one/a.rs", "use super::b::B; pub struct A;"),
        ("one/b.rs", "use super::A; pub struct B;"),
        ("two.rs", ""),
    ]);
    let [circle] = &house.circles()[..] else {
        panic!("{:?}", house.circles());
    };
    for file in ["one/mod.rs", "one/a.rs", "one/b.rs"] {
        assert!(circle.contains(file), "{circle}");
    }
    let floors = floors(
        "//! # Floors\n//!\n//! | floor | module |\n//! |---|---|\n//! | 2 | [`one`] |\n//! | 1 | three |\n",
    );
    let complaints = house.against(&floors).join("\n");
    for part in ["src/two is on no floor", "`three`, which is not there"] {
        assert!(complaints.contains(part), "{complaints}");
    }
}
