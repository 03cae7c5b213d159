//! `docs/regressions.md` names a test for each weakness that users suffer from elsewhere, or says why it cannot occur.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The functions of Rust sources under a directory that are tests: those that follow an attribute with `test`, and those in `proptest!`,
/// which have the attribute too.
fn tests(under: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(under).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                tests(&path, found);
            }
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, name)) = line.split_once("fn ").filter(|_| is_test) {
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                found.insert(name[..end.unwrap_or(name.len())].to_owned());
                is_test = false;
            }
        }
    }
}

#[test]
fn each_weakness_has_a_test_or_cannot_occur() {
    let mut known = BTreeSet::new();
    tests(&root().join("crates"), &mut known);
    let text = fs::read_to_string(root().join("docs/regressions.md")).expect("the table");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("| here |"));
    let (mut count, mut unknown) = (0, Vec::new());
    for row in rows {
        count += 1;
        let last = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .expect("a column")
            .trim();
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        let reason = last
            .strip_prefix("Cannot occur: ")
            .is_some_and(|why| why.len() > 20);
        assert!(
            reason || !named.is_empty(),
            "neither a test nor a reason: {row}"
        );
        // Where there is a reason, what stands in quotes may be a command.
        unknown.extend(
            named
                .into_iter()
                .filter(|name| !name.contains(' ') && !known.contains(*name))
                .map(str::to_owned),
        );
    }
    assert!(count > 40, "only {count} rows were found");
    assert!(unknown.is_empty(), "no tests of these names: {unknown:?}");
}
